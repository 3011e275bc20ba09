"""Tokens per second over many inputs of mixed lengths: `generate_many`, `generate` in fixed
batches in order, and CTranslate2, which sorts its batches by length.

pip install -e '.[test]' ctranslate2
python benchmarks/many.py [--inputs 500] [--dtype int8] [--beams 1] [--batch-size 16]

The weights are random. The lengths are those of CNN/DailyMail: articles of 781 words on
average (arXiv:1704.04368, section 4), times 1.2 for BPE, log-normal and cut at BART's 1,024
positions; answers of 56 to 142 tokens, as bart-large-cnn's settings have it. A bias of the
end token is set so that one of 16 steps ends a row. All ways take turns, in each round; a
round before them compiles, and does not count. `--ct2-batch-sizes` are CTranslate2's, of
which the best counts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from generate import (
    BOS,
    convert,
    EOS,
    FLOATS,
    IDS,
    load,
    of_peers,
    PAUSE,
    require,
    save_random_model,
    UNK,
    VOCABULARY,
)
from report import Comparison, write

import eqx_bart as eb


FEWEST, MOST = 56, 142
HAZARD = 1 / 16

#: Answers sources: the new tokens of each.
Answer = Callable[[list[np.ndarray]], list[list[int]]]


def sources(count: int) -> list[np.ndarray]:
    """Random ids of words, between `<s>` and `</s>`."""
    rng = np.random.default_rng(0)
    sigma = 0.45
    mean = np.log(781 * 1.2) - sigma**2 / 2
    lengths = np.clip(rng.lognormal(mean, sigma, count).astype(int), 64, 1024)
    rows = [rng.integers(UNK + 1, len(VOCABULARY), n) for n in lengths]
    for row in rows:
        row[0], row[-1] = BOS, EOS
    return rows


def set_ends(checkpoint: Path) -> None:
    """Sets the bias of the end token so that one of 16 steps ends a row."""
    model = eb.BartForConditionalGeneration.from_pretrained(checkpoint)
    ids = np.stack([row[:64] for row in sources(16)])
    generated = model.generate(
        ids, min_new_tokens=MOST, max_new_tokens=MOST, output_logits=True
    )
    logits = np.asarray(generated.logits)[FEWEST:]
    margins = logits.max(axis=-1) - logits[..., EOS]
    file = checkpoint / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    bias = np.zeros((1, len(VOCABULARY)), np.float32)
    bias[0, EOS] = np.quantile(margins, HAZARD)
    tensors["final_logits_bias"] = bias
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})


def checkpoints(directory: Path) -> tuple[Path, Path]:
    """The checkpoint, and CTranslate2's, made unless they are there."""
    checkpoint, converted = directory / "hf", directory / "ct2"
    if not converted.is_dir():
        save_random_model("base", checkpoint)
        set_ends(checkpoint)
        convert(checkpoint, converted)
    return checkpoint, converted


def ours(checkpoint: Path, args: argparse.Namespace) -> dict[str, Answer]:
    """Both ways of this library."""
    model = load(checkpoint, args.dtype)
    settings: dict[str, Any] = {
        "min_new_tokens": FEWEST,
        "max_new_tokens": MOST,
        "num_beams": args.beams,
    }

    def new_tokens(output: Any) -> list[list[int]]:
        rows = zip(np.asarray(output.sequences), np.asarray(output.lengths), strict=True)
        return [row[1:length].tolist() for row, length in rows]

    def many(rows: list[np.ndarray]) -> list[list[int]]:
        found = model.generate_many(rows, batch_size=args.batch_size, **settings)
        return [new_tokens(output)[0] for _, output in found]

    def fixed(rows: list[np.ndarray]) -> list[list[int]]:
        found = list[list[int]]()
        for first in range(0, len(rows), args.batch_size):
            batch = rows[first : first + args.batch_size]
            ids = np.zeros((len(batch), max(map(len, batch))), int)
            mask = np.arange(ids.shape[1]) < np.asarray([[len(row)] for row in batch])
            ids[mask] = np.concatenate(batch)
            found += new_tokens(model.generate(ids, mask, **settings))
        return found

    return {"generate_many": many, "fixed batches": fixed}


def ct2(directory: Path, args: argparse.Namespace) -> dict[str, Answer]:
    """CTranslate2, with each batch size."""
    translator = require("ctranslate2", "ctranslate2").Translator(
        str(directory), compute_type=of_peers(args.dtype), intra_threads=args.threads
    )

    def answer(batch_size: int) -> Answer:
        def of_rows(rows: list[np.ndarray]) -> list[list[int]]:
            results = translator.translate_batch(
                [[VOCABULARY[i] for i in row] for row in rows],
                beam_size=args.beams,
                max_batch_size=batch_size,
                min_decoding_length=FEWEST,
                max_decoding_length=MOST,
                return_end_token=True,
            )
            return [[IDS[token] for token in r.hypotheses[0]] for r in results]

        return of_rows

    return {f"CTranslate2, {size}": answer(size) for size in args.ct2_batch_sizes}


def rate(answer: Answer, rows: list[np.ndarray]) -> tuple[float, list[list[int]]]:
    """New tokens per second, and what they are."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    found = answer(rows)
    return sum(map(len, found)) / (time.perf_counter() - start), found


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--ct2-batch-sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", *FLOATS], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, converted = checkpoints(args.cache or Path(temporary))
        ways = ours(checkpoint, args) | ct2(converted, args)
        rows = sources(args.inputs)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        right = None
        for name, answer in ways.items():
            first, found = rate(answer, rows)
            right = right or found
            same = sum(x == y for x, y in zip(found, right, strict=True))
            print(f"{name}: {first:.1f} tokens/s at first; ", end="")
            print(f"{same} of {len(rows)} answers alike", flush=True)
        for _ in range(args.rounds):
            for name, answer in ways.items():
                rates[name].append(rate(answer, rows)[0])
                print(f"{name}: {rates[name][-1]:.1f} tokens/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ours_is, *others = medians
    work = f"{args.inputs} inputs, {args.beams} beams, {args.dtype}"
    found = [Comparison(work, name, medians[ours_is] / medians[name]) for name in others]
    for one in found:
        print(f"{one.ratio:.2f} times {one.against}")
    write(args.json, rates, found)


if __name__ == "__main__":
    main()
