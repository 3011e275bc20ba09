"""Layer normalisation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .matmul import at_least_float32


#: What keeps a layer norm from dividing by zero.
LAYER_NORM_EPS = 1e-5


class LayerNorm(eqx.Module):
    """Layer normalisation over the last axis, computed in float32 or better.

    Source: arXiv:1607.06450; PyTorch's `nn.LayerNorm` with its default `eps`.
    """

    weight: Float[Array, " d_model"]
    bias: Float[Array, " d_model"]

    def __init__(self, d_model: int):
        self.weight = jnp.ones(d_model)
        self.bias = jnp.zeros(d_model)

    def __call__(self, x: Float[Array, "*batch d_model"]) -> Float[Array, "*batch d_model"]:
        return layer_norm(x, self.weight, self.bias)


def layer_norm(
    x: Float[Array, "*batch d_model"],
    weight: Float[Array, " d_model"],
    bias: Float[Array, " d_model"],
) -> Float[Array, "*batch d_model"]:
    """See `LayerNorm`."""
    y = x.astype(at_least_float32(x))
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS)
    weight, bias = (jnp.broadcast_to(v.astype(y.dtype), y.shape) for v in (weight, bias))
    return (normed * weight + bias).astype(x.dtype)
