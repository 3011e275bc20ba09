"""One decoder layer, used six times.

Source: Dehghani et al. 2018 (arXiv:1807.03819); Lan et al. 2019 (arXiv:1909.11942),
section 3.1.
"""

import dataclasses

import equinox as eqx
import jax
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
from oracle import assert_close, assert_same_leaves
from support import check_all, checkpoint, CONFIG, default_loss, IDS, LABELS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class UniversalBart(eb.BartForConditionalGeneration):
    """BART with a decoder of one layer, used `config.decoder_layers` times."""

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)
        layers = self.model.decoder.layers
        shared = eb.nn.RepeatedLayer(layers[0], len(layers))
        self.model = eqx.tree_at(lambda m: m.decoder.layers, self.model, shared)


# --8<-- [end:model]


def universal(tmp_path, times):
    """So many times the layer of a checkpoint that has one."""
    bart = checkpoint(tmp_path / "bart", dataclasses.replace(CONFIG, decoder_layers=1))
    config = dataclasses.replace(bart.config, decoder_layers=times)
    model = eqx.nn.inference_mode(UniversalBart(config, key=jax.random.key(1)))
    shared = eb.nn.RepeatedLayer(bart.model.decoder.layers[0], times)
    trunk = eqx.tree_at(lambda m: m.decoder.layers, bart.model, shared)
    return eqx.tree_at(lambda m: m.model, model, trunk)


@pytest.mark.slow
def test_shared_layer(tmp_path):
    model = universal(tmp_path, 2)
    check_all(model, lambda m: m.model.decoder.layers, tmp_path / "shared")
    tensors = safetensors.numpy.load_file(tmp_path / "shared" / "model.safetensors")
    prefix = "model.decoder.layers."
    names = [name for name in tensors if name.startswith(prefix)]
    assert len(names) == 26
    assert all(name.startswith(f"{prefix}layer.") for name in names)


@pytest.mark.slow
def test_its_weights_are_trained_once(tmp_path):
    """By the sum of the gradients of layers of their own, as many."""
    model = universal(tmp_path, 3)
    apart = eqx.tree_at(
        lambda m: m.model.decoder.layers, model, tuple(model.model.decoder.layers)
    )
    grad = eqx.filter_jit(eqx.filter_value_and_grad(default_loss))
    value, grads = grad(model)
    expected, others = grad(apart)
    assert_close(value, expected, 1e-6)
    summed = jax.tree.map(lambda *x: sum(x), *map(arrays, others.model.decoder.layers))
    assert_same_leaves(grads.model.decoder.layers.layer, summed, 1e-5)


def test_each_use_has_a_cache(tmp_path):
    model = universal(tmp_path, 6)
    apart = eqx.tree_at(
        lambda m: m.model.decoder.layers, model, tuple(model.model.decoder.layers)
    )
    caches = [m.init_cache(m.encode(IDS, MASK), 4) for m in (model, apart)]
    ends = [
        m.decode(LABELS[:, :2], c)[1] for m, c in zip((model, apart), caches, strict=True)
    ]
    assert len(ends[0].layers) == 6
    assert all(map(np.array_equal, *map(jax.tree.leaves, ends)))
    keys = [layer.self_attention.keys for layer in ends[0].layers]
    assert not np.array_equal(keys[0], keys[1])


def arrays(module):
    return eqx.filter(module, eqx.is_inexact_array)


def test_shapes_are_checked(tmp_path):
    model = universal(tmp_path, 6)
    wrong = eb.nn.Linear(40, 31, init_std=1.0, key=jax.random.key(1))
    wrong_model = eqx.tree_at(
        lambda m: m.model.decoder.layers.layer.feed_forward.fc2, model, wrong
    )
    with pytest.raises(jaxtyping.TypeCheckError, match="d_model=48"):
        wrong_model(IDS, MASK)
