"""How the cost of `generate` grows with samples and beams of one input, beside Hugging
Face's PyTorch BART.

pip install -e '.[test]'
python benchmarks/rows.py [--rounds 3] [--most 128]

The model is small, so that what grows shows. Both have the same random weights in float32,
and make NEW_TOKENS tokens a row. The temporaries are those of one compiled step.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

import eqx_bart as eb


NEW_TOKENS, SOURCE = 64, 64
LENGTH = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}


def build(directory: Path) -> tuple[Any, Any]:
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


def seconds(run: Callable[[], Any]) -> float:
    """How long a run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def generate(model: Any, ids: np.ndarray, asked: dict[str, Any]) -> None:
    """Runs ours to its end."""
    output = model.generate(ids, key=jax.random.key(0), **asked)
    output.sequences.block_until_ready()


def temporaries(model: Any, ids: np.ndarray, asked: dict[str, Any]) -> float:
    """Megabytes of temporaries of a step."""
    state = model.init_generation(ids, key=jax.random.key(0), **asked)
    step: Any = eqx.filter_jit(model.step)
    compiled = step.lower(state).compile()
    analysis = getattr(compiled, "compiled", compiled).memory_analysis()
    return analysis.temp_size_in_bytes / 2**20


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(2)
    title = f"{NEW_TOKENS} tokens, medians of {args.rounds}"
    columns = ("kind", "rows", "jax", "ours, s", "HF, s", "ours / HF", "MB a step")
    table = Table(*columns, title=title)
    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = build(Path(directory))
        ids = np.random.default_rng(0).integers(4, 2000, (1, SOURCE))
        tensor = torch.from_numpy(ids)
        for kind in ("samples", "beams"):
            for rows in (n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= args.most):
                asked = settings(kind, rows)
                run_ours = functools.partial(generate, ours, ids, asked)
                run_hf = functools.partial(theirs.generate, tensor, **asked)

                run_ours()
                times = [(seconds(run_ours), seconds(run_hf)) for _ in range(args.rounds)]
                mine, hf = (statistics.median(x) for x in zip(*times, strict=True))
                table.add_row(
                    kind,
                    str(rows),
                    jax.__version__,
                    f"{mine:.3f}",
                    f"{hf:.3f}",
                    f"{mine / hf:.2f}",
                    f"{temporaries(ours, ids, asked):.1f}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
