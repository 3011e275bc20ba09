"""Time from the start of a process to its first answer: eqx-bart and HF's PyTorch BART.

pip install -e '.[test]'
python benchmarks/startup.py [--rounds 7] [--cache DIRECTORY] [--json FILE]

Each run is a process of its own, timed from outside until it has ended; the engines take
turns, and files lie in the page cache. `cold` starts with no program on disk, `warm` with
those of an earlier run. `word` is `eqx-bart generate transformer`, with the built-in model,
beside a script that answers with the same weights in PyTorch; `base` is a script that loads
BART-base with random weights and generates 20 tokens. What a warm run is made of is printed
by the scripts of `base` themselves: imports, `from_pretrained`, and the first `generate`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load import build
from report import Comparison, write
from rich import box
from rich.console import Console
from rich.table import Table

import eqx_bart as eb


# As where a package is installed, modules are compiled once.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": ""}
OURS = """
import json, sys, time
start = time.perf_counter()
import jax, numpy as np
import eqx_bart as eb
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
imported = time.perf_counter()
model = eb.BartForConditionalGeneration.from_pretrained(sys.argv[1])
loaded = time.perf_counter()
ids = np.array([[0, *range(100, 130), 2]])
out = model.generate(ids, max_new_tokens=20, min_new_tokens=20)
np.asarray(out.sequences)
parts = imported - start, loaded - imported, time.perf_counter() - loaded
print(json.dumps(parts))
"""
THEIRS = """
import json, sys, time
start = time.perf_counter()
import torch, transformers
transformers.logging.disable_progress_bar()
imported = time.perf_counter()
model = transformers.BartForConditionalGeneration.from_pretrained(sys.argv[1])
loaded = time.perf_counter()
ids = torch.tensor([[0, *range(100, 130), 2]])
with torch.no_grad():
    model.generate(ids, max_new_tokens=20, min_new_tokens=20)
parts = imported - start, loaded - imported, time.perf_counter() - loaded
print(json.dumps(parts))
"""
THEIR_WORD = """
import sys
import torch, transformers
transformers.logging.disable_progress_bar()
model = transformers.BartForConditionalGeneration.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    out = model.generate(**tokenizer("transformer", return_tensors="pt"))
print(tokenizer.batch_decode(out, skip_special_tokens=True)[0])
"""


def seconds(
    command: list[str], environment: dict[str, str]
) -> tuple[float, list[float] | None]:
    """How long a process takes, and what it says that its parts take."""
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603, the command is our own
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ENVIRONMENT | environment,
    )
    passed = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    last = done.stdout.splitlines()[-1]
    return passed, json.loads(last) if last.startswith("[") else None


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cache", type=Path, help="where to keep the random weights")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    figures: dict[str, list[tuple[float, list[float] | None]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        base = str(build("base", args.cache or place)["safetensors"])
        kept = {name: str(place / name) for name in ("cold", "warm")}
        python, word = sys.executable, ["-m", "eqx_bart", "generate", "transformer"]
        cases = {
            "word, ours, cold": ([python, *word], {"EQX_BART_CACHE": kept["cold"]}),
            "word, ours, warm": ([python, *word], {"EQX_BART_CACHE": kept["warm"]}),
            "word, HF": ([python, "-c", THEIR_WORD, str(eb.BUILTIN_MODEL)], {}),
            "base, ours, cold": ([python, "-c", OURS, base, kept["cold"]], {}),
            "base, ours, warm": ([python, "-c", OURS, base, kept["warm"]], {}),
            "base, HF": ([python, "-c", THEIRS, base], {}),
        }
        for number in range(args.rounds + 1):
            for name, case in cases.items():
                shutil.rmtree(kept["cold"], ignore_errors=True)
                found = seconds(*case)
                if number:  # the first run reads from the disk, and fills what is warm
                    figures.setdefault(name, []).append(found)
    table = Table(title="start to first answer, seconds", box=box.SIMPLE_HEAD)
    for name in ("case", "median", "min", "imports", "load", "generate"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for name, runs in figures.items():
        times = [passed for passed, _ in runs]
        said = [parts for _, parts in runs if parts is not None]
        medians = [statistics.median(x) for x in zip(*said, strict=True)]
        numbers = [statistics.median(times), min(times), *medians]
        table.add_row(name, *(f"{x:.2f}" for x in numbers))
    Console(width=100).print(table)
    medians = {
        name: statistics.median(s for s, _ in runs) for name, runs in figures.items()
    }
    found = [
        Comparison(f"start to answer, {name}", "HF PyTorch", medians[f"{what}, HF"] / took)
        for name, took in medians.items()
        if (what := name.split(",")[0]) and "ours" in name
    ]
    write(args.json, figures, found)


if __name__ == "__main__":
    main()
