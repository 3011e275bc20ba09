"""Time and memory of `from_pretrained`: eqx-bart and Hugging Face's PyTorch BART.

pip install -e '.[test]'
python benchmarks/load.py [--rounds 5] [--size large] [--cache DIRECTORY] [--json FILE]

Each load is a process of its own that imports first and then loads the same file, which
lies in the page cache; the engines take turns. The time is that of `from_pretrained` and
of reading every weight once, since PyTorch may map a file without reading it. The peak is
the largest resident memory of the process, in sizes of the file, all that Python and the
libraries take included; beside it, what was resident before the load. In 8 bits it is
`quantize="int8"` of the same file, which HF has no counterpart of.
"""

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import Comparison, write
from rich import box
from rich.console import Console
from rich.table import Table
from sizes import SIZES


INT8 = "int8"
FILES = {"safetensors": "model.safetensors", "PyTorch": "pytorch_model.bin"}
CASES = [
    ("ours", "safetensors", "float32"),
    ("HF PyTorch", "safetensors", "float32"),
    ("ours", "safetensors", "bfloat16"),
    ("HF PyTorch", "safetensors", "bfloat16"),
    ("ours", "PyTorch", "float32"),
    ("HF PyTorch", "PyTorch", "float32"),
    ("ours", "safetensors", INT8),
    ("ours", "PyTorch", INT8),
]


def resident(field: str = "VmRSS") -> int:
    """The resident memory of this process in bytes: now, or by `VmHWM` at its peak.

    `getrusage` would count the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def load_ours(directory: str, dtype: str) -> tuple[float, int]:
    """Seconds, and what was resident before."""
    import equinox as eqx
    import jax
    import numpy as np

    import eqx_bart as eb

    jax.config.update("jax_platforms", "cpu")
    jax.block_until_ready(jax.numpy.zeros(1))
    before, start = resident(), time.perf_counter()
    form: dict[str, Any] = {"quantize": INT8} if dtype == INT8 else {"dtype": dtype}
    model = eb.BartForConditionalGeneration.from_pretrained(directory, **form)
    for array in jax.tree.leaves(eqx.filter(model, eqx.is_array)):
        np.asarray(array)[..., ::16].max()
    return time.perf_counter() - start, before


def load_hf(directory: str, dtype: str) -> tuple[float, int]:
    """Seconds, and what was resident before."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    before, start = resident(), time.perf_counter()
    model = transformers.BartForConditionalGeneration.from_pretrained(
        directory, dtype=getattr(torch, dtype)
    )
    for parameter in model.parameters():
        parameter.detach()[..., ::16].max()
    return time.perf_counter() - start, before


def child(engine: str, directory: str, dtype: str) -> None:
    """Loads once, and prints the figures."""
    load = load_ours if engine == "ours" else load_hf
    seconds, before = load(directory, dtype)
    peak = resident("VmHWM")
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak}))


def measure(engine: str, directory: Path, dtype: str) -> dict[str, float]:
    """The figures of one load, in a process of its own."""
    done = subprocess.run(  # noqa: S603, the command is our own
        [sys.executable, __file__, "--child", engine, str(directory), dtype],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def build(size: str, directory: Path) -> dict[str, Path]:
    """Writes random weights in each format, and returns the directories."""
    import torch
    import transformers

    directories = {name: directory / size / name for name in FILES}
    if all((directories[name] / file).is_file() for name, file in FILES.items()):
        return directories
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(
        transformers.BartConfig(**SIZES[size])
    )
    model.save_pretrained(directories["safetensors"])
    model.config.save_pretrained(directories["PyTorch"])
    torch.save(model.state_dict(), directories["PyTorch"] / FILES["PyTorch"])
    return directories


def median(runs: Sequence[dict[str, float]]) -> float:
    """The median of their seconds."""
    return statistics.median(run["seconds"] for run in runs)


def report(size: str, figures: dict[Any, list[dict[str, float]]], nbytes: int) -> Table:
    """The table: medians of seconds, and the largest peak."""
    table = Table(title=f"from_pretrained, BART-{size}", box=box.SIMPLE_HEAD)
    table.add_column("engine, format, dtype", no_wrap=True)
    for name in ("jax", "seconds", "min", "ours/HF", "peak/file", "before/file"):
        table.add_column(name, justify="right")
    for case, runs in figures.items():
        seconds = median(runs)
        theirs = figures.get(("HF PyTorch", *case[1:]), ())
        is_compared = case[0] == "ours" and theirs
        table.add_row(
            ", ".join(case),
            importlib.metadata.version("jax") if case[0] == "ours" else "",
            f"{seconds:.2f}",
            f"{min(run['seconds'] for run in runs):.2f}",
            f"{seconds / median(theirs):.2f}" if is_compared else "",
            f"{max(run['peak'] for run in runs) / nbytes:.3f}",
            f"{max(run['before'] for run in runs) / nbytes:.3f}",
        )
    return table


def comparisons(figures: dict[Any, list[dict[str, float]]]) -> list[Comparison]:
    """Ours beside HF's, of the same file."""
    medians = {case: median(runs) for case, runs in figures.items()}
    return [
        Comparison(
            f"load {', '.join(what)}", "HF PyTorch", seconds / medians["ours", *what]
        )
        for (engine, *what), seconds in medians.items()
        if engine != "ours"
    ]


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="where to keep the random weights")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    figures: dict[Any, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as temporary:
        directories = build(args.size, args.cache or Path(temporary))
        nbytes = (directories["safetensors"] / FILES["safetensors"]).stat().st_size
        for case in [*CASES, *CASES * args.rounds]:
            engine, format_, dtype = case
            figures[case].append(measure(engine, directories[format_], dtype))
    for runs in figures.values():
        del runs[0]  # it may have read from the disk
    Console(width=100).print(report(args.size, figures, nbytes))
    records = [{"case": case, "runs": runs} for case, runs in figures.items()]
    write(args.json, records, comparisons(figures))


if __name__ == "__main__":
    main()
