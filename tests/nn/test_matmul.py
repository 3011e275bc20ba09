"""Products of matrices, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import with_slow
from jax.test_util import check_grads

from eqx_bart.nn.matmul import (
    _product_by_columns,
    _sum_of_matrices,
    _sum_of_rows,
    dot_transposed,
    matmul,
)


@pytest.fixture
def normal():
    """A function that draws an array of a shape and a dtype."""
    rng = np.random.default_rng(0)
    return lambda shape, dtype="float32": jnp.asarray(rng.normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "bfloat16 by float32"])
@pytest.mark.parametrize(
    ("product", "left", "right"),
    [
        (matmul, (48, 7), (7, 5)),
        (matmul, (2, 3, 9, 8), (2, 3, 8, 1)),
        (matmul, (2, 16, 3), (3, 6)),
        (matmul, (4,), (4, 2)),
        (matmul, (1, 1, 9), (9, 4)),
        (matmul, (2, 3, 1, 8), (2, 3, 8, 5)),
        (dot_transposed, (1, 9), (9, 4)),
        (dot_transposed, (48, 7), (7, 5)),
        (dot_transposed, (2, 3, 1, 8), (2, 3, 8, 5)),
        (dot_transposed, (2, 3, 40, 8), (2, 3, 8, 1)),
    ],
)
def test_products_in_half_precision(product, left, right, dtype, normal, monkeypatch):
    dtype, *by = dtype.split()
    monkeypatch.setattr("eqx_bart.nn.matmul._has_bfloat16", lambda: not by)
    shapes = left, right, (*left[:-1], right[-1])
    x, y, weights = (normal(shape, dtype) for shape in shapes)
    exact = [torch.from_numpy(np.asarray(a, np.float64)) for a in (x, y, weights)]
    if product is dot_transposed:
        y = y.mT

    def traced_anew(x, y):  # `jit` keeps what it has traced of `product`
        return product(x, y)

    def loss(x, y):
        return jnp.sum(product(x, y) * weights)

    found = jax.jit(traced_anew)(x, y)
    assert found.dtype == jnp.float32
    assert np.allclose(found, exact[0] @ exact[1], rtol=1e-6, atol=1e-6)
    operands = [a.requires_grad_() for a in exact[:2]]
    expected = torch.autograd.grad((operands[0] @ operands[1] * exact[2]).sum(), operands)
    grads = jax.jit(jax.grad(loss, (0, 1)))(x, y)
    rounding = float(jnp.finfo(dtype).eps)
    if product is dot_transposed:
        expected = expected[0], expected[1].mT
    for ours, theirs in zip(grads, expected, strict=True):
        assert ours.dtype == x.dtype
        assert np.allclose(ours, theirs, rtol=rounding, atol=1e-6)
    batched = jax.jit(jax.vmap(jax.grad(loss), (-1, None), -1))(x[..., None], y)
    assert np.array_equal(batched[..., 0], grads[0])
    forward = jax.jit(lambda *xy: jax.jvp(jax.grad(loss, 1), xy, xy)[1])(x, y)
    assert np.allclose(forward, grads[1], rtol=2 * rounding, atol=1e-6)


@pytest.mark.parametrize(
    ("left", "right"),
    [((48, 7), (7, 5)), ((2, 3, 9, 8), (2, 3, 8, 1)), ((2, 6, 3), (3, 6)), ((4,), (4, 2))],
)
def test_products_in_float64_have_derivatives_of_either_mode(left, right, normal):
    with jax.enable_x64(True):
        x, y = (normal(shape, "float64") for shape in (left, right))
        product = np.asarray(x) @ np.asarray(y)
        assert np.allclose(jax.jit(matmul)(x, y), product, rtol=1e-12, atol=1e-12)
        check_grads(jax.jit(matmul), (x, y), order=2)
        check_grads(jax.jit(lambda x: matmul(x, y)), (x,), order=1)
        check_grads(jax.jit(lambda y: matmul(x, y)), (y,), order=1)
        found, expected = (
            jax.jit(lambda *xy, f=f: jax.jvp(f, xy, xy))(x, y) for f in (matmul, jnp.matmul)
        )
        for ours, theirs in zip(found, expected, strict=True):
            assert np.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_what_is_frozen_costs_nothing(normal):
    x, y = (normal(shape) for shape in ((6, 4), (4, 3)))
    for frozen in range(2):
        loss = jax.grad(lambda *xy: jnp.sum(matmul(*xy) ** 2), 1 - frozen)
        jaxpr = str(jax.make_jaxpr(loss)(x, y).jaxpr)
        assert jaxpr.count("dot_general") == (3 if frozen == 0 else 2)


@pytest.mark.parametrize("shape", [(48,), (2, 3, 16), (5, 7)])
def test_sums_of_products_are_the_same_for_every_platform(shape, normal):
    x, y = (normal((*shape, d), "bfloat16") for d in (3, 4))
    assert np.allclose(_sum_of_rows(x, y), _sum_of_matrices(x, y), rtol=1e-5, atol=1e-5)
    matrix = y.reshape(-1, 4)[:3]
    for left, right in ((x, matrix), (y, matrix.T)):
        assert np.allclose(_product_by_columns(left, right), matmul(left, right), rtol=1e-5)


@pytest.mark.parametrize("rows", with_slow(1, 17, 33, slow=[2, 32]))
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_products_with_a_transpose_have_derivatives_of_either_mode(batch, rows, normal):
    with jax.enable_x64(True):
        x = normal((*batch, rows, 6), "float64")
        weight = normal((*batch, 5, 6), "float64")
        found = jax.jit(dot_transposed)(x, weight)
        assert np.allclose(found, np.asarray(x) @ np.asarray(weight.mT), rtol=1e-12)
        check_grads(jax.jit(dot_transposed), (x, weight), order=2)
