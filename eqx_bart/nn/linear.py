"""Linear maps: the contract, the plain one, and one with a low-rank adapter."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .matmul import matmul
from .mesh import product
from .stored import AbstractUnstorable, INLINED, TRANSPOSED


class AbstractLinear(eqx.Module):
    """A map of the last axis. Every projection of BART is one, and may be replaced by
    another: with low-rank adapters, in 8 bits, over more than one device.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """Maps `x`; returns the dtype of `x`."""


class Linear(AbstractLinear):
    """`x @ weight + bias`, accumulated in float32 or better.

    Source: PyTorch's `nn.Linear`, whose weight is the transpose.
    """

    weight: Float[Array, "d_in d_out"] = eqx.field(metadata=TRANSPOSED)
    bias: Float[Array, " d_out"] | None

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        use_bias: bool = True,
        init_std: float,
        key: PRNGKeyArray,
    ):
        """Draws the weight from `N(0, init_std²)`; the bias is zero."""
        self.weight = init_std * jax.random.normal(key, (d_in, d_out))
        self.bias = jnp.zeros_like(self.weight[0]) if use_bias else None

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_in, d_out)`."""
        d_in, d_out = self.weight.shape
        return d_in, d_out

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weight."""
        return self.weight.dtype

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return _linear(x, self.weight, self.bias)


def _linear(
    x: Float[Array, "*batch d_in"],
    weight: Float[Array, "d_in d_out"],
    bias: Float[Array, " d_out"] | None,
) -> Float[Array, "*batch d_out"]:
    """`Linear`, with its arrays as arguments, so that an error about shapes names them."""
    y = product(matmul, x, weight)
    if bias is not None:
        y = y + for_each_row(bias, y)
    return y.astype(x.dtype)


def for_each_row(
    columns: Float[Array, " columns"], x: Float[Array, "*rows columns"]
) -> Float[Array, "*rows columns"]:
    """An entry for each column, in the shape and the dtype of `x`."""
    return jnp.broadcast_to(columns.astype(x.dtype), x.shape)


class LowRankLinear(AbstractLinear, AbstractUnstorable):
    """A linear map with a low-rank adapter, which adds `scaling * x @ lora_A @ lora_B`.

    Source: Hu et al. 2021 (arXiv:2106.09685); HF's PEFT.
    """

    base_layer: AbstractLinear = eqx.field(metadata=INLINED)
    lora_A: Float[Array, "d_in rank"] = eqx.field(metadata=TRANSPOSED)  # noqa: N815
    lora_B: Float[Array, "rank d_out"] = eqx.field(metadata=TRANSPOSED)  # noqa: N815
    scaling: float = eqx.field(static=True)

    @property
    def remedy(self) -> str:
        return (
            "it has adapters, which no checkpoint of the model holds: save "
            "merge_lora(model), or the adapters alone with save_lora"
        )

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        added = self.scaling * matmul(matmul(x, self.lora_A), self.lora_B)
        return (self.base_layer(x) + added).astype(x.dtype)
