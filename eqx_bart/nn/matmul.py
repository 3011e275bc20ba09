"""Products of matrices, and every trick that makes them fast on a backend.

A product is `x @ weight`, which is fast: a weight is `[in, out]`, the transpose of what
PyTorch stores.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int8

from .checks import ArrayLike


# Up to this many rows, a product is one that does not copy the weight; measured on CPUs.
_FEW_ROWS = 32

# Whether XLA's CPU backend has fast products in bfloat16 on every processor, and of many
# matrices, two rows each.
_HAS_FAST_BFLOAT16 = jax.__version_info__ >= (0, 11)


def dot_transposed(
    x: Float[Array, "*batch rows d_in"], weight: Float[Array, "*batch d_out d_in"]
) -> Float[Array, "*batch rows d_out"]:
    """`x @ weight.T`, matrix by matrix, in float32 or better.

    XLA's CPU backend copies the right operand of a product into blocks first. For a few
    rows that takes longer than the product, so the weight goes on the left. The barrier
    keeps XLA from swapping them back. In half precision a product over both last axes is
    fast.
    """
    if _is_half(x, weight):
        return _half_dot_transposed(x, weight)
    return _full_dot_transposed(x, weight)


def _full_dot_transposed(x: Array, weight: Array) -> Array:
    """`dot_transposed` in float32 or better. On CPUs a product with one matrix on the left
    is faster for a power of two rows than for fewer: for 16 it takes two thirds of what it
    takes for 15. For up to four rows, and for many small matrices, it is not."""
    rows = x.shape[-2]
    if rows > _FEW_ROWS:
        return _full_matmul(x, weight.mT)
    if rows <= 4 or weight.ndim > 2:
        return _with_weight_on_left(x, weight)
    return jax.lax.platform_dependent(
        x, weight, cpu=_with_padded_rows, default=_with_weight_on_left
    )


def _with_weight_on_left(x: Array, weight: Array) -> Array:
    return jax.lax.optimization_barrier(_full_matmul(weight, x.mT)).mT


def _with_padded_rows(x: Array, weight: Array) -> Array:
    padded = jnp.pad(x, ((0, power_of_two(len(x)) - len(x)), (0, 0)))
    return _with_weight_on_left(padded, weight)[: len(x)]


def matmul(
    x: Float[Array, "*rows inner"],
    y: Float[Array, "inner columns"] | Float[Array, "*batch inner columns"],
) -> Float[Array, "*rows columns"]:
    """`x @ y` in float32 or better; `y` is one matrix, or one for each matrix of `x`."""
    return (_half_matmul if _is_half(x, y) else _full_matmul)(x, y)


@jax.custom_jvp
def int8_dot_transposed(
    x: Float[Array, "*rows d_in"], weight: Int8[Array, "d_out d_in"]
) -> Float[Array, "*rows d_out"]:
    """`x @ weight.T` in float32 or better, of which each row of `x` is first rounded to 8
    bits; see `rounded`. The derivative is that without rounding.

    Sums of products of 8-bit integers are exact. XLA's CPU backend has fast ones over both
    last axes, for two rows or more.
    """
    integers, scales = rounded(x)
    sums = _with_rows(_integer_product, integers, weight)
    return sums.astype(scales.dtype) * scales[..., None]


@int8_dot_transposed.defjvp
def _int8_dot_transposed_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    x, weight = primals
    dx, _ = tangents
    return int8_dot_transposed(x, weight), _product_transposed(dx, weight.astype(dx.dtype))


def rounded(
    x: Float[Array, "*batch columns"],
) -> tuple[Int8[Array, "*batch columns"], Float[Array, "*batch"]]:
    """The rows of `x` as integers from -127 to 127, and a scale for each, in float32 or
    better: their product is `x`, to half a scale in each entry. The scale of a row that is
    not finite is not either."""
    x = x.astype(at_least_float32(x))
    scales = jnp.max(jnp.abs(x), axis=-1) / 127
    return to_integers(x, scales), scales


def to_integers(
    x: Float[Array, "*batch columns"], scales: Float[Array, "*batch"]
) -> Int8[Array, "*batch columns"]:
    """`x` in units of these scales of its rows, rounded, from -127 to 127."""
    units = x / jnp.where(scales == 0, 1, scales)[..., None]
    return jnp.clip(jnp.round(units), -127, 127).astype(jnp.int8)


def _integer_product(x: Int8[Array, "..."], y: Int8[Array, "..."]) -> Array:
    dimensions = ((x.ndim - 1,), (y.ndim - 1,)), ((), ())
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.int32)


def _is_half(x: Array, y: Array) -> bool:
    """Whether a product is one in half precision."""
    return bool(x.dtype == y.dtype != at_least_float32(x))


@jax.custom_jvp
def _full_matmul(x: Array, y: Array) -> Array:
    """`matmul` in float32 or better, with a gradient by `y` that is fast on CPUs. There a
    product of three to `_FEW_ROWS` rows is one of their columns: XLA does not copy `y` into
    blocks for it, which takes up to half of the time."""
    rows = math.prod(x.shape[:-1])
    if y.ndim > 2 or not 2 < rows <= _FEW_ROWS:
        return _product(x, y)
    return jax.lax.platform_dependent(x, y, cpu=_product_of_columns, default=_product)


def _product_of_columns(x: Array, y: Array) -> Array:
    """`x @ y`, of a transposed copy of `x`."""
    columns, dtype = _transposed_copy(x, 0), at_least_float32(x, y)
    rows = jnp.tensordot(columns, y, (0, 0), preferred_element_type=dtype)
    return rows.reshape(*x.shape[:-1], y.shape[-1])


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
    """`x @ y`, whose gradient by `y` is a product of two row-major matrices: XLA's CPU
    backend is fastest at these. One of them is a transposed copy of `x` or of the
    cotangent, the narrower of the two."""
    if x.shape[-1] <= y.shape[-1]:
        return _product_of_columns(x, y)
    dtype = at_least_float32(x, y)
    x_rows, y_columns = x.reshape(-1, x.shape[-1]), _transposed_copy(y, 0)
    columns = jnp.tensordot(y_columns, x_rows, (1, 1), preferred_element_type=dtype)
    return _transposed_copy(columns, 0).reshape(*x.shape[:-1], y.shape[-1])


@jax.custom_vjp
def _half_matmul(x: Array, y: Array) -> Array:
    """`matmul` in half precision, whose gradients are products in half precision too.
    JAX's own rule makes them float32, and twice as slow."""
    return _half_product(_product, _full_matmul, x, y)


