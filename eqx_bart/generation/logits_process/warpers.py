"""Warpers, which only sampling uses, and the normalisation that comes last."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ..top_k import top_k
from .base import LogitsProcessor, Scores, Tokens


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores by `temperature`."""

    temperature: float = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return scores / self.temperature


class TopKLogitsWarper(LogitsProcessor):
    """Keeps the `top_k` likeliest tokens, and those as likely as the last of them."""

    top_k: int = eqx.field(static=True)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _keep(self, scores, _is_among_top(scores, self.top_k), scores)


class TopPLogitsWarper(LogitsProcessor):
    """Keeps the likeliest tokens that have the probability `top_p` together, and those as
    likely as the last of them.

    Source: arXiv:1904.09751.
    """

    top_p: float = eqx.field(static=True)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_kept = _are_first(-scores, jax.nn.softmax(scores), self.top_p)
        return _keep(self, scores, is_kept, scores)


class MinPLogitsWarper(LogitsProcessor):
    """Keeps the tokens with at least `min_p` times the probability of the likeliest one.

    Source: arXiv:2407.01082.
    """

    min_p: float = eqx.field(static=True)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        probabilities = jax.nn.softmax(scores)
        top = jnp.max(probabilities, axis=-1, keepdims=True)
        is_kept = probabilities >= self.min_p * top
        return _keep(self, scores, is_kept, scores)


class TypicalLogitsWarper(LogitsProcessor):
    """Keeps the tokens whose information is closest to the entropy, and that have the
    probability `mass` together.

    Source: arXiv:2202.00666.
    """

    mass: float = eqx.field(static=True)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        log_probs = jax.nn.log_softmax(scores)
        surprise = jnp.abs(-log_probs - _entropy(log_probs))
        is_kept = _are_first(surprise, jnp.exp(log_probs), self.mass)
        return _keep(self, scores, is_kept, -surprise)


class EpsilonLogitsWarper(LogitsProcessor):
    """Keeps the tokens with a probability of `epsilon` or more.

    Source: arXiv:2210.15191.
    """

    epsilon: float = eqx.field(static=True)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_kept = jax.nn.softmax(scores) >= self.epsilon
        return _keep(self, scores, is_kept, scores)


class EtaLogitsWarper(LogitsProcessor):
    """`EpsilonLogitsWarper`, with a smaller threshold where the entropy is high.

    Source: arXiv:2210.15191.
    """

    epsilon: float = eqx.field(static=True)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        log_probs = jax.nn.log_softmax(scores)
        eta = self.epsilon**0.5 * jnp.exp(-_entropy(log_probs))
        is_kept = jnp.exp(log_probs) >= jnp.minimum(self.epsilon, eta)
        return _keep(self, scores, is_kept, scores)


class LogitNormalization(LogitsProcessor):
    """Makes the scores log-probabilities."""

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return jax.nn.log_softmax(scores)


@runtime_checkable
class _Filter(Protocol):
    """What warpers that keep some tokens have in common, under HF's names."""

    @property
    def filter_value(self) -> float: ...

    @property
    def min_tokens_to_keep(self) -> int: ...


def _keep(
    warper: _Filter,
    scores: Scores,
    is_kept: Bool[Array, "rows vocab"],
    merit: Float[Array, "rows vocab"],
) -> Scores:
    """The scores of what is kept, which includes the tokens with most `merit`; the others
    get the `filter_value`."""
    is_kept = is_kept | _is_among_top(merit, warper.min_tokens_to_keep)
    return jnp.where(is_kept, scores, warper.filter_value)


def _is_among_top(scores: Scores, k: int) -> Bool[Array, "rows vocab"]:
    if k == 1:
        return scores == jnp.max(scores, axis=-1, keepdims=True)
    return scores >= top_k(scores, min(k, scores.shape[1]))[0][:, -1:]


def _entropy(log_probs: Scores) -> Float[Array, "rows 1"]:
    terms = jnp.where(jnp.isneginf(log_probs), 0, jnp.exp(log_probs) * log_probs)
    return -jnp.sum(terms, axis=-1, keepdims=True)


def _are_first(
    order: Float[Array, "rows vocab"], probabilities: Scores, mass: float
) -> Bool[Array, "rows vocab"]:
    """Whether all tokens before a token, in ascending `order`, have less than `mass`
    together.

    The last such value of `order` is found by bisection, with one pass for each bit. That
    is far faster than sorting a vocabulary.
    """
    keys = _ordered_bits(order)
    num_bits = jnp.iinfo(keys.dtype).bits

    def before(bound: Integer[Array, "rows 1"]) -> Float[Array, "rows 1"]:
        return jnp.sum(jnp.where(keys < bound, probabilities, 0), axis=-1, keepdims=True)

    def set_bit(i: Integer[Array, ""], bound: Integer[Array, "rows 1"]) -> Array:
        trial = bound | (jnp.ones((), keys.dtype) << (num_bits - 1 - i).astype(keys.dtype))
        return jnp.where(before(trial) < mass, trial, bound)

    bound = jax.lax.fori_loop(0, num_bits, set_bit, jnp.zeros_like(keys[:, :1]))
    return keys <= bound


def _ordered_bits(x: Float[Array, "*shape"]) -> Integer[Array, "*shape"]:
    """Unsigned integers that sort as the floats `x` do."""
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, unsigned)
    sign = jnp.ones((), unsigned) << (8 * x.dtype.itemsize - 1)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)
