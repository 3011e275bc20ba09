"""Each processor by itself against HF's: random numbers, tokens and lengths, padding, and
scores of which some are forbidden already."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers.generation.logits_process as hf

from eqx_bart.generation import logits_process as ours


VOCAB, ROWS, LENGTH = 9, 4, 8


def ids(rng, size):
    return rng.choice(VOCAB, size, replace=False).tolist()


def number(rng, low, high):
    return float(np.float32(rng.uniform(low, high)))


def biases(rng):
    rows = [tuple(map(int, rng.integers(0, 3, rng.integers(1, 5)))) for _ in range(12)]
    return {row: number(rng, -3, 3) for row in rows}


def by_arguments(name, *draws):
    """HF's and ours, of the same arguments."""

    def make(rng, source, length):
        arguments = [draw(rng) for draw in draws]
        return getattr(ours, name)(*arguments), lambda _: getattr(hf, name)(*arguments)

    return make


def warper(name, low, high, as_=float):
    def make(rng, source, length):
        arguments = (
            as_(rng.uniform(low, high)),
            number(rng, -9, -5),
            int(rng.integers(1, 4)),
        )
        return getattr(ours, name)(*arguments), lambda _: getattr(hf, name)(*arguments)

    return make


def of_source(name, *draws):
    """Those that read the source, whose row HF's is given without its padding."""

    def make(rng, source, length):
        arguments = [draw(rng) for draw in draws]

        def theirs(row):
            own = source[row // 2]
            return getattr(hf, name)(*arguments, torch.from_numpy(own[own >= 0])[None])

        return getattr(ours, name)(*arguments, jnp.asarray(source)), theirs

    return make


def sequence_bias(rng, source, length):
    drawn = biases(rng)
    return (
        ours.SequenceBiasLogitsProcessor(drawn.items()),
        lambda _: hf.SequenceBiasLogitsProcessor(
            [[list(row), bias] for row, bias in drawn.items()]
        ),
    )


def decay(rng, source, length):
    start, factor, eos = int(rng.integers(-2, 3)), number(rng, 0.5, 2), ids(rng, 2)
    return (
        ours.ExponentialDecayLengthPenalty(length + start, factor, eos),
        lambda _: hf.ExponentialDecayLengthPenalty((start, factor), eos, length),
    )


def at_length(name, *draws):
    """Those that act at one length, about the present one."""

    def make(rng, source, length):
        arguments = [draw(rng, length + int(rng.integers(-1, 3))) for draw in draws]
        return getattr(ours, name)(*arguments), lambda _: getattr(hf, name)(*arguments)

    return make


PROCESSORS = {
    "SequenceBias": sequence_bias,
    "EncoderRepetitionPenalty": of_source(
        "EncoderRepetitionPenaltyLogitsProcessor", lambda rng: number(rng, 0.5, 2)
    ),
    "RepetitionPenalty": by_arguments(
        "RepetitionPenaltyLogitsProcessor", lambda rng: number(rng, 0.5, 2)
    ),
    "NoRepeatNGram": by_arguments(
        "NoRepeatNGramLogitsProcessor", lambda rng: int(rng.integers(1, 5))
    ),
    "EncoderNoRepeatNGram": of_source(
        "EncoderNoRepeatNGramLogitsProcessor", lambda rng: int(rng.integers(1, 4))
    ),
    "SuppressTokens": by_arguments(
        "SuppressTokensLogitsProcessor", lambda rng: ids(rng, 3)
    ),
    "InfNanRemove": by_arguments("InfNanRemoveLogitsProcessor"),
    "LogitNormalization": by_arguments("LogitNormalization"),
    "Temperature": by_arguments("TemperatureLogitsWarper", lambda rng: number(rng, 0.3, 3)),
    "TopK": warper("TopKLogitsWarper", 1, VOCAB + 3, int),
    "TopP": warper("TopPLogitsWarper", 0, 1),
    "MinP": warper("MinPLogitsWarper", 0, 1),
    "Typical": warper("TypicalLogitsWarper", 0.01, 0.99),
    "Epsilon": warper("EpsilonLogitsWarper", 0.001, 0.9),
    "Eta": warper("EtaLogitsWarper", 0.001, 0.9),
    "MinLength": at_length(
        "MinLengthLogitsProcessor", lambda _, at: at, lambda rng, _: ids(rng, 2)
    ),
    "ForcedBOS": by_arguments("ForcedBOSTokenLogitsProcessor", lambda rng: ids(rng, 1)[0]),
    "ForcedEOS": at_length(
        "ForcedEOSTokenLogitsProcessor", lambda _, at: at, lambda rng, _: ids(rng, 2)
    ),
    "SuppressTokensAtBegin": at_length(
        "SuppressTokensAtBeginLogitsProcessor",
        lambda rng, _: ids(rng, 2),
        lambda _, at: at,
    ),
    "ExponentialDecay": decay,
}
PADDED = [  # those that read the row, which HF's are given without its padding
    "SequenceBias",
    "EncoderRepetitionPenalty",
    "RepetitionPenalty",
    "NoRepeatNGram",
    "EncoderNoRepeatNGram",
    "ForcedBOS",
]


@pytest.mark.parametrize("name", PROCESSORS)
def test_scores_are_those_of_hf(name):
    changed = 0
    for seed in range(12):
        rng = np.random.default_rng([seed, len(name)])
        length = int(rng.integers(1, LENGTH))
        tokens = rng.integers(0, 3, (ROWS, LENGTH))  # three of nine, so that they repeat
        paddings = rng.integers(0, length, ROWS) if name in PADDED else [0] * ROWS
        for row, padding in zip(tokens, paddings, strict=True):
            row[:padding] = -1
        source = rng.integers(0, 3, (ROWS // 2, 5))
        source[0, :2] = source[1, 3:] = -1
        scores = rng.normal(size=(ROWS, VOCAB)).astype(np.float32) * 2
        if name != "ExponentialDecay":  # HF's makes NaN of infinity
            scores[rng.random(scores.shape) < 0.2] = -np.inf
        if name == "InfNanRemove":
            scores[rng.random(scores.shape) < 0.2] = np.inf
            scores[rng.random(scores.shape) < 0.2] = np.nan
        scores[:, :2] = rng.normal(size=(ROWS, 2))  # what is left to choose from
        processor, theirs = PROCESSORS[name](rng, source, length)
        found = np.asarray(
            processor(
                jnp.asarray(tokens),
                jnp.asarray(scores),
                jnp.full((len(tokens), 1), length, jnp.int32),
            )
        )
        for row, padding in enumerate(paddings):
            expected = theirs(row)(
                torch.from_numpy(tokens[row : row + 1, padding:length]),
                torch.from_numpy(scores[row : row + 1]),
            )[0].numpy()
            assert np.allclose(found[row], expected, rtol=1e-5, atol=1e-6), (seed, row)
            changed += not np.array_equal(expected, scores[row], equal_nan=True)
    assert changed >= ROWS


def test_an_ngram_as_long_as_the_source():
    for size, source in ((2, [[4, 5]]), (3, [[4, 4, 5]]), (1, [[5]])):
        tokens, scores = np.array([[3, 4, 4, 0]]), np.zeros((1, VOCAB), np.float32)
        theirs = hf.EncoderNoRepeatNGramLogitsProcessor(size, torch.tensor(source))
        expected = theirs(torch.from_numpy(tokens[:, :3]), torch.from_numpy(scores)).numpy()
        processor = ours.EncoderNoRepeatNGramLogitsProcessor(size, jnp.asarray(source))
        found = processor(
            jnp.asarray(tokens),
            jnp.asarray(scores),
            jnp.full((len(tokens), 1), 3, jnp.int32),
        )
        assert np.array_equal(found, expected)
        assert np.flatnonzero(np.isneginf(expected)).tolist() == [5]
