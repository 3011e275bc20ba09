"""Arrays of a model that nothing trains."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt

from .checks import ArrayLike
from .stored import AbstractStored


class Buffer(AbstractStored):
    """An array that belongs to a model but is not one of its parameters.

    Gradients, optimisers and casts pick parameters by their inexact dtype, with
    `equinox.is_inexact_array`. A buffer holds the bits of its floats as integers, so they
    do not pick it.
    """

    bits: UInt[Array, "*shape"]
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, value: Float[ArrayLike, "*shape"]):
        value = jnp.asarray(value)
        unsigned = jnp.dtype(f"uint{8 * value.dtype.itemsize}")
        self.bits = jax.lax.bitcast_convert_type(value, unsigned)
        self.dtype = value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.bits.shape

    @property
    def value(self) -> Float[Array, "*shape"]:
        """The floats."""
        return jax.lax.bitcast_convert_type(self.bits, self.dtype)

    def with_value(self, value: Float[Array, "*shape"]) -> "Buffer":
        """A buffer of another array."""
        return Buffer(value)
