"""What drafts from the source gain: `generate` with `prompt_lookup_num_tokens`.

pip install -e '.[test]'
python benchmarks/drafts.py [--size base] [--rows 1 8] [--dtype float32] [--rounds 3]

The weights are random, so answers are replayed: a logits processor forces them, at the
price of a pass over the vocabulary. A share of the tokens of an answer is that of the
source at the same place, and the others are random: 0 is an answer that copies nothing, and
at 0.9 a run of copied tokens is 9 long on average. Or an answer is what an extractive
summariser writes: whole sentences of the source, of 10 to 40 tokens, in any order. All ways
take turns. The tokens are checked to be the same.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from report import Comparison, write
from sizes import SIZES

import eqx_bart as eb


SOURCE, NEW_TOKENS, VOCABULARY = 256, 128, 50265
COPIED = (0.0, 0.5, 0.9, "sentences")
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
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = eb.BartConfig(vocab_size=VOCABULARY, **SIZES[options.size])
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    model = jax.tree.map(
        lambda x: x.astype(options.dtype) if eqx.is_inexact_array(x) else x, model
    )
    found = []
    for rows in options.rows:
        for copied in COPIED:
            seconds = measure(model, rows, copied, options.rounds)
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


def answers_of(source: np.ndarray, copied: float | str) -> np.ndarray:
    """Answers that copy whole sentences of each source, or a share of its tokens."""
    rng = np.random.default_rng(1)
    if isinstance(copied, str):
        return np.stack([sentences(row, rng) for row in source])
    is_copied = rng.random((len(source), NEW_TOKENS)) < copied
    others = rng.integers(4, VOCABULARY, is_copied.shape, dtype=np.int32)
    return np.where(is_copied, source[:, :NEW_TOKENS], others)


def sentences(row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sentences of a source in another order, as far as an answer goes."""
    ends = np.cumsum(rng.integers(10, 41, len(row)))
    parts = np.split(row, ends[ends < len(row)])
    rng.shuffle(parts)
    return np.concatenate(parts)[:NEW_TOKENS]


def measure(model: Any, rows: int, copied: float | str, rounds: int) -> dict[str, float]:
    """The median seconds of each number of drafts."""
    rng = np.random.default_rng(0)
    source = rng.integers(4, VOCABULARY, (rows, SOURCE), dtype=np.int32)
    answers = answers_of(source, copied)
    processors = [Replay(jnp.asarray(answers))]

    def run(num_drafts: int | None) -> float:
        begin = time.perf_counter()
        output = model.generate(
            source,
            logits_processors=processors,
            prompt_lookup_num_tokens=num_drafts,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            forced_eos_token_id=None,
        )
        tokens = np.asarray(output.sequences)[:, 1:]
        seconds = time.perf_counter() - begin
        assert np.array_equal(tokens, answers)
        return seconds

    for num_drafts in NUM_DRAFTS:
        run(num_drafts)
    times = [[run(num_drafts) for num_drafts in NUM_DRAFTS] for _ in range(rounds)]
    medians = map(statistics.median, zip(*times, strict=True))
    return dict(zip(map(str, NUM_DRAFTS), medians, strict=True))


if __name__ == "__main__":
    main()
