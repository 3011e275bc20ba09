"""Training mode: dropout and LayerDrop by key, and gradients."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import with_slow
from oracle import CLASSES, convert, random_config, random_ids, random_mask, random_model

import eqx_bart as eb
from eqx_bart.layers import LayerDrop


IDS = np.array([[5, 6, 7, 2], [8, 9, 10, 2]])
OFF = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "classifier_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}


def build(name, config, changes, key):
    config = eb.BartConfig.from_dict(config.to_dict() | OFF | {"init_std": 0.3} | changes)
    return CLASSES[name](config, key=key)


@pytest.mark.parametrize("switch", OFF)
def test_each_switch_works_by_key_and_is_off_in_inference_mode(switch, config, getkey):
    name = "BartForSequenceClassification"
    key = getkey()
    model = build(name, config, {switch: 0.5}, key)
    call = eqx.filter_jit(lambda model, key: model(IDS, key=key).logits)
    keys = [getkey() for _ in range(8)]
    results = [np.asarray(call(model, k)) for k in keys]
    assert np.array_equal(results[0], call(model, keys[0]))
    assert len({r.tobytes() for r in results}) > 1
    plain = build(name, config, {}, key)
    inference = call(eqx.nn.inference_mode(model), None)
    assert np.array_equal(call(plain, keys[0]), inference)


def test_attention_dropout_zeroes_and_rescales_the_weights(config, getkey):
    model = build("BartModel", config, {"attention_dropout": 0.25}, getkey())
    ids = np.tile(np.arange(3, 13), (64, 1))
    encode = eqx.filter_jit(model.encode)
    weights = encode(ids, output_attentions=True, key=getkey()).attentions[0]
    weights = np.asarray(weights)
    assert abs(np.mean(weights == 0) - 0.25) < 0.01
    assert abs(np.mean(weights.sum(-1)) - 1) < 0.01


def test_layerdrop_drops_at_its_rate_and_passes_the_input_on(getkey):
    layerdrop = LayerDrop(0.3)
    old, new = jnp.zeros(3), jnp.ones(3)
    keys = jax.random.split(getkey(), 4000)
    results = jax.vmap(lambda key: layerdrop(new, old, key=key))(keys)
    assert set(results.mean(1).tolist()) == {0, 1}
    assert abs(1 - results.mean() - 0.3) < 0.03


def test_a_dropped_layer_passes_its_input_on(config, getkey):
    changes = {"encoder_layers": 3, "encoder_layerdrop": 0.5}
    model = build("BartModel", config, changes, getkey())
    call = eqx.filter_jit(
        lambda key: model.encode(IDS, output_hidden_states=True, key=key).hidden_states
    )
    dropped = [
        [bool(np.array_equal(a, b)) for a, b in itertools.pairwise(states)]
        for states in (call(getkey()) for _ in range(30))
    ]
    assert 0.3 < np.mean(dropped) < 0.7
    assert len({tuple(row) for row in dropped}) > 3


@pytest.mark.parametrize("tied", with_slow(True, slow=[False]))
def test_gradients(tied):
    rng = np.random.default_rng(5)
    config = random_config(rng)
    config.tie_word_embeddings = tied
    theirs = random_model("BartForConditionalGeneration", config, 5, torch.float64)
    ids, labels = random_ids(rng, config, 3, 6), random_ids(rng, config, 3, 5)
    ids[0, -2:] = config.pad_token_id
    mask = random_mask(rng, 3, 6)
    logits = theirs(
        torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels)
    ).logits
    logits.logsumexp(-1).square().mean().backward()
    with jax.enable_x64(True):
        ours = convert(theirs)

        @eqx.filter_jit
        @eqx.filter_grad
        def grad(model):
            logits = model(ids, mask, labels).logits
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)

        grads = grad(ours)
        assert _leaves(grads), "nothing to compare"
        expected = convert_grads(theirs)
        for a, b in zip(_leaves(grads), _leaves(expected), strict=True):
            assert np.allclose(a, b, rtol=1e-9, atol=1e-12)


def _leaves(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def convert_grads(model):
    """HF's gradients, laid out as our model."""
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(grads[name])
    return convert(model)
