"""T5's relative positions: what attention adds to its scores for the distance between query
and key, learned by buckets of distances. One table for all layers of a stack.

Source: Raffel et al. 2019 (arXiv:1910.10683), section 2.1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Array, Bool, Float, Integer
from oracle import assert_close
from safetensors.numpy import load_file
from support import check_all, checkpoint, IDS, MASK
from transformers.models.t5.modeling_t5 import T5Attention

import eqx_bart as eb


# --8<-- [start:model]
class RelativeBias(eqx.Module):
    """What is added to scores, for each bucket of distances and each head."""

    weight: Float[Array, "buckets heads"]
    bidirectional: bool = eqx.field(static=True)

    def __call__(self, positions, key_positions):
        distance = key_positions[:, None, :] - positions[:, :, None]
        return jnp.moveaxis(self.weight[self.bucket(distance)], -1, 1)

    def bucket(self, distance, furthest=128):
        """Small distances have a bucket each; larger ones share them, by logarithm."""
        buckets, first = len(self.weight), 0
        if self.bidirectional:
            buckets //= 2
            first = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance if self.bidirectional else jnp.minimum(distance, 0))
        exact = buckets // 2
        far = jnp.log(jnp.maximum(distance, 1) / exact) / np.log(furthest / exact)
        far = jnp.minimum(exact + (far * (buckets - exact)).astype(int), buckets - 1)
        return first + jnp.where(distance < exact, distance, far)


class BiasedAttention(eb.nn.AbstractAttention):
    """BART's attention, with a bias for the distance between query and key."""

    attention: eb.nn.Attention
    bias: RelativeBias

    def init_cache(self, batch_size, num_slots, dtype):
        return self.attention.init_cache(batch_size, num_slots, dtype)

    def key_values(self, states, positions):
        return self.attention.key_values(states, positions)

    def __call__(
        self,
        hidden_states: Float[Array, "batch queries d_model"],
        positions: Integer[Array, "#batch queries"],
        key_values: eb.KeyValues,
        key_positions: Integer[Array, "#batch keys"],
        mask: Bool[Array, "#batch 1 #queries keys"] | None,
        *,
        key,
    ):
        ours, bias = self.attention, self.bias(positions, key_positions)
        queries = ours.queries(hidden_states)
        return ours.attend(queries, key_values, mask, bias=bias, key=key)


class BiasedLayers(eqx.Module):
    """Layers that share a bias: it is held once, and lent to each layer as it is used."""

    layers: tuple[eb.nn.AbstractLayer, ...] = eqx.field(metadata=eb.nn.INLINED)
    relative_attention_bias: RelativeBias

    def __getitem__(self, index):
        return list(self)[index]

    def __len__(self):
        return len(self.layers)

    def __iter__(self):
        for layer in self.layers:
            biased = BiasedAttention(layer.self_attn, self.relative_attention_bias)
            yield eqx.tree_at(lambda x: x.self_attn, layer, biased)


class RelativeBart(eb.BartForConditionalGeneration):
    """BART with relative positions beside its own."""

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)
        self.model = relative(self.model)


def relative(model, buckets=32):
    """`model`, a `BartModel`, with biases that begin at 0, so that it is still the same."""

    def stacks(model):
        return model.encoder.layers, model.decoder.layers

    encoder, decoder = stacks(model)
    bias = jnp.zeros((buckets, encoder[0].self_attn.num_heads))
    new = (
        BiasedLayers(encoder, RelativeBias(bias, bidirectional=True)),
        BiasedLayers(decoder, RelativeBias(bias, bidirectional=False)),
    )
    return eqx.tree_at(stacks, model, new)


# --8<-- [end:model]


def tables(model):
    stacks = model.model.encoder, model.model.decoder
    return [stack.layers.relative_attention_bias.weight for stack in stacks]


@pytest.mark.slow
def test_relative_position_bias(tmp_path):
    bart = checkpoint(tmp_path / "bart")
    model = eqx.nn.inference_mode(RelativeBart(bart.config, key=jax.random.key(1)))
    model = eqx.tree_at(lambda m: m.model, model, relative(bart.model))
    expected = eqx.filter_jit(bart)(IDS, MASK).logits
    assert_close(eqx.filter_jit(model)(IDS, MASK).logits, expected, 1e-5)
    keys = jax.random.split(jax.random.key(2))
    model = eqx.tree_at(tables, model, [jax.random.normal(k, (32, 8)) for k in keys])
    assert np.abs(eqx.filter_jit(model)(IDS, MASK).logits - expected).max() > 0.1
    check_all(model, tables, tmp_path / "relative")

    names = load_file(tmp_path / "relative" / "model.safetensors").keys()
    added = names - load_file(tmp_path / "bart" / "model.safetensors").keys()
    table = "layers.relative_attention_bias.weight"
    assert added == {f"model.{stack}.{table}" for stack in ("encoder", "decoder")}
    assert len(jax.tree.leaves(model)) == len(jax.tree.leaves(bart)) + 2

    layer = model.model.decoder.layers[1]
    states, positions = jnp.ones((2, 3, 48)), jnp.arange(3)[None]
    keys = layer.self_attn.key_values(states, positions)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)bias.*keys"):
        layer.self_attn(states, positions, keys, jnp.arange(4)[None], None, key=None)
    few = eqx.tree_at(tables, model, [x[:, :3] for x in tables(model)])
    with pytest.raises(jaxtyping.TypeCheckError, match="heads"):
        few(IDS, MASK)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_t5(bidirectional):
    distance = np.arange(-300, 300)
    bias = RelativeBias(jnp.zeros((32, 1)), bidirectional)
    expected = T5Attention._relative_position_bucket(
        torch.from_numpy(distance), bidirectional, num_buckets=32, max_distance=128
    )
    assert np.array_equal(bias.bucket(jnp.asarray(distance)), expected.numpy())
