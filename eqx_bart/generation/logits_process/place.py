"""Processors that depend on how long the row is, or on nothing but the scores."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .base import (
    columns,
    count,
    forbid,
    id_array,
    Ids,
    Lengths,
    LogitsProcessor,
    Number,
    number,
    Scores,
    Tokens,
)


class MinLengthLogitsProcessor(LogitsProcessor):
    """Keeps a row from ending before it has `min_length` tokens."""

    min_length: Number = eqx.field(converter=number)
    eos_token_id: Ids = eqx.field(converter=id_array)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        return forbid(scores, self.eos_token_id, when=length < self.min_length)


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Makes `bos_token_id` the second token of each row."""

    bos_token_id: Number = eqx.field(converter=number)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        return _force(scores, self.bos_token_id[None], when=count(input_ids, length) == 1)


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Makes one of `eos_token_id` the last token of a row of `max_length`."""

    max_length: Number = eqx.field(converter=number)
    eos_token_id: Ids = eqx.field(converter=id_array)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        return _force(scores, self.eos_token_id, when=length == self.max_length - 1)


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replaces NaN by 0, and infinities by the largest and smallest finite scores."""

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        return jnp.nan_to_num(scores)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Favours the end of a row after `start`, by a `factor` more with each token."""

    start: Number = eqx.field(converter=number)
    factor: Number = eqx.field(converter=number)
    eos_token_id: Ids = eqx.field(converter=id_array)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        places = columns(self.eos_token_id, scores)
        eos = scores.at[:, places].get(mode="fill", fill_value=0)
        excess = jnp.maximum(length - self.start, 0).astype(eos.dtype)
        bonus = jnp.abs(eos) * (jnp.asarray(self.factor, eos.dtype) ** excess - 1)
        bonus = jnp.where(jnp.isfinite(eos), bonus, 0)
        return scores.at[:, places].add(bonus, mode="drop")


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbids tokens."""

    suppress_tokens: Ids = eqx.field(converter=id_array)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        return forbid(scores, self.suppress_tokens, when=True)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbids tokens at the place `begin_index`; in rows whose forced second token is at
    that place, at the next one."""

    begin_suppress_tokens: Ids = eqx.field(converter=id_array)
    begin_index: Number = eqx.field(converter=number)
    is_bos_forced: bool = eqx.field(static=True, default=False)

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        begin_index = jnp.asarray(self.begin_index)
        if self.is_bos_forced:
            is_next = count(input_ids, jnp.broadcast_to(begin_index, length.shape)) == 1
            begin_index = begin_index + is_next.astype(begin_index.dtype)
        return forbid(scores, self.begin_suppress_tokens, when=length == begin_index)


def _force(
    scores: Scores,
    token_ids: Ids,
    *,
    when: Bool[Array, "rows 1"],
) -> Scores:
    forced = jnp.full_like(scores[0], -jnp.inf)
    forced = forced.at[columns(token_ids, scores)].set(0, mode="drop")
    return jnp.where(when, forced, scores)
