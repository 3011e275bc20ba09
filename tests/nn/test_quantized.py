"""Linear maps and tables of embeddings in 8 bits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart.nn.matmul import int8_dot_transposed, rounded


SHAPES = [(1, 24), (2, 24), (1, 1, 24), (3, 5, 24)]


def integers(x):
    """Rows as integers and their scales, in NumPy and float64."""
    scales = np.abs(x).max(-1, keepdims=True) / 127
    return np.rint(x / np.where(scales == 0, 1, scales)), scales


def linear(getkey, d_in=24, d_out=16):
    new = eb.nn.Linear(d_in, d_out, init_std=0.5, key=getkey())
    return eqx.tree_at(lambda x: x.bias, new, jax.random.normal(getkey(), (d_out,)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_that_of_integers(shape, getkey):
    x, plain = np.array(jax.random.normal(getkey(), shape)), linear(getkey)
    rows, row_scales = integers(x.astype(np.float64))
    weights, scales = integers(np.array(plain.weight.T, np.float64))
    expected = rows @ weights.T * row_scales * scales[:, 0] + np.array(plain.bias)
    quantized = eb.nn.Int8Linear(plain)
    assert quantized.qweight.dtype == jnp.int8
    assert quantized.shape == plain.shape
    for function in (quantized, eqx.filter_jit(quantized)):
        found = function(jnp.array(x))
        assert found.dtype == jnp.float32
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_error_of_a_weight_is_half_a_scale(dtype, getkey):
    """In units of the scale as it is stored, whatever its precision."""
    table = eb.nn.Embedding(30, 24, padding_idx=1, scale=2.0, init_std=0.5, key=getkey())
    table = eb.cast(table, dtype)
    quantized = eb.nn.Int8Embedding(table)
    assert quantized.dtype == dtype == quantized.scales.dtype
    scales = np.array(quantized.scales, np.float64)[:, None]
    exact, found = np.array(table.weight, np.float64), np.array(quantized.qweight) * scales
    half_a_step = np.maximum(0.5 * scales, np.abs(exact) - 127 * scales)
    assert (np.abs(exact - found) <= half_a_step * (1 + 1e-6)).all()
    ids = jnp.array([[0, 1, 29]])
    rows = quantized(ids)
    assert rows.dtype == dtype
    assert np.allclose(rows[0], 2 * found[[0, 1, 29]], rtol=2**-7)
    assert jnp.isnan(quantized.lookup(jnp.array([[30, -1]]))).all()
    with pytest.raises(Exception, match="30"):
        quantized(jnp.array([[30]]))


def test_logits_of_a_table(getkey):
    table = eb.nn.Embedding(30, 24, padding_idx=None, scale=1.0, init_std=0.5, key=getkey())
    states = jax.random.normal(getkey(), (3, 24))
    quantized = eb.nn.Int8Embedding(table)
    head = eb.nn.Int8Linear(
        eqx.tree_at(
            lambda x: (x.weight, x.bias), linear(getkey, 24, 30), (table.weight.T, None)
        )
    )
    assert np.allclose(quantized.attend(states), head(states), rtol=1e-6)


def test_rows_are_rounded_alone(getkey):
    """A row's answer does not depend on what stands beside it."""
    quantized, x = eb.nn.Int8Linear(linear(getkey)), jax.random.normal(getkey(), (4, 24))
    together = quantized(x.at[1].multiply(1000))
    for i in (0, 2, 3):
        assert np.array_equal(together[i], quantized(x)[i])
        assert np.allclose(together[i], quantized(x[i : i + 1])[0], rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_in_its_row(wrong, getkey):
    quantized, x = eb.nn.Int8Linear(linear(getkey)), jax.random.normal(getkey(), (3, 24))
    found = quantized(x.at[1, 2].set(wrong))
    assert jnp.isnan(found[1]).all()
    assert np.array_equal(found[::2], quantized(x)[::2])


def test_a_row_of_zeros():
    integers, scale = rounded(jnp.zeros((1, 4)))
    assert not integers.any()
    assert scale == 0
    assert not int8_dot_transposed(jnp.zeros((1, 4)), jnp.ones((3, 4), jnp.int8)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_without_rounding(shape, getkey):
    quantized = eb.nn.Int8Linear(linear(getkey))
    x, cotangent = (jax.random.normal(getkey(), shape) for _ in range(2))
    cotangent = cotangent[..., :16]
    weight = quantized.qweight * quantized.scales[:, None]
    _, pull = jax.vjp(quantized, x)
    assert np.allclose(pull(cotangent)[0], cotangent @ weight, rtol=1e-5, atol=1e-6)
    _, pushed = jax.jvp(quantized, (x,), (x,))
    assert np.allclose(pushed, x @ weight.T, rtol=1e-5, atol=1e-5)


def test_smoothing_moves_what_is_large_to_the_weights(getkey):
    """The map is the same, and the error less where one entry of the inputs is large."""
    plain, x = linear(getkey), jax.random.normal(getkey(), (64, 24)).at[:, 3].multiply(100)
    smooth = eb.nn.Int8Linear(plain, jnp.ones(24).at[3].set(0.1))
    exact = plain(x)
    errors = [jnp.abs(part(x) - exact).mean() for part in (smooth, eb.nn.Int8Linear(plain))]
    assert errors[0] < errors[1] / 3
