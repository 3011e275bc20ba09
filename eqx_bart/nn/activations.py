"""The activation functions that a config may name, under HF's names."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .matmul import at_least_float32


def _gelu(x: Array) -> Array:
    # By erf, as PyTorch: the erfc of `jax.nn.gelu` takes twice as long or more on CPUs.
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _rounded_once(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """`function` in float32 at least, as PyTorch's kernels do. In 16 bits XLA would round
    after each operation, as HF's own formulas (`gelu_new`, `gelu_fast`, `quick_gelu`) do:
    less precise, and slower."""

    def activation(x: Array) -> Array:
        wide = x.astype(at_least_float32(x))
        return function(wide).astype(x.dtype)

    return activation


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}

#: HF's `ACT2FN`, as far as BART checkpoints use it.
ACTIVATIONS = {name: _rounded_once(function) for name, function in _FUNCTIONS.items()}
