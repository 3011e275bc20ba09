"""The activation functions, against HF's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from eqx_bart.nn.activations import ACTIVATIONS


X = np.concatenate([np.linspace(-30, 30, 6001), [-1e4, -1e-9, 1e-9, 1e4]])


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_they_and_their_slopes_are_those_of_hf(name, dtype, tolerance):
    theirs = torch.tensor(X, dtype=getattr(torch, dtype), requires_grad=True)
    expected = ACT2FN[name](theirs)
    expected.sum().backward()
    with jax.enable_x64(True):
        function = ACTIVATIONS[name]
        ours = jnp.asarray(X, dtype)
        found, slopes = function(ours), jax.vmap(jax.grad(function))(ours)
    assert found.dtype == slopes.dtype == dtype
    assert np.allclose(found, expected.detach(), rtol=tolerance, atol=tolerance)
    assert np.allclose(slopes, theirs.grad, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_rounded_once(name, dtype):
    """Of all numbers that there are, at most one step from what float64 gives."""
    x = np.arange(2**16, dtype=np.uint16).view(jnp.dtype(dtype))
    with np.errstate(invalid="ignore"):  # some are no numbers
        x = x[np.abs(x.astype(float)) < 200]
    expected = ACT2FN[name](torch.tensor(x.astype(float))).numpy()
    found = np.asarray(ACTIVATIONS[name](jnp.asarray(x)))
    assert found.dtype == dtype
    step = np.spacing(np.abs(expected.astype(dtype))).astype(float)
    assert np.all(np.abs(found.astype(float) - expected) <= np.maximum(step, 1e-6))
