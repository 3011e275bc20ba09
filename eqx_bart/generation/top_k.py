"""The largest entries of long rows, of which devices may hold a part each."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from ..nn.mesh import on_each_device, TENSOR


# About the square root of a vocabulary of 50,000 divided by a few beams: then there are
# about as many blocks as there are entries in the blocks that are searched.
_BLOCK = 64


def top_k(
    x: Float[Array, "rows *inner length"], k: int
) -> tuple[Float[Array, "rows {k}"], Integer[Array, "rows {k}"]]:
    """What `jax.lax.top_k` gives of all that is in a row, in one pass over `x`: of equal
    entries the first. The places are those in the row with its `inner` axes made flat.

    Where the last axis is split over devices, these exchange the best of their parts.
    """
    return on_each_device(functools.partial(_top_k, k=k), x, last=(TENSOR,))


def top_k_of_few(
    x: Float[Array, "rows length"], k: int
) -> tuple[Float[Array, "rows {k}"], Integer[Array, "rows {k}"]]:
    """`jax.lax.top_k` of short rows, each on its own device."""
    return on_each_device(lambda _, x: tuple(jax.lax.top_k(x, k)), x)


def take(
    x: Float[Array, "rows *inner length"], places: Integer[Array, "rows n"]
) -> Float[Array, "rows n"]:
    """What is at these places of each row, which are as in `top_k` and known to be inside.

    Where the last axis is split over devices, these exchange what they have of it.
    """
    return on_each_device(_take, x, places, last=(TENSOR,))


def _top_k(
    axes: tuple[str, ...], x: Float[Array, "rows *inner length"], *, k: int
) -> tuple[Float[Array, "rows {k}"], Integer[Array, "rows {k}"]]:
    length = x.shape[-1]
    flat = x.reshape(len(x), -1)
    values, places = _by_blocks(flat, min(k, flat.shape[1]))
    if not axes:
        return values, places
    first, whole = _part(axes, length)
    places = places // length * whole + first + places % length
    gather = functools.partial(jax.lax.all_gather, axis_name=axes, axis=1, tiled=True)
    values, places = gather(values), gather(places)
    # In ascending order, so that of equal entries the first is taken.
    order = jnp.argsort(places, axis=-1)
    values, places = _along(values, order), _along(places, order)
    values, best = jax.lax.top_k(values, k)
    return values, _along(places, best)


def _take(
    axes: tuple[str, ...],
    x: Float[Array, "rows *inner length"],
    places: Integer[Array, "rows n"],
) -> Float[Array, "rows n"]:
    length = x.shape[-1]
    flat = x.reshape(len(x), -1)
    if not axes:
        return _along(flat, places)
    first, whole = _part(axes, length)
    inside = places % whole - first
    is_here = (inside >= 0) & (inside < length)
    here = places // whole * length + jnp.clip(inside, 0, length - 1)
    return jax.lax.psum(jnp.where(is_here, _along(flat, here), 0), axes)


def _part(axes: tuple[str, ...], length: int) -> tuple[Integer[Array, ""], int]:
    """Where the part of this device begins, of so many entries, and how many there are on
    all devices."""
    return jax.lax.axis_index(axes) * length, jax.lax.axis_size(axes) * length


def _by_blocks(
    x: Float[Array, "rows length"], k: int
) -> tuple[Float[Array, "rows {k}"], Integer[Array, "rows {k}"]]:
    """`jax.lax.top_k` in one pass.

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
    values, places = jax.lax.top_k(_along(x, candidates), k)
    return values, _along(candidates, places)


def _along(x: Array, indices: Integer[Array, "*batch n"]) -> Array:
    """`x[..., indices]`, row by row, for indices that are known to be inside."""
    return jnp.take_along_axis(x, indices, axis=-1, mode="promise_in_bounds")
