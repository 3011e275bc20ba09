"""Rows that hold more than one example: which token is of which.

`segment_ids`, `[batch, length]`, are any number for each example of a row, other than
those of its neighbours, and 0 for padding. The tokens of an example lie side by side.

Source: Raffel et al. 2019 (arXiv:1910.10683), section 3.1.1; T5X's `segment_ids`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer


def segment_mask(
    query_segment_ids: Integer[Array, "batch queries"],
    key_segment_ids: Integer[Array, "batch keys"],
) -> Bool[Array, "batch 1 queries keys"]:
    """The mask that keeps every query from the tokens of other examples. Padding sees
    padding."""
    return query_segment_ids[:, None, :, None] == key_segment_ids[:, None, None, :]


def segment_starts(
    segment_ids: Integer[Array, "batch length"],
) -> Bool[Array, "batch length"]:
    """Which tokens are the first ones of their examples."""
    is_other = segment_ids != jnp.roll(segment_ids, 1, axis=1)
    return is_other.at[:, :1].set(True)


def segment_positions(
    segment_ids: Integer[Array, "batch length"],
) -> Integer[Array, "batch length"]:
    """The positions of tokens in their examples: 0, 1, 2, ... in each; 0 for padding."""
    place = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    first = jax.lax.cummax(jnp.where(segment_starts(segment_ids), place, 0), axis=1)
    return jnp.where(segment_ids == 0, 0, place - first)


def any_in_segment(
    flags: Bool[Array, "batch length"],
    segment_ids: Integer[Array, "batch length"] | None,
) -> Bool[Array, "batch #length"]:
    """For each token, whether a flag is set in its example; without ids, in its row."""
    if segment_ids is None:
        return jnp.any(flags, axis=1, keepdims=True)
    same = segment_mask(segment_ids, segment_ids)[:, 0]
    return jnp.any(same & flags[:, None, :], axis=2)
