"""Buffers are their values, and no parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqx_bart as eb
from eqx_bart.nn.buffer import Buffer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_buffer_is_its_value_and_no_parameter(dtype, getkey):
    value = jax.random.normal(getkey(), (1, 7)).astype(dtype)
    buffer = Buffer(value)
    assert buffer.value.dtype == value.dtype
    assert np.array_equal(buffer.value, value)
    assert jax.tree.leaves(eqx.filter(buffer, eqx.is_inexact_array)) == []


def test_no_gradient_and_no_optimiser_moves_final_logits_bias(config, getkey, tmp_path):
    model = eb.BartForConditionalGeneration(config, key=getkey())
    bias = jax.random.normal(getkey(), (1, config.vocab_size))
    model = eqx.tree_at(lambda m: m.final_logits_bias, model, Buffer(bias))
    ids = np.array([[5, 6, 2]])
    optim = optax.adamw(0.1, weight_decay=0.5)
    state = optim.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, key):
        def loss(model):
            return jnp.mean(model(ids, key=key).logits ** 2)

        grads = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optim.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    before = model
    for _ in range(3):
        model, state = step(model, state, getkey())
    assert np.array_equal(model.final_logits_bias.value, bias)
    assert not np.array_equal(model.model.shared.weight, before.model.shared.weight)
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    restored = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", before)
    assert np.array_equal(restored.final_logits_bias.value, bias)
