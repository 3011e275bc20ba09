"""Warpers, which only sampling uses, and the normalisation that comes last."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ...nn.matmul import power_of_two
from ..top_k import top_k
from .base import Lengths, LogitsProcessor, Number, number, Scores, Tokens


# `top_k` is 50 by default.
_SMALLEST_TOP_K = 64


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores by `temperature`."""

    temperature: Number = eqx.field(converter=number)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        return scores / _as_scores(self.temperature, scores)


class TopKLogitsWarper(LogitsProcessor):
    """Keeps the `top_k` likeliest tokens, and those as likely as the last of them.

    `at_most` is a bound of `top_k` that many values of it share.
    """

    top_k: Number
    filter_value: float = eqx.field(static=True)
    min_tokens_to_keep: int = eqx.field(static=True)
    at_most: int = eqx.field(static=True)

    def __init__(
        self, top_k: int, filter_value: float = -float("inf"), min_tokens_to_keep: int = 1
    ):
        """Keeps `top_k` tokens, 1 or more, or `min_tokens_to_keep` if these are more. The
        scores of the others become `filter_value`."""
        self.top_k = number(top_k)
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep
        self.at_most = power_of_two(max(top_k, _SMALLEST_TOP_K))

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        most = min(self.at_most, scores.shape[1])
        likeliest, _ = top_k(scores, most)
        last = jnp.minimum(jnp.asarray(self.top_k, jnp.int32), most) - 1
        bound = jax.lax.dynamic_slice_in_dim(likeliest, last, 1, axis=1)
        return _keep(
            scores, scores >= bound, scores, self.min_tokens_to_keep, self.filter_value
        )


class TopPLogitsWarper(LogitsProcessor):
    """Keeps the likeliest tokens that have the probability `top_p` together, and those as
    likely as the last of them.

    Source: arXiv:1904.09751.
    """

    top_p: Number = eqx.field(converter=number)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        top_p = _as_scores(self.top_p, scores)
        is_kept = _are_first(-scores, jax.nn.softmax(scores), top_p)
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep, self.filter_value)


class MinPLogitsWarper(LogitsProcessor):
    """Keeps the tokens with at least `min_p` times the probability of the likeliest one.

    Source: arXiv:2407.01082.
    """

    min_p: Number = eqx.field(converter=number)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        probabilities = jax.nn.softmax(scores)
        top = jnp.max(probabilities, axis=-1, keepdims=True)
        is_kept = probabilities >= _as_scores(self.min_p, scores) * top
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep, self.filter_value)


class TypicalLogitsWarper(LogitsProcessor):
    """Keeps the tokens whose information is closest to the entropy, and that have the
    probability `mass` together.

    Source: arXiv:2202.00666.
    """

    mass: Number = eqx.field(converter=number)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        log_probs = jax.nn.log_softmax(scores)
        surprise = jnp.abs(-log_probs - _entropy(log_probs))
        mass = _as_scores(self.mass, scores)
        is_kept = _are_first(surprise, jnp.exp(log_probs), mass)
        return _keep(scores, is_kept, -surprise, self.min_tokens_to_keep, self.filter_value)


class EpsilonLogitsWarper(LogitsProcessor):
    """Keeps the tokens with a probability of `epsilon` or more.

    Source: arXiv:2210.15191.
    """

    epsilon: Number = eqx.field(converter=number)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        is_kept = jax.nn.softmax(scores) >= _as_scores(self.epsilon, scores)
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep, self.filter_value)


class EtaLogitsWarper(LogitsProcessor):
    """`EpsilonLogitsWarper`, with a smaller threshold where the entropy is high.

    Source: arXiv:2210.15191.
    """

    epsilon: Number = eqx.field(converter=number)
    filter_value: float = eqx.field(static=True, default=-float("inf"))
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        log_probs = jax.nn.log_softmax(scores)
        epsilon = _as_scores(self.epsilon, scores)
        eta = jnp.sqrt(epsilon) * jnp.exp(-_entropy(log_probs))
        is_kept = jnp.exp(log_probs) >= jnp.minimum(epsilon, eta)
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep, self.filter_value)


class LogitNormalization(LogitsProcessor):
    """Makes the scores log-probabilities."""

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        return jax.nn.log_softmax(scores)


def _as_scores(value: Number, scores: Scores) -> Float[Array, ""]:
    return jnp.asarray(value, scores.dtype)


def _keep(
    scores: Scores,
    is_kept: Bool[Array, "rows vocab"],
    merit: Float[Array, "rows vocab"],
    min_tokens_to_keep: int,
    filter_value: float,
) -> Scores:
    """The scores of what is kept, which includes the tokens with most `merit`; the others
    get the `filter_value`."""
    is_kept = is_kept | _is_among_top(merit, min_tokens_to_keep)
    return jnp.where(is_kept, scores, filter_value)


def _is_among_top(scores: Scores, k: int) -> Bool[Array, "rows vocab"]:
    if k == 1:
        return scores == jnp.max(scores, axis=-1, keepdims=True)
    return scores >= top_k(scores, min(k, scores.shape[1]))[0][:, -1:]


def _entropy(log_probs: Scores) -> Float[Array, "rows 1"]:
    terms = jnp.where(jnp.isneginf(log_probs), 0, jnp.exp(log_probs) * log_probs)
    return -jnp.sum(terms, axis=-1, keepdims=True)


def _are_first(
    order: Float[Array, "rows vocab"], probabilities: Scores, mass: Float[Array, ""]
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
