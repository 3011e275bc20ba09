"""The layers that BART is made of. Each holds its arrays directly.

Weights are stored as the hardware likes them: a `Linear` maps with `x @ weight`, so that
its weight is `[in, out]`, the transpose of what PyTorch stores.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt

from .activations import ACTIVATIONS
from .checks import ArrayLike, check_range


ModuleT = TypeVar("ModuleT", bound=eqx.Module)

#: The row of the position table that holds position 0, a relic of fairseq's padding.
POSITION_OFFSET = 2

# Up to here `dot_transposed` has its weight on the left; measured on CPUs.
_FEW_ROWS = 32

#: What keeps a layer norm from dividing by zero.
LAYER_NORM_EPS = 1e-5


def split_key(key: PRNGKeyArray | None, num: int) -> list[PRNGKeyArray | None]:
    """`num` keys from `key`, or `num` times `None` from `None`."""
    return [None] * num if key is None else list(jax.random.split(key, num))


class LowRank(eqx.Module):
    """What low-rank adaptation adds to a `Linear`: `scaling * x @ lora_A @ lora_B`."""

    lora_A: Float[Array, "d_in rank"]  # noqa: N815
    lora_B: Float[Array, "rank d_out"]  # noqa: N815
    scaling: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return self.scaling * matmul(matmul(x, self.lora_A), self.lora_B)


class Linear(eqx.Module):
    """`x @ weight + bias`, accumulated in float32 or better; plus `adapter(x)`, if it has
    one. See `eqx_bart.adapters`."""

    weight: Float[Array, "d_in d_out"]
    bias: Float[Array, " d_out"] | None
    adapter: LowRank | None

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
        self.adapter = None

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        y = matmul(x, self.weight)
        if self.bias is not None:
            y = y + self.bias
        if self.adapter is not None:
            y = y + self.adapter(x)
        return y.astype(x.dtype)


def dot_transposed(
    x: Float[Array, "*batch rows d_in"], weight: Float[Array, "*batch d_out d_in"]
) -> Float[Array, "*batch rows d_out"]:
    """`x @ weight.T`, matrix by matrix, in float32 or better.

    XLA's CPU backend copies the right operand of a product into blocks first. For a few
    rows that takes longer than the product, and so the weight goes to the left; the
    barrier keeps XLA from turning that round again.
    """
    rows = x.shape[-2]
    if rows == 1:
        return matmul(x, weight.mT)
    if rows > _FEW_ROWS:
        return matmul(x, _transposed(weight))
    return jax.lax.optimization_barrier(matmul(weight, _transposed(x))).mT


def matmul(
    x: Float[Array, "*rows inner"],
    y: Float[Array, "inner columns"] | Float[Array, "*batch inner columns"],
) -> Float[Array, "*rows columns"]:
    """`x @ y` in float32 or better; `y` is one matrix, or one for each matrix of `x`."""
    is_half = x.dtype == y.dtype != _at_least_float32(x)
    return (_half_matmul if is_half else _full_matmul)(x, y)


@jax.custom_jvp
def _full_matmul(x: Array, y: Array) -> Array:
    """`matmul` in float32 or better, with a gradient by `y` that is fast on CPUs."""
    return _product(x, y)


def _full_matmul_jvp(
    primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_product(jnp.asarray(dx), y))
    if not isinstance(dy, SymbolicZero):
        dy = jnp.asarray(dy)
        terms.append(
            jax.lax.platform_dependent(x, dy, cpu=_product_by_columns, default=_product)
            if y.ndim == 2
            else _product(x, dy)
        )
    return _product(x, y), sum(terms[1:], terms[0])


_full_matmul.defjvp(_full_matmul_jvp, symbolic_zeros=True)


def _product_by_columns(x: Array, y: Array) -> Array:
    """`x @ y`, whose gradient by `y` is a product of two row-major matrices, the one kind
    of which XLA's CPU backend has its fastest: of the transpose, copied, of `x` or of the
    cotangent, whichever is narrower."""
    dtype = _at_least_float32(x, y)
    if x.shape[-1] <= y.shape[-1]:
        x_columns = _transposed_copy(x, 0)
        rows = jnp.tensordot(x_columns, y, (0, 0), preferred_element_type=dtype)
    else:
        x_rows, y_columns = x.reshape(-1, x.shape[-1]), _transposed_copy(y, 0)
        columns = jnp.tensordot(y_columns, x_rows, (1, 1), preferred_element_type=dtype)
        rows = _transposed_copy(columns, 0)
    return rows.reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_vjp
def _half_matmul(x: Array, y: Array) -> Array:
    """`matmul` in half precision, of which gradients are products in half precision too;
    JAX's own rule makes them float32, and twice as slow."""
    return _product(x, y)


