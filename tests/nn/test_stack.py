"""What a stack hands to its layers, and what it makes of what they return."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart.nn.stack import run_layers


class Adding(eb.nn.AbstractLayer):
    """Adds its step to the states, and counts in its cache how often it was called."""

    step: float

    def init_cache(self, batch_size, num_slots, source, dtype):
        return jnp.zeros((), jnp.int32)

    def __call__(self, hidden_states, context, cache, *, key):
        shown = {"attentions": None, "step": jnp.asarray(self.step)}
        return hidden_states + self.step, None if cache is None else cache + 1, shown


def run(layers, caches=None, **show):
    positions = jnp.arange(2)[None]
    return run_layers(
        layers,
        jnp.zeros((1, 2, 3)),
        eb.nn.Context(None, positions, positions, show=eb.nn.Show(**show)),
        caches,
        layerdrop=eb.nn.LayerDrop(0.0),
        layer_norm=None,
        checkpointing=None,
        keys=[None] * len(layers),
    )


def test_states_go_from_layer_to_layer():
    out = run((Adding(1.0), Adding(2.0), Adding(4.0)), hidden_states=True)
    assert [float(x[0, 0, 0]) for x in out.all_hidden_states] == [0, 1, 3, 7]
    assert float(out.hidden_states[0, 0, 0]) == 7
    assert [float(x) for x in out.shown["step"]] == [1, 2, 4]
    assert "attentions" not in out.shown
    assert out.caches is None
    shown = run((Adding(1.0),), attentions=True)
    assert shown.shown["attentions"] == (None,)
    assert shown.all_hidden_states is None


def test_each_layer_has_its_own_cache():
    layer = Adding(1.0)
    caches = tuple(layer.init_cache(1, 2, None, jnp.float32) + i for i in range(2))
    assert np.array_equal(run((layer, layer), caches).caches, [1, 2])
    with pytest.raises(ValueError, match="cache is that of 2 layers, and there are 3"):
        run((layer,) * 3, caches)


def test_one_layer_may_be_used_several_times():
    layers = eb.nn.RepeatedLayer(Adding(2.0), 3)
    assert len(layers) == 3
    assert layers[2] is layers.layer
    assert eqx.tree_equal(run(layers).hidden_states, run((layers.layer,) * 3).hidden_states)
    with pytest.raises(IndexError):
        layers[3]


class Counting(eb.nn.AbstractLayer):
    """A layer that counts how often it is called."""

    layer: eb.nn.AbstractLayer
    calls: list[int] = eqx.field(static=True)

    def init_cache(self, *args):
        return self.layer.init_cache(*args)

    def __call__(self, *args, key):
        self.calls[0] += 1
        return self.layer(*args, key=key)


def test_layers_that_are_alike_are_traced_once():
    calls = [0]
    layers = tuple(Counting(Adding(jnp.asarray(x)), calls) for x in (1.0, 2.0, 4.0))
    assert eqx.filter_jit(run)(layers).hidden_states[0, 0, 0] == 7
    assert calls == [1]
    assert run(layers).hidden_states[0, 0, 0] == 7
    assert calls == [4]
    other = Counting(Adding(jnp.asarray([1.0, 2.0, 3.0])), calls)
    out = eqx.filter_jit(run)((layers[0], other, layers[2]), hidden_states=True)
    assert calls == [6]
    assert np.array_equal(out.hidden_states[0, 0], [6, 7, 8])
