"""Random keys for the rows of a batch, which do not depend on the rest of the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, Key, PRNGKeyArray, UInt32


def row_keys(
    key: PRNGKeyArray,
    *token_ids: Integer[Array, "batch _"] | None,
    num_alike: Integer[Array, " batch"] | None = None,
) -> Key[Array, " batch"]:
    """A key for each row, by its tokens and not by its place in the batch.

    A row thus draws the same tokens in any batch. Negative `token_ids` do not count. Rows
    with the same tokens get different keys, by how many came before; `num_alike` says it
    for a batch that is a part of another.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    digest = jnp.zeros((), jnp.uint32)
    for ids in token_ids:
        if ids is not None:
            digest = digest * jnp.uint32(3) + _digest(ids)
    if num_alike is None:
        num_alike = jnp.sum(jnp.tril(digest[:, None] == digest[None], -1), axis=1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, digest)
    return jax.vmap(jax.random.fold_in)(keys, num_alike)


def _digest(ids: Integer[Array, "batch length"]) -> UInt32[Array, " batch"]:
    """A hash of the ids that are not negative, and of their order."""
    is_token = ids >= 0
    place = jnp.cumsum(is_token, axis=1).astype(jnp.uint32)
    mixed = ids.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + place * jnp.uint32(0x85EBCA6B)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(jnp.where(is_token, mixed, 0), axis=1, dtype=jnp.uint32)
