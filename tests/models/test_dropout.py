"""Training mode: dropout and LayerDrop by key."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import with_slow
from oracle import CLASSES, convert, random_config, random_ids, random_model

import eqx_bart as eb
from eqx_bart.nn.feed_forward import FeedForward


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


@pytest.mark.parametrize(
    "switch", with_slow("activation_dropout", "decoder_layerdrop", slow=OFF)
)
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
    changes = {"attention_dropout": 0.25, "init_std": 0.1}
    model = build("BartModel", config, changes, getkey())
    ids = np.tile(np.arange(3, 13), (64, 1))
    encode = eqx.filter_jit(model.encode)
    weights = encode(ids, output_attentions=True, key=getkey()).attentions[0]
    weights = np.asarray(weights)
    assert abs(np.mean(weights == 0) - 0.25) < 0.01
    assert abs(np.mean(weights.sum(-1)) - 1) < 0.01


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_hidden_and_activation_dropout_zero_and_rescale(p, config, getkey):
    key = getkey()
    model = build("BartModel", config, {"dropout": p}, key)
    ids = np.tile(np.arange(3, 13), (64, 1))
    encode = eqx.filter_jit(
        lambda m, k: m.encode(ids, output_hidden_states=True, key=k).hidden_states[0]
    )
    expected = encode(eqx.nn.inference_mode(model), None)
    kept = np.asarray(encode(model, getkey()) / expected)
    assert np.all(np.isclose(kept, 0) | np.isclose(kept, 1 / (1 - p)))
    assert abs(np.mean(kept == 0) - p) < 5 * np.sqrt(p * (1 - p) / kept.size)

    size = 1000
    block = FeedForward(
        size, size, activation_function="relu", dropout=p, init_std=1, key=key
    )
    block = eqx.tree_at(lambda m: m.fc2.weight, block, jnp.eye(size))
    x = jax.random.normal(getkey(), (1, 4, size))
    positions = jnp.arange(4)[None]
    context = eb.nn.Context(None, positions, positions)
    hidden, shown = block(x, context, key=getkey())
    assert shown == {}
    kept = hidden[block.fc1(x) > 0]
    assert abs(np.mean(kept == 0) - p) < 5 * np.sqrt(p * (1 - p) / kept.size)
    assert np.allclose(kept[kept != 0], block.fc1(x)[hidden != 0] / (1 - p), rtol=1e-5)


SAMPLES = 8192


@pytest.mark.parametrize(
    "switch",
    with_slow(
        "dropout",
        "attention_dropout",
        slow=["activation_dropout", "classifier_dropout"],
    ),
)
def test_dropout_spreads_states_and_logits_as_in_pytorch(switch):
    """All samples are rows of one batch, which dropout treats independently."""
    config = random_config(np.random.default_rng(3))
    config.update({**OFF, switch: 0.4, "num_labels": 4, "decoder_layers": 2})
    theirs = random_model("BartForSequenceClassification", config, 3, torch.float32)
    ours = eqx.nn.inference_mode(convert(theirs), value=False)
    row = random_ids(np.random.default_rng(4), config, 1, 5)
    ids = np.tile(row, (SAMPLES, 1))
    with torch.no_grad():
        expected = theirs.train()(torch.from_numpy(ids))
    outputs = eqx.filter_jit(ours)(ids, key=jax.random.key(0))
    for name in ("encoder_last_hidden_state", "logits"):
        a, b = np.asarray(getattr(outputs, name)), getattr(expected, name).numpy()
        is_random = np.all(b.std(0) > 1e-3)
        assert is_random or (name, switch) == (
            "encoder_last_hidden_state",
            "classifier_dropout",
        )
        error = np.sqrt((a.var(0) + b.var(0)) / SAMPLES) + 1e-6
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * error)
        assert np.allclose(a.std(0), b.std(0), rtol=0.06, atol=1e-4)


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
