"""Processors that depend on the tokens of the row, or of the source."""

from collections.abc import Iterable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ...nn.checks import ArrayLike
from ...nn.matmul import power_of_two
from .base import (
    columns,
    Lengths,
    LogitsProcessor,
    Number,
    number,
    padded,
    Scores,
    Tokens,
)


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Adds a bias to the token that would complete a sequence.

    **Fields:**

    - `sequences`: the sequences, with -1 before each up to the length of the longest, and
        rows of -1 after them up to a power of two.
    - `biases`: what is added for each.
    - `is_forbidden`: where that is -inf.
    """

    sequences: Integer[ArrayLike, "sequences length"]
    biases: Float[ArrayLike, " sequences"]
    is_forbidden: Bool[ArrayLike, " sequences"]

    def __init__(self, sequence_bias: Iterable[tuple[Sequence[int], float]]):
        """Arranges pairs of token ids and a number; of equal sequences the last counts."""
        biases = {tuple(sequence): bias for sequence, bias in sequence_bias}
        length = power_of_two(max(map(len, biases)))
        padding = (-1,) * length
        rows = padded([(padding + ids)[-length:] for ids in biases], padding, np.int32)
        self.sequences = rows
        numbers = padded(biases.values(), 0.0, float)
        # `jax_debug_infs` refuses a state of generation that holds infinities.
        self.is_forbidden = np.isneginf(numbers)
        self.biases = np.where(self.is_forbidden, 0, numbers)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        sequences = jnp.asarray(self.sequences)
        biases = jnp.asarray(self.biases, scores.dtype)
        biases = jnp.where(jnp.asarray(self.is_forbidden), -jnp.inf, biases)
        before = sequences[None, :, :-1]
        suffix = _suffix(input_ids, length, before.shape[-1])[:, None]
        is_match = jnp.all((suffix == before) | (before < 0), axis=-1)
        return scores.at[:, columns(sequences[:, -1], scores)].add(
            jnp.where(is_match, biases[None], 0), mode="drop"
        )


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Favours the tokens of the source, `encoder_input_ids`, where padding is -1."""

    penalty: Number = eqx.field(converter=number)
    encoder_input_ids: Integer[ArrayLike, "batch source"]

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        source = _per_row(self.encoder_input_ids, scores)
        return _penalise(scores, source, 1 / jnp.asarray(self.penalty, scores.dtype))


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Disfavours the tokens that a row has already.

    Source: arXiv:1909.05858.
    """

    penalty: Number = eqx.field(converter=number)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        is_decided = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None] < length
        return _penalise(scores, jnp.where(is_decided, input_ids, -1), self.penalty)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids n-grams that a row has already."""

    ngram_size: int = eqx.field(static=True)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        is_decided = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None] < length
        history = jnp.where(is_decided, input_ids, -1)
        return _forbid_ngrams(scores, history, input_ids, length, self.ngram_size)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids n-grams of the source; see `EncoderRepetitionPenaltyLogitsProcessor`."""

    ngram_size: int = eqx.field(static=True)
    encoder_input_ids: Integer[ArrayLike, "batch source"]

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        history = _per_row(self.encoder_input_ids, scores)
        return _forbid_ngrams(scores, history, input_ids, length, self.ngram_size)


def _per_row(
    values: Integer[ArrayLike, "batch source"], scores: Scores
) -> Integer[Array, "rows source"]:
    """The values of each input, for each of its rows in `scores`."""
    return jnp.repeat(jnp.asarray(values), len(scores) // len(values), axis=0)


def _places(scores: Scores, token_ids: Integer[Array, "rows ids"]) -> tuple[Array, Array]:
    """The index of each row's tokens in `scores`."""
    return jnp.arange(len(scores), dtype=jnp.int32)[:, None], columns(token_ids, scores)


def _penalise(
    scores: Scores, token_ids: Integer[Array, "rows ids"], penalty: Number
) -> Scores:
    """Divides the scores of the tokens by `penalty`; multiplies those that are negative."""
    penalty = jnp.asarray(penalty, scores.dtype)
    places = _places(scores, token_ids)
    old = scores.at[places].get(mode="fill", fill_value=0)
    return scores.at[places].set(
        jnp.where(old < 0, old * penalty, old / penalty), mode="drop"
    )


def _suffix(input_ids: Tokens, length: Lengths, size: int) -> Integer[Array, "rows {size}"]:
    """The last `size` tokens of each row, after padding if there are not that many."""
    place = length - size + jnp.arange(size, dtype=jnp.int32)[None]
    tokens = jnp.take_along_axis(input_ids, jnp.maximum(place, 0), axis=1, mode="clip")
    return jnp.where(place < 0, -1, tokens)


def _forbid_ngrams(
    scores: Scores,
    history: Integer[Array, "rows tokens"],
    input_ids: Tokens,
    length: Lengths,
    size: int,
) -> Scores:
    """Forbids what would repeat an n-gram of `history`; -1 is in no n-gram."""
    num_windows = history.shape[1] - size + 1
    if num_windows < 1:
        return scores
    suffix = _suffix(input_ids, length, size - 1)
    is_repeated = jnp.ones((len(history), num_windows), bool)
    for i in range(size - 1):
        token = history[:, i : i + num_windows]
        is_repeated &= (token == suffix[:, i : i + 1]) & (token >= 0)
    forbidden = jnp.where(is_repeated, history[:, size - 1 :], -1)
    return scores.at[_places(scores, forbidden)].set(-jnp.inf, mode="drop")
