"""How the cost of `generate` grows with samples and beams of one input, beside Hugging
Face's PyTorch BART.

pip install -e '.[test]'
python benchmarks/rows.py [--rounds 3] [--most 128] [--device cuda]

The model is small, so that what grows shows. Both have the same random weights in float32,
and make NEW_TOKENS tokens a row. Memory is how far a run's largest resident memory lies
over the process's before it, which Linux tells, on the CPU alone. On a GPU float32 is what
it says, not TF32.
"""

import argparse
import concurrent.futures
import ctypes
import functools
import gc
import itertools
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from report import Comparison, write
from rich.console import Console
from rich.table import Table
from timing import seconds

import eqx_bart as eb


NEW_TOKENS, SOURCE = 64, 64
LENGTH = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}

#: A kind of search and its number of rows.
Case = tuple[str, int]


def build(directory: str) -> tuple[Any, Any]:
    """HF's model and ours."""
    config = transformers.BartConfig(
        vocab_size=2000,
        d_model=256,
        encoder_layers=2,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        init_std=0.1,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    theirs = transformers.BartForConditionalGeneration(config).eval()
    theirs.save_pretrained(directory)
    return theirs, eb.BartForConditionalGeneration.from_pretrained(directory)


def settings(kind: str, rows: int) -> dict[str, Any]:
    """Settings for so many samples or beams."""
    if kind == "beams":
        return LENGTH | {"num_beams": rows}
    return LENGTH | {"do_sample": True, "num_return_sequences": rows}


def generate(model: Any, ids: np.ndarray, asked: dict[str, Any]) -> None:
    """Runs ours to its end."""
    output = model.generate(ids, key=jax.random.key(0), **asked)
    output.sequences.block_until_ready()


def both(
    most: int, device: str = "cpu"
) -> dict[Case, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is measured of ours and of HF's, by case."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = build(directory)
    theirs = theirs.to(device)
    ids = np.random.default_rng(0).integers(4, 2000, (1, SOURCE))
    tensor = torch.from_numpy(ids).to(device)
    numbers = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= most]
    return {
        (kind, rows): (
            functools.partial(generate, ours, ids, settings(kind, rows)),
            functools.partial(theirs.generate, tensor, **settings(kind, rows)),
        )
        for kind, rows in itertools.product(("samples", "beams"), numbers)
    }


def resident() -> float:
    """The process's largest resident memory since it was last reset, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def megabytes(run: Callable[[], Any]) -> float:
    """How far a run's largest resident memory lies over the process's before it."""
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    run()
    return resident() - before


def times(most: int, rounds: int, device: str) -> dict[Case, tuple[float, float]]:
    """Median seconds of ours and of HF's, which take turns."""
    medians = {}
    for case, (ours, theirs) in both(most, device).items():
        ours()
        theirs()
        measured = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
        mine, hf = (statistics.median(x) for x in zip(*measured, strict=True))
        medians[case] = mine, hf
    return medians


def memory(most: int) -> dict[Case, tuple[float, float]]:
    """Megabytes of ours and of HF's."""
    return {
        case: (megabytes(ours), megabytes(hf)) for case, (ours, hf) in both(most).items()
    }


def in_a_process_that_gives_freed_memory_back(most: int) -> dict[Case, tuple[float, float]]:
    """`memory`, where the C library maps what is larger than 64 KiB by itself."""
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.mmap_threshold=65536"
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(memory, most).result()


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=128)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    jax.config.update("jax_platforms", args.device)
    jax.config.update("jax_default_matmul_precision", "highest")
    took = times(args.most, args.rounds, args.device)
    needed = {}
    if args.device == "cpu":
        needed = in_a_process_that_gives_freed_memory_back(args.most)
    title = f"{NEW_TOKENS} tokens, medians of {args.rounds}, jax {jax.__version__}"
    columns = ("kind", "rows", "ours, s", "HF, s", "ours / HF", "ours, MB", "HF, MB")
    table = Table(*columns, title=title)
    for case, (mine, hf) in took.items():
        kind, rows = case
        ratio = f"{mine / hf:.2f}"
        sizes = [f"{x:.0f}" for x in needed.get(case, ())]
        table.add_row(kind, str(rows), f"{mine:.3f}", f"{hf:.3f}", ratio, *sizes)
    Console(width=100).print(table)
    found = {f"{rows} {kind}": times for (kind, rows), times in took.items()}
    ratios = [
        Comparison(name, "HF PyTorch", hf / mine) for name, (mine, hf) in found.items()
    ]
    write(args.json, {"seconds": found, "megabytes": list(needed.values())}, ratios)


if __name__ == "__main__":
    main()