def _half_matmul_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _half_product(_product, _full_matmul, x, y), (x, y)


def _half_matmul_backward(
    operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = operands
    cotangent = cotangent.astype(x.dtype)
    dx = _product_transposed(cotangent, y)
    return dx.astype(x.dtype), _half_gradient(x, cotangent, y.ndim).astype(y.dtype)


_half_matmul.defvjp(_half_matmul_forward, _half_matmul_backward)


@jax.custom_vjp
def _half_dot_transposed(x: Array, y: Array) -> Array:
    """`dot_transposed` in half precision, with gradients as `_half_matmul` has them."""
    return _half_product(_product_transposed, _full_dot_transposed, x, y)


def _half_dot_transposed_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _half_product(_product_transposed, _full_dot_transposed, x, y), (x, y)


def _half_dot_transposed_backward(
    operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = operands
    cotangent = cotangent.astype(x.dtype)
    dx = _product(cotangent, y)
    return dx.astype(x.dtype), _half_gradient(cotangent, x, y.ndim).astype(y.dtype)


_half_dot_transposed.defvjp(_half_dot_transposed_forward, _half_dot_transposed_backward)


def _half_product(
    half: Callable[[Array, Array], Array],
    full: Callable[[Array, Array], Array],
    x: Array,
    y: Array,
) -> Array:
    """A product in half precision. Where CPUs have none, XLA makes both operands float32, a
    weight once before a loop, and a product that is made for float32 is the fast one."""
    if x.dtype != jnp.float16 and _has_bfloat16():
        return _with_rows(half, x, y)

    def in_float32(x: Array, y: Array) -> Array:
        return full(x.astype(jnp.float32), y.astype(jnp.float32))

    return jax.lax.platform_dependent(x, y, cpu=in_float32, default=half)


@functools.cache
def _has_bfloat16() -> bool:
    """Whether XLA's CPU backend has fast products in bfloat16: before JAX 0.11, where the
    processor has them, some with AVX-512."""
    if _HAS_FAST_BFLOAT16:
        return True
    try:
        features = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return True
    return "avx2" not in features or "bf16" in features


def _half_gradient(x: Array, y: Array, ndim: int) -> Array:
    """`x.mT @ y` in half precision: matrix by matrix, or their sum if `ndim` is 2."""
    if ndim > 2:
        return _product(_transposed(x), y)
    return jax.lax.platform_dependent(x, y, cpu=_sum_of_rows, default=_sum_of_matrices)


def _with_rows(product: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    """A product with one matrix, or matrix by matrix. XLA's CPU backend has no fast product
    of one row in bfloat16 or in 8 bits, but one of two rows; for one row it makes all
    matrices float32, before a loop if they stay the same."""
    is_one_row = math.prod(x.shape[:-1]) == math.prod(y.shape[:-2]) > 0
    is_slow = x.dtype in (jnp.bfloat16, jnp.int8) and (y.ndim == 2 or _HAS_FAST_BFLOAT16)
    if not (is_one_row and is_slow):
        return product(x, y)

    def of_two(x: Array, y: Array) -> Array:
        one = x.reshape(*y.shape[:-2], 1, x.shape[-1])
        padding = [*((0, 0) for _ in y.shape[:-2]), (0, 1), (0, 0)]
        return product(jnp.pad(one, padding), y)[..., :1, :].reshape(*x.shape[:-1], -1)

    return jax.lax.platform_dependent(x, y, cpu=of_two, default=product)


def power_of_two(size: int) -> int:
    """The next power of two that is no less; 1 for none."""
    return 1 << (max(size, 1) - 1).bit_length()


def rows_of_weights() -> Float[Array, ""]:
    """How many rows a pass multiplies by the weights in the time that it takes to read
    them: a pass over `n` rows takes about as long as reading the weights, times
    `1 + n / rows_of_weights()`.

    Measured with BART-base in float32 on a CPU, where a pass over 8 tokens takes 1.4 times
    as long as one over 1; and with BART-large in bfloat16 on an H100, where one over 72
    takes 1.35 times as long as one over 8, and one over 288 1.72 times as long as one over
    32.
    """
    return jax.lax.platform_dependent(
        cpu=lambda: jnp.asarray(20.0, jnp.float32),
        default=lambda: jnp.asarray(200.0, jnp.float32),
    )


def _sum_of_rows(x: Array, y: Array) -> Array:
    """The sum of `x.mT @ y` over all matrices, as one product."""
    return _product(_transposed_copy(x, 0), y.reshape(-1, y.shape[-1]))


def _sum_of_matrices(x: Array, y: Array) -> Array:
    """`_sum_of_rows` for arrays that are spread over devices along any axis."""
    axes = list(range(x.ndim - 1))
    return jnp.tensordot(x, y, (axes, axes), preferred_element_type=at_least_float32(x, y))


def _product_transposed(x: Array, y: Array) -> Array:
    """`x @ y.T`, or matrix by matrix. On CPUs a product of one row is faster with a
    transpose, and all others are without."""
    if x.shape[-2:-1] == (1,):
        return _product(x, y.mT)
    batch = tuple(range(y.ndim - 2))
    dimensions = ((x.ndim - 1,), (y.ndim - 1,)), (batch, batch)
    return jax.lax.dot_general(
        x, y, dimensions, preferred_element_type=at_least_float32(x, y)
    )


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=at_least_float32(x, y))


def _transposed(x: Float[Array, "*batch rows columns"]) -> Array:
    """`x.mT`; in half precision on CPUs, as a copy: there XLA has no fast product of a
    transposed matrix in half precision, and computes it in float32."""
    if x.dtype == at_least_float32(x):
        return x.mT
    return jax.lax.platform_dependent(
        x, cpu=lambda x: _transposed_copy(x, x.ndim - 2), default=lambda x: x.mT
    )


def _transposed_copy(x: Float[Array, "*rows columns"], axis: int) -> Array:
    """A copy of `x` with its last axis moved to `axis`, and the axes after that merged into
    one. Without the axis of length 1, XLA makes the transpose part of the product."""
    moved = jnp.moveaxis(x[..., None, :], -1, axis)
    return moved.reshape(*moved.shape[: axis + 1], math.prod(x.shape[axis:-1]))


def at_least_float32(*arrays: ArrayLike) -> jnp.dtype:
    """The dtype to compute in: float32, or float64 if an array has it."""
    is_double = any(a.dtype == jnp.float64 for a in arrays)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)
