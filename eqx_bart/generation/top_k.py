"""The largest entries of long rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


# About the square root of a vocabulary of 50,000 divided by a few beams: then there are
# about as many blocks as there are entries in the blocks that are searched.
_BLOCK = 64


def top_k(
    x: Float[Array, "rows length"], k: int
) -> tuple[Float[Array, "rows {k}"], Integer[Array, "rows {k}"]]:
    """What `jax.lax.top_k` gives, in one pass over `x`: of equal entries the first.

    The k largest entries are in the k blocks with the largest maxima. Inside a loop, XLA's
    own `top_k` sorts each row completely, which for a vocabulary takes longer than the rest
    of a decoding step.
    """
    rows, length = x.shape
    num_blocks = length // _BLOCK
    if num_blocks <= k:
        values, places = jax.lax.top_k(x, k)
        return values, places
    end = num_blocks * _BLOCK
    maxima = jnp.max(x[:, :end].reshape(rows, num_blocks, _BLOCK), axis=-1)
    # In ascending order, so that of equal entries the first is taken.
    blocks = jnp.sort(jax.lax.top_k(maxima, k)[1], axis=-1)
    inside = jnp.arange(_BLOCK, dtype=jnp.int32)[None, None]
    candidates = (blocks[..., None] * _BLOCK + inside).reshape(rows, -1)
    rest = jnp.broadcast_to(jnp.arange(end, length, dtype=jnp.int32), (rows, length - end))
    candidates = jnp.concatenate([candidates, rest], axis=-1)
    values, places = jax.lax.top_k(take(x, candidates), k)
    return values, take(candidates, places)


def take(x: Array, indices: Integer[Array, "*batch n"]) -> Array:
    """`x[..., indices]`, row by row, for indices that are known to be inside."""
    return jnp.take_along_axis(x, indices, axis=-1, mode="promise_in_bounds")
