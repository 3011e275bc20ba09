"""Bottleneck adapters: a small network after each sub-layer, trained alone.

Source: Houlsby et al. 2019 (arXiv:1902.00751), section 2.1.
"""

import equinox as eqx
import jax
import jaxtyping
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float
from support import check_all, checkpoint, default_loss, IDS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class Adapter(eqx.Module):
    """A bottleneck with a residual: at first it changes nothing, as `up` is zero."""

    down: eb.nn.Linear
    up: eb.nn.Linear

    def __init__(self, d_model, size, *, key):
        self.down = eb.nn.Linear(d_model, size, init_std=0.01, key=key)
        self.up = eb.nn.Linear(size, d_model, init_std=0.0, key=key)

    def __call__(self, x):
        return x + self.up(jax.nn.gelu(self.down(x)))


class AdaptedLinear(eb.nn.AbstractLinear):
    """The last map of an attention, and its adapter."""

    linear: eb.nn.AbstractLinear = eqx.field(metadata=eb.nn.INLINED)
    adapter: Adapter

    def __call__(self, x: Float[Array, "*batch d_in"]):
        return self.adapter(self.linear(x))


class AdaptedFeedForward(eb.nn.AbstractFeedForward):
    """A feed-forward block, and its adapter."""

    block: eb.nn.AbstractFeedForward = eqx.field(metadata=eb.nn.INLINED)
    adapter: Adapter

    def __call__(self, x: Float[Array, "batch new d_model"], context, *, key):
        transformed, shown = self.block(x, context, key=key)
        return self.adapter(transformed), shown


class AdaptedBart(eb.BartForConditionalGeneration):
    """BART with adapters of `config.extra["adapter_size"]`, 4 by default."""

    def __init__(self, config, generation_config=None, *, key):
        bart_key, adapter_key = jax.random.split(key)
        super().__init__(config, generation_config, key=bart_key)
        keys = iter(jax.random.split(adapter_key, 5 * 24))

        def adapted(part):
            size = config.extra.get("adapter_size", 4)
            adapter = Adapter(config.d_model, size, key=next(keys))
            if isinstance(part, eb.nn.AbstractFeedForward):
                return AdaptedFeedForward(part, adapter)
            out_proj = AdaptedLinear(part.out_proj, adapter)
            return eqx.tree_at(lambda attn: attn.out_proj, part, out_proj)

        def is_sublayer(x):
            return isinstance(x, eb.nn.AbstractAttention | eb.nn.AbstractFeedForward)

        self.model = jax.tree.map(
            lambda x: adapted(x) if is_sublayer(x) else x, self.model, is_leaf=is_sublayer
        )


def adapters(model):
    """Which leaves of `model` are those of adapters: for `eqx.partition`."""

    def is_adapter(x):
        return isinstance(x, Adapter)

    return jax.tree.map(is_adapter, model, is_leaf=is_adapter)


# --8<-- [end:model]


@pytest.fixture
def bart(tmp_path):
    return checkpoint(tmp_path / "bart")


@pytest.fixture
def adapted(bart, tmp_path):
    """BART's checkpoint, and new adapters."""
    with pytest.warns(UserWarning, match=r"adapter.*drawn at random"):
        return AdaptedBart.from_pretrained(tmp_path / "bart", key=jax.random.key(1))


def trained(model, num_steps=5):
    """`model` after some steps for its adapters alone, and the losses."""
    parameters, rest = eqx.partition(model, adapters(model))
    optimiser = optax.adam(0.02)
    state = optimiser.init(parameters)

    @eqx.filter_jit
    def step(parameters, state):
        def loss(parameters):
            return default_loss(eqx.combine(parameters, rest))

        value, grads = eqx.filter_value_and_grad(loss)(parameters)
        updates, state = optimiser.update(grads, state, parameters)
        return eqx.apply_updates(parameters, updates), state, value

    losses = []
    for _ in range(num_steps):
        parameters, state, value = step(parameters, state)
        losses.append(float(value))
    return eqx.combine(parameters, rest), losses


@pytest.mark.slow
def test_adapters(adapted, tmp_path):
    """After some training: at first nothing reaches what is before `up`."""
    model, _ = trained(adapted, 2)
    check_all(model, lambda m: eqx.filter(m, adapters(m)), tmp_path / "adapted")


def test_they_are_trained_and_kept_alone(bart, adapted, tmp_path):
    call = eqx.filter_jit(lambda model: model(IDS, MASK).logits)
    assert np.array_equal(call(adapted), call(bart))
    model, losses = trained(adapted)
    assert losses[-1] < 0.9 * losses[0]
    spec = adapters(model)
    rests = [eqx.filter(m, spec, inverse=True) for m in (model, adapted)]
    assert all(map(np.array_equal, *map(jax.tree.leaves, rests)))
    file = tmp_path / "adapters.eqx"
    eqx.tree_serialise_leaves(file, eqx.filter(model, spec))
    weights = (tmp_path / "bart" / "model.safetensors").stat().st_size
    assert file.stat().st_size < weights / 3
    like = AdaptedBart(model.config, key=jax.random.key(2))
    like = eqx.filter(eqx.nn.inference_mode(like), spec)
    loaded = eqx.tree_deserialise_leaves(file, like)
    assert np.array_equal(call(eqx.combine(loaded, rests[1])), call(model))


def test_shapes_are_checked(adapted):
    wrong = Adapter(31, 4, key=jax.random.key(1))
    attention = adapted.model.encoder.layers[0].self_attn
    layer = eqx.tree_at(lambda a: a.out_proj.adapter, attention, wrong)
    model = eqx.tree_at(lambda m: m.model.encoder.layers[0].self_attn, adapted, layer)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(inner|d_in)=48"):
        model(IDS, MASK)
