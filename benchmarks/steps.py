"""Milliseconds of a step of greedy search by the number of rows, for each form of the
weights, beside the floor of the machine.

pip install -e .
python benchmarks/steps.py [--size base] [--dtypes float32 int8] [--rows 1 2 3]

A step decodes one token of each row with a cache, and chooses the next: what a row costs
beside the encoder. It is the time of 40 steps less that of 8, in one program, the median of
some rounds. The rows are as given, without the padding of `generate` outside of `jit`. The
floor is the longer of two times, measured first: to read the decoder's weights, the head
and the keys and values once, and to do the products.
"""

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from costs import decoding, Layout, Task
from generate import INT8
from report import Comparison, write
from rich import box
from rich.console import Console
from rich.table import Table
from sizes import SIZES
from timing import seconds

import eqx_bart as eb


FEW, MANY = 8, 40
SLOTS = 64
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, INT8: 1}
ROWS = (*range(1, 9), 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64)


def model_of(size: str, dtype: str) -> Any:
    """A model with random weights; its encoder has one layer."""
    config = eb.BartConfig(**SIZES[size]).updated(encoder_layers=1)
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    return eb.quantize(model) if dtype == INT8 else eb.cast(model, dtype)


@eqx.filter_jit
def steps(model: Any, ids: jax.Array, count: jax.Array) -> jax.Array:
    """The tokens after so many steps."""
    length = {"max_new_tokens": SLOTS, "min_new_tokens": SLOTS}
    state = model.init_generation(ids, forced_eos_token_id=None, **length)
    arrays, rest = eqx.partition(state, eqx.is_array)

    def step(_: Any, arrays: Any) -> Any:
        return eqx.filter(model.step(eqx.combine(arrays, rest)), eqx.is_array)

    arrays = jax.lax.fori_loop(0, count, step, arrays)
    return eqx.combine(arrays, rest).output().sequences


def step_seconds(model: Any, rows: int, source: int, rounds: int) -> float:
    """The median time of a step."""
    random = np.random.default_rng(0)
    ids = jnp.asarray(random.integers(4, 50265, (rows, source), dtype=np.int32))
    few, many = (jnp.asarray(n, jnp.int32) for n in (FEW, MANY))
    steps(model, ids, few).block_until_ready()
    times = [
        seconds(lambda: steps(model, ids, many)) - seconds(lambda: steps(model, ids, few))
        for _ in range(rounds)
    ]
    return statistics.median(times) / (MANY - FEW)


def best(run: Callable[[], Any]) -> float:
    """The least time of a run, of ten."""
    run()
    return min(seconds(run) for _ in range(10))


def peaks(dtypes: list[str]) -> dict[str, float]:
    """Bytes per second that are read, and operations per second in a product, by dtype."""
    numbers, read = jnp.ones(1 << 28, jnp.float32), jax.jit(jnp.sum)
    found = {"bytes": numbers.nbytes / best(lambda: read(numbers))}
    return found | {dtype: products(dtype) for dtype in dtypes}


def products(dtype: str) -> float:
    """Operations per second in a product of 2,048 rows, laid out as it is fastest."""
    kind, sums = (jnp.int8, jnp.int32) if dtype == INT8 else (dtype, jnp.float32)
    shape, axis = ((3072, 768), 1) if dtype == INT8 else ((768, 3072), 0)
    x, y = jnp.ones((2048, 768), kind), jnp.ones(shape, kind)

    @jax.jit
    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        dimensions = ((1,), (axis,)), ((), ())
        return jax.lax.dot_general(x, y, dimensions, preferred_element_type=sums)

    return 2 * len(x) * y.size / best(lambda: product(x, y))


def floor(size: str, dtype: str, rows: int, source: int, peak: dict[str, float]) -> float:
    """The seconds that a step takes at least. In 8 bits, keys and values are float32."""
    config = eb.BartConfig(**SIZES[size])
    task = Task(config, rows, source, SLOTS, WIDTHS[dtype])
    (work,) = decoding(task, Layout()).works
    moved = work.moved
    if dtype == INT8:
        entries = 2 * config.decoder_layers * rows * (source + SLOTS) * config.d_model
        moved += 3 * entries
    return max(moved / peak["bytes"], work.flops / peak[dtype])


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step of so many rows takes, and the floor, in milliseconds."""

    dtype: str
    rows: int
    ms: float
    floor: float


def cliffs(found: list[Step]) -> list[str]:
    """Where fewer rows take a tenth longer than the next larger number, or a form takes a
    tenth longer than float32."""
    ms = {(step.dtype, step.rows): step.ms for step in found}
    numbers = sorted({step.rows for step in found})
    following = dict(itertools.pairwise(numbers))
    said = list[str]()
    for (dtype, rows), took in ms.items():
        later = ms.get((dtype, following.get(rows, rows)), took)
        if took > 1.1 * later:
            said.append(f"{dtype}: {rows} rows {took:.1f}, {following[rows]} {later:.1f}")
        whole = ms.get(("float32", rows), took)
        if took > 1.1 * whole:
            said.append(f"{dtype}: {rows} rows {took:.1f}, float32 {whole:.1f}")
    return said


def table_of(found: list[Step]) -> Table:
    """A line for each number of rows."""
    table = Table(
        title=f"ms a step, and how many times its floor; jax {jax.__version__}",
        box=box.SIMPLE_HEAD,
    )
    dtypes = list(dict.fromkeys(step.dtype for step in found))
    for name in ("rows", *dtypes):
        table.add_column(name, justify="right")
    for rows in dict.fromkeys(step.rows for step in found):
        cells = [step for step in found if step.rows == rows]
        texts = [f"{step.ms:.1f} ({step.ms / step.floor:.1f})" for step in cells]
        table.add_row(str(rows), *texts)
    return table


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtypes", choices=WIDTHS, nargs="+", default=[*WIDTHS])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--source", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    peak = peaks(args.dtypes)
    found = list[Step]()
    for dtype in args.dtypes:
        model = model_of(args.size, dtype)
        for rows in args.rows:
            took = step_seconds(model, rows, args.source, args.rounds)
            least = floor(args.size, dtype, rows, args.source, peak)
            found.append(Step(dtype, rows, 1000 * took, 1000 * least))
            print(f"{dtype}, {rows} rows: {1000 * took:.1f} ms", flush=True)
    console = Console(width=100)
    console.print(table_of(found))
    console.print("\n".join(["Cliffs:", *(cliffs(found) or ["none"])]))
    console.print(", ".join(f"{k} {v / 1e9:.0f} G/s" for k, v in peak.items()))
    steps_found = [dataclasses.asdict(step) for step in found]
    results = {"peaks": peak, "steps": steps_found, "cliffs": cliffs(found)}
    floors = [
        Comparison(f"a step, {one.rows} rows, {one.dtype}", "its floor", one.floor / one.ms)
        for one in found
        if one.rows in (1, 8, 16, 64)
    ]
    write(args.json, results, floors)


if __name__ == "__main__":
    main()