def _half_matmul_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, y), (x, y)


def _half_matmul_backward(
    operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = operands
    cotangent = cotangent.astype(x.dtype)
    dx = _product(cotangent, _transposed(y))
    if y.ndim > 2:
        dy = _product(_transposed(x), cotangent)
    else:
        dy = jax.lax.platform_dependent(
            x, cotangent, cpu=_sum_of_rows, default=_sum_of_matrices
        )
    return dx.astype(x.dtype), dy.astype(y.dtype)


_half_matmul.defvjp(_half_matmul_forward, _half_matmul_backward)


def _sum_of_rows(x: Array, y: Array) -> Array:
    """The sum of `x.mT @ y` over all matrices, as one product."""
    return _product(_transposed_copy(x, 0), y.reshape(-1, y.shape[-1]))


def _sum_of_matrices(x: Array, y: Array) -> Array:
    """`_sum_of_rows` for arrays that are spread over devices along any axis."""
    axes = list(range(x.ndim - 1))
    return jnp.tensordot(x, y, (axes, axes), preferred_element_type=_at_least_float32(x, y))


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=_at_least_float32(x, y))


def _transposed(x: Float[Array, "*batch rows columns"]) -> Array:
    """`x.mT`; on CPUs, of half precision, as a copy. There XLA has no fast product of a
    transposed matrix in half precision, and takes one in float32."""
    if x.dtype == _at_least_float32(x):
        return x.mT
    return jax.lax.platform_dependent(
        x, cpu=lambda x: _transposed_copy(x, x.ndim - 2), default=lambda x: x.mT
    )


def _transposed_copy(x: Float[Array, "*rows columns"], axis: int) -> Array:
    """A copy of `x` with its columns as axis `axis`, and the other axes from there on as
    one. Without the axis of length 1 XLA makes the transpose a part of the product."""
    moved = jnp.moveaxis(x[..., None, :], -1, axis)
    return moved.reshape(*moved.shape[: axis + 1], math.prod(x.shape[axis:-1]))


def _at_least_float32(*arrays: Array) -> jnp.dtype:
    return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))


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
    y = x.astype(_at_least_float32(x))
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * weight + bias).astype(
        x.dtype
    )


