"""Keys and values: what an attention attends to. Nothing is changed in place."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer, Shaped

from .mesh import on_any_mesh, ROWS, split, TENSOR


_BY_HEAD = split(ROWS, TENSOR)

#: The first of the slots that tokens are written to: one for all rows, or one for each.
FirstSlot = int | Integer[Array, ""] | Integer[Array, " batch"]


class KeyValues(eqx.Module):
    """What an attention attends to: a key and a value for each slot and head.

    Without a cache a slot is a token; with one, there are slots for tokens to come.
    """

    keys: Float[Array, "batch heads length head_dim"] = eqx.field(metadata=_BY_HEAD)
    values: Float[Array, "batch heads length head_dim"] = eqx.field(metadata=_BY_HEAD)

    @classmethod
    def zeros(
        cls, batch_size: int, heads: int, length: int, head_dim: int, dtype: DTypeLike
    ) -> "KeyValues":
        """Empty slots, to be written to.

        **Arguments:**

        - `batch_size`, `heads`, `length`, `head_dim`: the shape of the keys and of the
            values.
        - `dtype`: of both.
        """
        zeros = jnp.zeros((batch_size, heads, length, head_dim), dtype)
        return cls(zeros, zeros)

    @on_any_mesh
    def write(self, new: "KeyValues", start: FirstSlot) -> "KeyValues":
        """These, with `new` written over the slots from `start` on, a number for all rows
        or one for each. The caller must check that the slots exist.

        **Raises** `ValueError` if `new` has another batch size, number of heads or head
        size.
        """

        def write(old: Array, new: Array) -> Array:
            for axis, name in enumerate(("batch", "heads", None, "head_dim")):
                if name and old.shape[axis] != new.shape[axis]:
                    raise ValueError(
                        f"The cache holds keys and values of {name}={old.shape[axis]}, and "
                        f"was given {name}={new.shape[axis]}: an attention writes the "
                        "shapes that its init_cache makes."
                    )
            return written(old, new.astype(old.dtype), start, axis=2)

        return jax.tree.map(write, self, new)


def written(
    old: Shaped[Array, "batch ..."],
    new: Shaped[Array, "batch ..."],
    start: FirstSlot,
    *,
    axis: int,
) -> Shaped[Array, "batch ..."]:
    """`old`, with `new` in the place of what is there from `start` on along an axis."""
    start = jnp.asarray(start)
    if start.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)

    def write(old: Array, new: Array, start: Integer[Array, ""]) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis - 1)

    return jax.vmap(write)(old, new, start)
