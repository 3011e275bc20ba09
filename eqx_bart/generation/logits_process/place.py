"""Processors that depend on how long the row is, or on nothing but the scores."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from ...settings import as_id_tuple
from .base import count, forbid, LogitsProcessor, Scores, Tokens


class MinLengthLogitsProcessor(LogitsProcessor):
    """Keeps a row from ending before it has `min_length` tokens."""

    min_length: int = eqx.field(static=True)
    eos_token_id: tuple[int, ...] = eqx.field(static=True, converter=as_id_tuple)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return forbid(scores, self.eos_token_id, when=length < self.min_length)


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Makes `bos_token_id` the second token of each row."""

    bos_token_id: int = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _force(scores, (self.bos_token_id,), when=count(input_ids, length) == 1)


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Makes one of `eos_token_id` the last token of a row of `max_length`."""

    max_length: int = eqx.field(static=True)
    eos_token_id: tuple[int, ...] = eqx.field(static=True, converter=as_id_tuple)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _force(scores, self.eos_token_id, when=length == self.max_length - 1)


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replaces NaN by 0, and infinities by the largest and smallest finite scores."""

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return jnp.nan_to_num(scores)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Favours the end of a row after `start`, by a `factor` more with each token."""

    start: int = eqx.field(static=True)
    factor: float = eqx.field(static=True)
    eos_token_id: tuple[int, ...] = eqx.field(static=True, converter=as_id_tuple)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        columns = jnp.asarray(self.eos_token_id)
        eos = scores[:, columns]
        excess = jnp.maximum(length - self.start, 0)
        bonus = jnp.abs(eos) * (jnp.asarray(self.factor, eos.dtype) ** excess - 1)
        return scores.at[:, columns].add(jnp.where(jnp.isfinite(eos), bonus, 0))


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbids tokens."""

    suppress_tokens: tuple[int, ...] = eqx.field(static=True, converter=as_id_tuple)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return forbid(scores, self.suppress_tokens, when=True)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbids tokens at the place `begin_index`; in rows whose forced second token is at
    that place, at the next one."""

    begin_suppress_tokens: tuple[int, ...] = eqx.field(static=True, converter=as_id_tuple)
    begin_index: int = eqx.field(static=True)
    is_bos_forced: bool = eqx.field(static=True, default=False)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        begin_index = jnp.asarray(self.begin_index)
        if self.is_bos_forced:
            begin_index += count(input_ids, begin_index) == 1
        return forbid(scores, self.begin_suppress_tokens, when=length == begin_index)


def _force(
    scores: Scores,
    token_ids: tuple[int, ...],
    *,
    when: Bool[Array, "#rows #one"] | Bool[Array, ""],
) -> Scores:
    forced = jnp.full_like(scores[0], -jnp.inf).at[jnp.asarray(token_ids)].set(0)
    return jnp.where(when, forced, scores)
