"""The block-wise top-k, and what `generate` takes of tokens that are equally likely.

PyTorch leaves the order of equal entries open. Ours is that of `jax.lax.top_k` and of
`argmax`, which is HF's in greedy search: the first comes first.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracle import convert, random_config, random_model

import eqx_bart as eb
from eqx_bart.generation.top_k import top_k


def order(x, k):
    """The places of the `k` largest entries, of equal ones the first."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k]


# 64 entries are a block: none, none and a rest, one, more than `k`, fewer, with a rest.
LENGTHS = (1, 63, 64, 65, 128, 130, 640, 700)
SIZES = [(length, k) for length in LENGTHS for k in (1, 2, 5, 9) if k <= length]


@pytest.mark.parametrize(("length", "k"), SIZES)
def test_of_equal_entries_the_first(length, k):
    rng = np.random.default_rng([length, k])
    place = np.arange(length)
    rows = [
        np.zeros(length),
        np.full(length, -np.inf),
        rng.normal(size=length),
        *(rng.integers(0, n, length) for n in (2, 3, 10)),
        # Few are alive, as after processors.
        *(np.where(rng.random(length) < p, 0, -np.inf) for p in (0.003, 0.01, 0.1)),
        # The largest are at the borders of blocks, or in the rest after the last.
        np.isin(place % 64, [0, 63]),
        place >= length - k - 1,
        # All blocks have the same maximum, at one of their places.
        np.where(place % 64 == rng.integers(0, 64), 1, rng.random(length)),
    ]
    x = np.stack(rows).astype(np.float32)
    values, places = jax.jit(top_k, static_argnums=1)(x, k)
    assert np.array_equal(places, order(x, k))
    assert np.array_equal(values, np.take_along_axis(x, order(x, k), axis=-1))
    assert np.array_equal(places, jax.lax.top_k(jnp.asarray(x), k)[1])


#: What scores are divided by and rounded down, so that many are equal.
UNIT = 4


class Coarse(eb.LogitsProcessor):
    """Rounds the scores down."""

    def __call__(self, input_ids, scores, length):
        return scores // UNIT


@pytest.fixture(scope="module")
def models():
    """Two models, HF's and ours, with a vocabulary of several blocks."""
    config = random_config(np.random.default_rng(0))
    config.vocab_size, config.forced_eos_token_id = 500, None
    theirs = random_model("BartForConditionalGeneration", config, 0, torch.float32)
    return theirs, convert(theirs)


def test_greedy_search_takes_the_first_of_equals(models):
    theirs, ours = models
    ids = np.random.default_rng(0).integers(0, 500, (8, 6))
    settings = {"max_new_tokens": 6, "do_sample": False, "output_scores": True}
    expected = theirs.generate(
        torch.from_numpy(ids),
        logits_processor=[lambda _, scores: scores // UNIT],
        return_dict_in_generate=True,
        **settings,
    )
    scores = torch.stack(expected.scores).numpy()
    assert np.mean(np.sum(scores == scores.max(-1, keepdims=True), -1) > 1) > 0.5
    output = ours.generate(ids, logits_processors=[Coarse()], **settings)
    width = expected.sequences.shape[1]
    assert np.array_equal(np.asarray(output.sequences)[:, :width], expected.sequences)


def test_beams_are_the_first_of_equals(models):
    _, ours = models
    ids = np.random.default_rng(0).integers(0, 500, (4, 6))
    settings = {"num_beams": 5, "num_return_sequences": 5, "eos_token_id": None}
    settings |= {"max_new_tokens": 1, "output_scores": True}
    output = ours.generate(ids, logits_processors=[Coarse()], **settings)
    scores = np.asarray(output.scores)[0].reshape(4, 5, 500)[:, 0]
    assert np.all(np.sum(scores == scores.max(-1, keepdims=True), -1) > 1)
    answers = np.asarray(output.sequences)[:, 1].reshape(4, 5)
    assert np.array_equal(answers, order(scores, 5))


class Level(eb.LogitsProcessor):
    """Scores that are all the same."""

    def __call__(self, input_ids, scores, length):
        return jnp.zeros_like(scores)


def test_beams_that_are_equal_keep_their_order(models):
    _, ours = models
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 3}
    settings |= {"eos_token_id": None, "logits_processors": [Level()]}
    output = ours.generate(np.array([[5, 6]]), **settings)
    expected = [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert np.array_equal(output.sequences[:, 1:], expected)
