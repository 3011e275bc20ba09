"""Greedy search: each token is the likeliest, given those before it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ..cache import BartCache
from .config import Settings


class GenerationOutput(eqx.Module):
    """What `generate` returns.

    **Fields:**

    - `sequences`: the token ids, the start token first; behind the end of a row there is
        padding up to `max_length`.
    """

    sequences: Integer[Array, "batch max_length"]


#: Decodes the next tokens: from them and a cache to their logits and the next cache.
Step = Callable[
    [Integer[Array, "batch new"], BartCache],
    tuple[Float[Array, "batch new vocab"], BartCache],
]


class _State(eqx.Module):
    """What the loop carries: the rows so far, which have ended, and the cache."""

    sequences: Integer[Array, "batch max_length"]
    is_finished: Bool[Array, " batch"]
    length: Integer[Array, ""]
    cache: BartCache


def greedy_search(step: Step, cache: BartCache, settings: Settings) -> GenerationOutput:
    """Runs `step` from an empty `cache` until all rows have ended.

    The loop is a `jax.lax.while_loop`. Source: HF's `GenerationMixin._sample` without
    sampling.
    """
    max_length, pad_token_id = settings.max_length, settings.pad_token_id
    eos_token_ids = jnp.asarray(settings.eos_token_ids, jnp.int32)

    def is_unfinished(state: _State) -> Bool[Array, ""]:
        return (state.length < max_length) & ~jnp.all(state.is_finished)

    def next_token(state: _State) -> _State:
        last = jax.lax.dynamic_slice_in_dim(state.sequences, state.length - 1, 1, axis=1)
        logits, cache = step(last, state.cache)
        token = jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)
        token = _force(token, state.length, settings)
        token = jnp.where(state.is_finished, pad_token_id, token)
        return _State(
            sequences=state.sequences.at[:, state.length].set(token),
            is_finished=state.is_finished | jnp.isin(token, eos_token_ids),
            length=state.length + 1,
            cache=cache,
        )

    sequences = jnp.full((cache.batch_size, max_length), pad_token_id, jnp.int32)
    start = _State(
        sequences=sequences.at[:, 0].set(settings.decoder_start_token_id),
        is_finished=jnp.zeros(cache.batch_size, bool),
        length=jnp.ones((), jnp.int32),
        cache=cache,
    )
    return GenerationOutput(jax.lax.while_loop(is_unfinished, next_token, start).sequences)


def _force(
    token: Integer[Array, " batch"], length: Integer[Array, ""], settings: Settings
) -> Integer[Array, " batch"]:
    """`token`, or what `forced_bos_token_id` and `forced_eos_token_id` put in its place."""
    if settings.forced_bos_token_id is not None:
        token = jnp.where(length == 1, settings.forced_bos_token_id, token)
    if settings.forced_eos_token_ids:
        is_last = length == settings.max_length - 1
        token = jnp.where(is_last, min(settings.forced_eos_token_ids), token)
    return token
