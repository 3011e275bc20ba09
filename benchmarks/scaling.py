"""What a training step and a generation of BART-large should take on 1 to 1,024 devices,
with each layout that `eqx_bart.shard` has: a prediction, from what a program does and what
a machine can do, of which nothing is measured but what `--check` compares.

python benchmarks/scaling.py [--machine h100] [--batch 1024] [--vocabulary 50265]
python benchmarks/scaling.py --check

`costs.py` counts operations, bytes and collectives in closed form; `roofline.py` turns them
into seconds by a file of `machines/`, whose figures have their sources beside them. Each
device has --rows rows, unless --batch says how many all of them have together. The layout
that is chosen is the fastest that fits into memory, if collectives over `data` and `fsdp`
overlap with computation as far as they can. A vocabulary of 50,265 divides by none of
these numbers of devices, so that `tensor` would leave it whole; it is padded to 50,304.

--check compiles BART-large with three layers for 1, 2, 4 and 8 devices on this host, with
each layout, and prints what is predicted beside what XLA says.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from costs import decoding, encoding, Layout, layouts, parameters, Task, training
from rich import box
from rich.console import Console
from rich.table import Table
from roofline import generation, Machine, Prediction, step

import eqx_bart as eb


MACHINES = Path(__file__).parent / "machines"
WIDTHS = {"bfloat16": 2, "float32": 4}
FAMILIES = {
    name: tuple(name.split(" + "))
    for name in (
        "data",
        "fsdp",
        "tensor",
        "data + fsdp",
        "data + tensor",
        "fsdp + tensor",
        "data + fsdp + tensor",
    )
}
CHECKED = (
    *(Layout(data=n) for n in (1, 2, 4, 8)),
    *(Layout(fsdp=n) for n in (2, 4, 8)),
    *(Layout(tensor=n) for n in (2, 4, 8)),
    *(Layout(data=n, fsdp=m) for n, m in ((2, 2), (2, 4), (4, 2))),
    *(Layout(data=n, tensor=m) for n, m in ((2, 2), (2, 4), (4, 2))),
    *(Layout(fsdp=n, tensor=m) for n, m in ((2, 2), (2, 4), (4, 2))),
    Layout(2, 2, 2),
)

Predict = Callable[[Machine, Task, Layout, str], Prediction]


def predictions(
    predict: Predict, machine: Machine, task: Task, num_devices: int, dtype: str
) -> list[Prediction]:
    """Of all layouts that fit into memory, the fastest first."""
    found = layouts(num_devices, task, most_tensor=machine.per_node)
    predicted = (predict(machine, task, layout, dtype) for layout in found)
    return sorted((p for p in predicted if p.fits), key=lambda p: p.seconds)


def choice(found: list[Prediction]) -> Prediction:
    """The fastest; of those that are as good as that, within a hundredth, the one that is
    the fastest without overlap."""
    as_good = (p for p in found if p.seconds <= 1.01 * found[0].seconds)
    return min(as_good, key=lambda p: p.in_turn)


def report(
    console: Console, predict: Predict, machine: Machine, args: argparse.Namespace
) -> None:
    """Prints a table, and what each device does with the layouts that are chosen."""
    name = "A training step" if predict is step else "A greedy generation"
    rows = f"{args.batch} rows" if args.batch else f"{args.rows} rows a device"
    title = f"{name}, {machine.name}, {rows} of {args.source} + {args.target} tokens, ms"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in ("devices", *FAMILIES):
        table.add_column(column, justify="right")
    table.add_column("choice", no_wrap=True)
    for column in ("no overlap", "GB", "tokens/s", "of linear"):
        table.add_column(column, justify="right", no_wrap=True)
    config = eb.BartConfig(vocab_size=args.vocabulary)
    rates = dict[int, float]()
    for num_devices in (2**i for i in range(args.most.bit_length())):
        batch = args.batch or args.rows * num_devices
        task = Task(config, batch, args.source, args.target, WIDTHS[args.dtype])
        found = predictions(predict, machine, task, num_devices, args.dtype)
        cells = [str(num_devices), *(fastest(found, axes) for axes in FAMILIES.values())]
        if found:
            best = choice(found)
            rate = (task.tokens if predict is step else batch * args.target) / best.seconds
            rates[num_devices] = rate / num_devices
            linear = rates[num_devices] / next(iter(rates.values()))
            cells += [str(best.layout), f"{1e3 * best.in_turn:.1f}"]
            cells += [f"{best.held / 1e9:.1f}", f"{rate:,.0f}", f"{linear:.0%}"]
        table.add_row(*cells)
    console.print(table)
    for num_devices, rate in rates.items():
        bar = "█" * round(50 * rate / max(rates.values()))
        console.print(f"{num_devices:>6} {bar} {rate:,.0f} tokens/s a device")


def fastest(found: list[Prediction], axes: tuple[str, ...]) -> str:
    """The milliseconds of the fastest layout over these axes. One device has all of its
    rows, as with `data`."""
    times = (p.seconds for p in found if (p.layout.family or ("data",)) == axes)
    seconds = min(times, default=None)
    return "" if seconds is None else f"{1e3 * seconds:.1f}"


def check(console: Console, config: eb.BartConfig, checked: tuple[Layout, ...]) -> float:
    """Prints what is predicted of programs over what XLA says of them, and returns the
    largest distance from 1 of operations and of bytes that are exchanged."""
    import compiled
    import jax

    task = Task(config, batch=64, source=128, target=64, width=4)
    table = Table(
        title=f"Predicted over compiled, jax {jax.__version__}", box=box.SIMPLE_HEAD
    )
    for column in ("layout", "program", "operations", "moved", "held", "exchanged, MB"):
        table.add_column(column, no_wrap=True)
    table.add_column("ratio")
    table.add_column("of each kind")
    worst = 0.0
    for layout in checked:
        cost, program = training(task, layout), compiled.compile_training(task, layout)
        said = program.cost_analysis()
        flops = cost.flops / said["flops"]
        moved = sum(w.moved for w in cost.works[:-1]) / said["bytes accessed"]
        moments = 8 * parameters(config, layout)  # and no optimiser is compiled
        held = (cost.held - moments) / compiled.held(program)
        ratios = [f"{flops:.3f}", f"{moved:.2f}", f"{held:.2f}"]
        generated = compiled.compile_generation(task, layout)
        worst = max(worst, abs(flops - 1))
        for name, one, of in (
            ("training step", cost, program),
            ("encoding", encoding(task, layout), generated),
            ("decoding step", decoding(task, layout), generated),
        ):
            found = compiled.exchanged(of, in_loop=name == "decoding step")
            ours = compiled.expected(one.collectives)
            total = sum(found.values())
            cells = [str(layout), name, *(ratios if one is cost else [""] * 3)]
            if total:
                ratio = sum(ours.values()) / total
                worst = max(worst, abs(ratio - 1))
                kinds = (f"{k} {ours.get(k, 0) / found[k]:.3f}" for k in sorted(found))
                cells += [f"{total / 1e6:.2f}", f"{ratio:.3f}", ", ".join(kinds)]
            table.add_row(*cells)
    console.print(table)
    return worst


def machines(names: list[str], dtype: str) -> Iterator[Machine]:
    """Those of the files with these names that have a peak for this dtype."""
    found = (Machine.read(MACHINES / f"{name}.toml") for name in names)
    return (machine for machine in found if dtype in machine.peak)


def main() -> None:
    """Predicts, or checks, and prints tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in MACHINES.glob("*.toml"))
    parser.add_argument("--machine", nargs="*", choices=known, default=known)
    parser.add_argument("--rows", type=int, default=16, help="of each device")
    parser.add_argument("--batch", type=int, help="the rows of all devices together")
    parser.add_argument("--source", type=int, default=512)
    parser.add_argument("--target", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--dtype", choices=WIDTHS, default="bfloat16")
    parser.add_argument("--most", type=int, default=1024, help="devices")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    console = Console(width=160)
    if args.check:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
        config = eb.BartConfig(
            vocab_size=args.vocabulary, encoder_layers=2, decoder_layers=1
        )
        check(console, config, CHECKED)
        return
    for machine in machines(args.machine, args.dtype):
        for predict in (step, generation):
            report(console, predict, machine, args)


if __name__ == "__main__":
    main()
