"""Processors that depend on the tokens of the row, or of the source."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from .base import LogitsProcessor, Scores, Tokens


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Adds a bias to the token that would complete a sequence."""

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        by_length: dict[int, dict[tuple[int, ...], float]] = {}
        for sequence, bias in self.sequence_bias:
            by_length.setdefault(len(sequence) - 1, {})[sequence] = bias
        result = scores
        for size, group in by_length.items():
            if size <= input_ids.shape[1]:
                sequences = jnp.asarray(list(group), jnp.int32)
                biases = jnp.asarray(list(group.values()), scores.dtype)
                suffix = _suffix(input_ids, length, size)[:, None]
                is_match = jnp.all(suffix == sequences[:, :-1], axis=-1) & (length >= size)
                biases = jnp.where(is_match, biases, 0)
                result = result.at[:, sequences[:, -1]].add(biases)
        return result


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Favours the tokens of the source, `encoder_input_ids`, where padding is -1."""

    penalty: float = eqx.field(static=True)
    encoder_input_ids: Integer[Array, "batch source"]

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _penalise(scores, _per_row(self.encoder_input_ids, scores), 1 / self.penalty)


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Disfavours the tokens that a row has already.

    Source: arXiv:1909.05858.
    """

    penalty: float = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_decided = jnp.arange(input_ids.shape[1]) < length
        return _penalise(scores, jnp.where(is_decided, input_ids, -1), self.penalty)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids n-grams that a row has already."""

    ngram_size: int = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_decided = jnp.arange(input_ids.shape[1]) < length
        history = jnp.where(is_decided, input_ids, -1)
        return _forbid_ngrams(scores, history, input_ids, length, self.ngram_size)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids n-grams of the source; see `EncoderRepetitionPenaltyLogitsProcessor`."""

    ngram_size: int = eqx.field(static=True)
    encoder_input_ids: Integer[Array, "batch source"]

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        history = _per_row(self.encoder_input_ids, scores)
        return _forbid_ngrams(scores, history, input_ids, length, self.ngram_size)


def _per_row(
    values: Integer[Array, "batch source"], scores: Scores
) -> Integer[Array, "rows source"]:
    """The values of each input, for each of its rows in `scores`."""
    return jnp.repeat(values, len(scores) // len(values), axis=0)


def _places(scores: Scores, token_ids: Integer[Array, "rows ids"]) -> tuple[Array, Array]:
    """The index of tokens in `scores`; for negative ones, outside of it."""
    token_ids = jnp.where(token_ids < 0, scores.shape[1], token_ids)
    return jnp.arange(len(scores))[:, None], token_ids


def _penalise(
    scores: Scores, token_ids: Integer[Array, "rows ids"], penalty: float
) -> Scores:
    """Divides the scores of the tokens by `penalty`; multiplies those that are negative."""
    places = _places(scores, token_ids)
    old = scores.at[places].get(mode="fill", fill_value=0)
    return scores.at[places].set(
        jnp.where(old < 0, old * penalty, old / penalty), mode="drop"
    )


def _suffix(
    input_ids: Tokens, length: Integer[Array, ""], size: int
) -> Integer[Array, "rows {size}"]:
    """The last `size` tokens, if there are that many."""
    return jax.lax.dynamic_slice_in_dim(input_ids, length - size, size, axis=1)


def _forbid_ngrams(
    scores: Scores,
    history: Integer[Array, "rows tokens"],
    input_ids: Tokens,
    length: Integer[Array, ""],
    size: int,
) -> Scores:
    """Forbids what would repeat an n-gram of `history`; -1 is in no n-gram."""
    num_windows = history.shape[1] - size + 1
    if num_windows < 1 or size > input_ids.shape[1]:
        return scores
    suffix = _suffix(input_ids, length, size - 1)
    is_repeated = jnp.broadcast_to(length >= size - 1, (len(history), num_windows))
    for i in range(size - 1):
        token = history[:, i : i + num_windows]
        is_repeated &= (token == suffix[:, i : i + 1]) & (token >= 0)
    forbidden = jnp.where(is_repeated, history[:, size - 1 :], -1)
    return scores.at[_places(scores, forbidden)].set(-jnp.inf, mode="drop")
