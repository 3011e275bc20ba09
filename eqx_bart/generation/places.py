"""Reading and writing rows at a place of each: one number where all rows go in step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, Shaped


#: A place in each row; of size 1 if it is the same for all.
Places = Integer[Array, "#batch #rows"]


def places_from(first: Places, count: int) -> Integer[Array, "#batch #rows {count}"]:
    """So many places of each row, from its first on."""
    return first[..., None] + jnp.arange(count, dtype=jnp.int32)[None, None]


def take_at(
    x: Shaped[Array, "batch rows length"], places: Places
) -> Shaped[Array, "batch rows"]:
    """What is in each row at its place."""
    if places.size == 1:
        return jax.lax.dynamic_index_in_dim(x, places.reshape(()), 2, keepdims=False)
    places = jnp.broadcast_to(places, x.shape[:2])
    return jax.vmap(jax.vmap(lambda row, place: row[place]))(x, places)


def put_at(
    x: Shaped[Array, "batch rows length"],
    places: Places,
    new: Shaped[Array, "batch rows new"],
) -> Shaped[Array, "batch rows length"]:
    """The rows, with new entries from their places on. What is after the end is lost."""
    if places.size == 1 and new.shape[2] == 1:
        return x.at[:, :, places.reshape(())].set(new[:, :, 0])

    def put(row: Array, place: Array, new: Array) -> Array:
        index = place + jnp.arange(len(new), dtype=jnp.int32)
        return row.at[index].set(new, mode="drop", unique_indices=True)

    return jax.vmap(jax.vmap(put))(x, jnp.broadcast_to(places, x.shape[:2]), new)
