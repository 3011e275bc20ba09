"""What drafts from the source gain: `generate` with `prompt_lookup_num_tokens`.

pip install -e '.[test]'
python benchmarks/drafts.py [--size base] [--rows 1 8] [--dtype float32] [--rounds 3]

The weights are random, so answers are replayed: a logits processor forces them, at the
price of a pass over the vocabulary. An answer copies nothing; or it is what a denoiser,
which `denoiser.py` trains, has answered to a text of which 5% or 15% of the words are
masked; or it is as an extractive summariser writes, whole sentences of the source, of 10 to
40 tokens, in any order. All ways take turns. The tokens are checked to be the same. One row
is measured with four sources, one after the other. The denoiser is trained in minutes, or
--cache DIRECTORY has its answers.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from denoiser import denoised, RATIOS
from report import Comparison, write
from sizes import SIZES

import eqx_bart as eb


SOURCE, NEW_TOKENS, VOCABULARY = 256, 128, 50265
#: How many sources a time is of, at least.
LEAST_SOURCES = 4
NUM_DRAFTS = (None, 4, 8, 16)


class Replay(eb.LogitsProcessor):
    """Forces answers, `[batch, steps]`, after a prompt of one token."""

    answers: jax.Array

    def __call__(
        self, input_ids: jax.Array, scores: jax.Array, length: jax.Array
    ) -> jax.Array:
        answers = jnp.repeat(self.answers, len(scores) // len(self.answers), axis=0)
        token = jnp.take_along_axis(answers, length - 1, axis=1, mode="clip")
        return jnp.where(jnp.arange(scores.shape[1])[None] == token, 0.0, -jnp.inf)


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="where to keep what a denoiser answers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = eb.BartConfig(vocab_size=VOCABULARY, **SIZES[options.size])
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    model = jax.tree.map(
        lambda x: x.astype(options.dtype) if eqx.is_inexact_array(x) else x, model
    )
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        trained = denoised(options.cache or Path(temporary))
    for rows in options.rows:
        number = rows * math.ceil(LEAST_SOURCES / rows)
        for copied, source, answers in works(number, trained):
            seconds = measure(model, source, answers, rows, options.rounds)
            found.append({"rows": rows, "copied": copied, "seconds": seconds})
            plain = seconds["None"]
            gains = {k: f"{plain / s:.2f}" for k, s in seconds.items() if k != "None"}
            print(f"{rows} rows, {copied} copied: {plain:.3f} s; {gains}", flush=True)
    write(
        options.json,
        found,
        [
            Comparison(
                f"{one['rows']} rows, {one['copied']} copied, {number} drafts",
                "no drafts",
                one["seconds"]["None"] / seconds,
            )
            for one in found
            for number, seconds in one["seconds"].items()
            if number != "None"
        ],
    )


def works(
    number: int, trained: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each kind of answer, with so many sources and their answers."""
    rng = np.random.default_rng(1)
    source, others = rng.integers(4, VOCABULARY, (2, number, SOURCE), dtype=np.int32)
    yield "nothing", source, others[:, :NEW_TOKENS]
    for ratio in RATIOS:
        texts, written = trained[f"source {ratio}"], trained[f"answer {ratio}"]
        taken = np.arange(number) % len(texts)
        yield f"all but {ratio:.0%}", texts[taken], written[taken]
    yield "sentences", source, np.stack([sentences(row, rng) for row in source])


def sentences(row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sentences of a source in another order, as far as an answer goes."""
    ends = np.cumsum(rng.integers(10, 41, len(row)))
    parts = np.split(row, ends[ends < len(row)])
    rng.shuffle(parts)
    return np.concatenate(parts)[:NEW_TOKENS]


def measure(
    model: Any, source: np.ndarray, answers: np.ndarray, rows: int, rounds: int
) -> dict[str, float]:
    """The median seconds of each number of drafts, so many rows at a time."""
    places = range(0, len(source), rows)
    new_tokens = answers.shape[1]

    def run(num_drafts: int | None) -> float:
        begin = time.perf_counter()
        outputs = [
            model.generate(
                source[i : i + rows],
                logits_processors=[Replay(jnp.asarray(answers[i : i + rows]))],
                prompt_lookup_num_tokens=num_drafts,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                forced_eos_token_id=None,
            )
            for i in places
        ]
        tokens = np.concatenate([output.sequences for output in outputs])[:, 1:]
        seconds = time.perf_counter() - begin
        assert np.array_equal(tokens, answers)
        return seconds / len(places)

    for num_drafts in NUM_DRAFTS:
        run(num_drafts)
    times = [[run(num_drafts) for num_drafts in NUM_DRAFTS] for _ in range(rounds)]
    medians = map(statistics.median, zip(*times, strict=True))
    return dict(zip(map(str, NUM_DRAFTS), medians, strict=True))


if __name__ == "__main__":
    main()
