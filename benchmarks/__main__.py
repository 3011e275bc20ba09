"""All benchmarks, each in the environments that it is for.

python -m benchmarks [--only generate steps …] [--rounds 3] [--directory .benchmarks]

The environments are made where they are not there: the package with the peers, for the
oldest Python that the package supports, which gets the oldest JAX, and for the newest of
this machine, which gets the newest; and one with HF's Flax BART. Each benchmark is a
process of its own, whose engines take turns and whose tokens are checked first; it prints
its own table. At the end: how many times as fast we are, a column for each environment; in
the directory, all figures as `results.json`, and two pictures.

On a machine with an NVIDIA GPU, what is generated there is measured too. All of it takes
hours on two cores: `--only` picks, and what was measured before stays in `results.json`.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .environments import environment


HERE = Path(__file__).parent
PYTORCH, PEERS = "torch==2.13.0", ("ctranslate2", "matplotlib")
OLDEST, NEWEST = "oldest", "newest"


@dataclasses.dataclass(frozen=True)
class Part:
    """A script, its options, and the environments that it runs in."""

    script: str
    options: tuple[str, ...] = ()
    environments: tuple[str, ...] = (OLDEST, NEWEST)


ALL_DTYPES = ("--dtypes", "float32", "bfloat16", "int8", "int8_bfloat16")
PARTS = {
    "generate": Part(
        "generate.py", ("--large", *ALL_DTYPES, "--flax", "flax", "--cache", "weights")
    ),
    "growth": Part(
        "generate.py",
        ("--growth", "--dtypes", "float32", "int8", "--cache", "weights"),
        (NEWEST,),
    ),
    "steps": Part("steps.py", ("--dtypes", "float32", "bfloat16", "float16", "int8")),
    "rows": Part("rows.py"),
    "drafts": Part("drafts.py", ("--cache", "weights/drafts")),
    "tasks": Part("tasks.py"),
    "many": Part("many.py", ("--dtype", "int8", "--cache", "weights/many")),
    "startup": Part("startup.py", ("--cache", "weights/startup")),
    "load": Part("load.py", ("--cache", "weights/load")),
    "train": Part("train.py", ("--flax", "flax")),
    "mixed": Part("train.py", ("--mixed", "--layers", "3")),
}
GPU_PARTS = {
    "generate on a GPU": Part(
        "generate.py",
        ("--device", "cuda", "--large", "--dtypes", "float32", "bfloat16", "--compiled"),
        (NEWEST,),
    ),
    "drafts on a GPU": Part(
        "drafts.py",
        ("--size", "large", "--dtype", "bfloat16", "--cache", "weights/drafts"),
        (NEWEST,),
    ),
}


def pythons() -> dict[str, str]:
    """The interpreters of the environments: the oldest Python 3 that the package supports,
    and the newest there is."""
    text = (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")
    requires = tomllib.loads(text)["project"]["requires-python"]
    oldest = int(requires.split(".")[1])
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep)]
    places += Path.home().glob(".pyenv/versions/3.*/bin")
    found = {
        int(match[1]): str(file)
        for place in places
        for file in place.glob("python3.*")
        if (match := re.fullmatch(r"python3\.(\d+)", file.name))
    }
    found[sys.version_info.minor] = sys.executable
    if oldest not in found:
        raise SystemExit(f"There is no Python 3.{oldest} here, the oldest that counts.")
    return {OLDEST: found[oldest], NEWEST: found[max(found)]}


def measure(part: Part, python: str, directory: Path, rounds: int) -> Any:
    """What a benchmark writes of itself; `None` if it fails."""
    report = directory / "report.json"
    report.unlink(missing_ok=True)
    options = [*part.options, "--rounds", str(rounds), "--json", str(report)]
    command = [python, str(HERE / part.script), *options]
    print("+", " ".join([part.script, *options]), flush=True)
    subprocess.run(command, check=False, cwd=directory)  # noqa: S603, it is our own
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else None


def table_of(results: dict[str, dict[str, Any]]) -> Table:
    """A line for each work and each peer, a column for each environment."""
    environments = list(dict.fromkeys(name for part in results.values() for name in part))
    table = Table(title="How many times as fast as another", box=box.SIMPLE_HEAD)
    for name in ("work", "against"):
        table.add_column(name)
    for name in environments:
        jax = {part[name]["machine"]["jax"] for part in results.values() if name in part}
        table.add_column(f"{name}, jax {', '.join(sorted(jax))}", justify="right")
    for part in results.values():
        ratios = {
            name: {(x["work"], x["against"]): x["ratio"] for x in report["comparisons"]}
            for name, report in part.items()
        }
        for pair in dict.fromkeys(pair for some in ratios.values() for pair in some):
            values = [ratios.get(name, {}).get(pair) for name in environments]
            table.add_row(*pair, *("" if x is None else f"{x:.2f}" for x in values))
        table.add_section()
    return table


def main() -> None:
    """Measures, prints, writes and draws."""
    has_gpu = shutil.which("nvidia-smi") is not None
    parts = PARTS | (GPU_PARTS if has_gpu else {})
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(".benchmarks"))
    args = parser.parse_args()
    directory = args.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    package = f"{HERE.parent}[{'test,cuda13' if has_gpu else 'test'}]"
    inside = {
        # PyTorch first and alone: a local or CPU build is what should be measured. Ours
        # editable: what is measured is what is there now, not what was at the first time.
        name: environment(directory / name, python, [PYTORCH], ["-e", package, *PEERS])
        for name, python in pythons().items()
    }
    failed = list[str]()
    for name in args.only:
        for place in parts[name].environments:
            report = measure(parts[name], inside[place], directory, args.rounds)
            if report is None:
                failed.append(f"{name}, {place}")
                continue
            results.setdefault(name, {})[place] = report
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Console(width=110).print(table_of(results))
    drawing = [inside[NEWEST], str(HERE / "pictures.py"), str(file), str(directory)]
    subprocess.run(drawing, check=True)  # noqa: S603, the command is our own
    if failed:
        raise SystemExit(f"These failed: {'; '.join(failed)}.")


if __name__ == "__main__":
    main()
