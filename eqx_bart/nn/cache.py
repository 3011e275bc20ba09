"""Keys and values: what an attention attends to. Nothing is changed in place."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from .mesh import on_any_mesh, ROWS, split, TENSOR


_BY_HEAD = split(ROWS, TENSOR)


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
    def write(self, new: "KeyValues", start: int | Integer[Array, ""]) -> "KeyValues":
        """These, with `new` written over the slots from `start` on. The caller must check
        that the slots exist.

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
            new = new.astype(old.dtype)
            return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=2)

        return jax.tree.map(write, self, new)