class Embedding(eqx.Module):
    """A table of token embeddings, times `scale` where it is looked up.

    The row of `padding_idx` is looked up like any other but learns nothing from it, as
    in PyTorch. Source: HF's `BartScaledWordEmbedding`.
    """

    weight: Float[Array, "vocab d_model"]
    padding_idx: int | None = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        padding_idx: int | None,
        scale: float,
        init_std: float,
        key: PRNGKeyArray,
    ):
        """Draws the table from `N(0, init_std²)`, but for a `padding_idx` row of zeros."""
        weight = init_std * jax.random.normal(key, (vocab_size, d_model))
        if padding_idx is not None:
            weight = weight.at[padding_idx].set(0)
        self.weight = weight
        self.padding_idx = padding_idx
        self.scale = scale

    def __call__(
        self, ids: Integer[ArrayLike, "batch length"], name: str = "input_ids"
    ) -> Float[Array, "batch length d_model"]:
        """Looks `ids` up.

        **Raises** if an id lies outside the table; `name` is what the message calls
        them. See `eqx_bart.checks.check_range`.
        """
        vocab_size = self.weight.shape[0]
        return self.lookup(check_range(ids, vocab_size, name, "the vocabulary"))

    def lookup(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d_model"]:
        """`__call__` for ids that are known to be inside the table."""
        rows = _rows(self.weight, ids)
        if self.padding_idx is not None:
            is_padding = (ids == self.padding_idx)[..., None]
            rows = jnp.where(is_padding, jax.lax.stop_gradient(rows), rows)
        return rows if self.scale == 1 else rows * self.scale


class LearnedPositionalEmbedding(eqx.Module):
    """A learned embedding for each position; position 0 is row `POSITION_OFFSET`.

    Source: HF's `BartLearnedPositionalEmbedding`.
    """

    weight: Float[Array, "rows d_model"]

    def __init__(
        self, max_positions: int, d_model: int, *, init_std: float, key: PRNGKeyArray
    ):
        shape = (max_positions + POSITION_OFFSET, d_model)
        self.weight = init_std * jax.random.normal(key, shape)

    @property
    def max_positions(self) -> int:
        return self.weight.shape[0] - POSITION_OFFSET

    def __call__(
        self, position_ids: Integer[ArrayLike, "#batch length"], name: str = "position_ids"
    ) -> Float[Array, "#batch length d_model"]:
        """Looks positions up.

        **Raises** if one lies outside the table, as `Embedding.__call__` does.
        """
        position_ids = check_range(
            position_ids, self.max_positions, name, "the position table"
        )
        return self.lookup(position_ids)

    def lookup(
        self, position_ids: Integer[Array, "#batch length"]
    ) -> Float[Array, "#batch length d_model"]:
        """`__call__` for positions that are known to be inside the table."""
        return _rows(self.weight, position_ids + POSITION_OFFSET)

    def span(
        self, start: int | Integer[Array, ""], length: int
    ) -> Float[Array, "1 length d_model"]:
        """The embeddings of positions `start` to `start + length - 1`.

        **Raises** `ValueError` if `length` exceeds the table. That a traced `start`
        stays inside it is for the caller to see to.
        """
        if length > self.max_positions:
            raise ValueError(
                f"A sequence of {length} tokens is longer than the position table: "
                f"max_position_embeddings is {self.max_positions}. Truncate the input."
            )
        rows = jax.lax.dynamic_slice_in_dim(self.weight, start + POSITION_OFFSET, length)
        return rows[None]


def _rows(table: Float[Array, "rows width"], ids: Integer[Array, "*batch"]) -> Array:
    return table.at[ids].get(mode="promise_in_bounds", wrap_negative_indices=False)


class LayerDrop(eqx.Module):
    """Skips a whole layer with probability `p` while training.

    Source: Fan et al. 2019, arXiv:1909.11556.
    """

    p: float
    inference: bool = False

    def __call__(
        self,
        new: Float[Array, "*shape"],
        old: Float[Array, "*shape"],
        *,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "*shape"]:
        """`new`, what the layer made of `old`; or `old`, where the layer is dropped.

        **Raises** `RuntimeError` if a key is needed and none is given.
        """
        if self.inference or self.p == 0:
            return new
        if key is None:
            raise RuntimeError(
                "LayerDrop requires a key in training mode: pass key=..., or put the "
                "model into inference mode with equinox.nn.inference_mode."
            )
        return jnp.where(jax.random.bernoulli(key, self.p), old, new)


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """That a stack keeps the inputs of its layers alone for the gradient, and computes the
    rest anew; `policy` is that of `jax.checkpoint`, and says what else to keep."""

    policy: Callable[..., Any] | None = None

    def __call__(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer`, checkpointed."""
        return eqx.filter_checkpoint(layer, policy=self.policy)


def with_static(module: ModuleT, **fields: Any) -> ModuleT:
    """A copy of `module` with other static fields, which `equinox.tree_at` cannot reach."""
    module = jax.tree.map(lambda leaf: leaf, module)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module


class Buffer(eqx.Module):
    """An array that belongs to a model but is not one of its parameters.

    Gradients, optimisers and casts pick parameters by their inexact dtype, with
    `equinox.is_inexact_array`. A buffer holds the bits of its floats as integers, so that
    they pass it by.
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


def embed(
    inputs_embeds: Float[Array, "batch length d_model"],
    positions: Float[Array, "#batch length d_model"],
    layernorm_embedding: LayerNorm,
    dropout: eqx.nn.Dropout,
    *,
    key: PRNGKeyArray | None,
) -> Float[Array, "batch length d_model"]:
    """What BART's first layer reads: tokens plus positions, normalised."""
    return dropout(layernorm_embedding(inputs_embeds + positions), key=key)


def feed_forward(
    fc1: Linear,
    fc2: Linear,
    activation_function: str,
    activation_dropout: eqx.nn.Dropout,
    x: Float[Array, "*batch d_model"],
    *,
    key: PRNGKeyArray | None,
) -> Float[Array, "*batch d_model"]:
    """BART's feed-forward block: two linear maps around an activation."""
    hidden = ACTIVATIONS[activation_function](fc1(x))
    return fc2(activation_dropout(hidden, key=key))
