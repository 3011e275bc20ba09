"""Grouped-query attention in the decoder: fewer heads for keys and values than for queries.

Source: Ainslie et al. 2023 (arXiv:2305.13245).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jaxtyping import Array, Bool, Float, Integer
from support import check_all, checkpoint, IDS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class GroupedQueryAttention(eb.nn.AbstractAttention):
    """Heads of queries share `num_key_heads` heads of keys and values."""

    q_proj: eb.nn.AbstractLinear
    k_proj: eb.nn.AbstractLinear
    v_proj: eb.nn.AbstractLinear
    out_proj: eb.nn.AbstractLinear
    dropout: eqx.nn.Dropout
    num_heads: int = eqx.field(static=True)
    num_key_heads: int = eqx.field(static=True)

    @classmethod
    def of(cls, attention, num_key_heads):
        """Of BART's attention; a shared head begins as the mean of those it replaces."""
        heads = attention.num_heads

        def shared(x):  # [..., heads * head_dim]
            groups = x.reshape(*x.shape[:-1], num_key_heads, heads // num_key_heads, -1)
            return groups.mean(-2).reshape(*x.shape[:-1], -1)

        k, v = (jax.tree.map(shared, x) for x in (attention.k_proj, attention.v_proj))
        q, out = attention.q_proj, attention.out_proj
        return cls(q, k, v, out, attention.dropout, heads, num_key_heads)

    def init_cache(self, batch_size, num_slots, dtype):
        head_dim = self.q_proj.weight.shape[1] // self.num_heads
        return eb.KeyValues.zeros(
            batch_size, self.num_key_heads, num_slots, head_dim, dtype
        )

    def key_values(self, states, positions):
        k, v = self.k_proj(states), self.v_proj(states)
        return eb.KeyValues(*(eb.nn.split_heads(x, self.num_key_heads) for x in (k, v)))

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
        query = eb.nn.split_heads(self.q_proj(hidden_states), self.num_heads)
        group = self.num_heads // self.num_key_heads
        shared = jax.tree.map(lambda x: jnp.repeat(x, group, axis=1), key_values)
        attended, weights = eb.nn.dot_product_attention(
            query, shared, mask, dropout=self.dropout, key=key
        )
        return self.out_proj(eb.nn.merge_heads(attended)), weights


class GroupedQueryBart(eb.BartForConditionalGeneration):
    """BART, of whose decoder eight query heads share two heads of keys and values."""

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)
        self.model = grouped(self.model, config.extra.get("num_key_value_heads", 2))


def grouped(model, num_key_heads):
    """`model`, a `BartModel`, with grouped-query attention in its decoder."""

    def attentions(model):
        layers = model.decoder.layers
        return [x for layer in layers for x in (layer.self_attn, layer.encoder_attn)]

    new = [GroupedQueryAttention.of(x, num_key_heads) for x in attentions(model)]
    return eqx.tree_at(attentions, model, new)


# --8<-- [end:model]


def test_grouped_query_attention(tmp_path):
    bart = checkpoint(tmp_path / "bart")
    model = eqx.nn.inference_mode(GroupedQueryBart(bart.config, key=jax.random.key(1)))
    model = eqx.tree_at(lambda m: m.model, model, grouped(bart.model, 2))
    check_all(model, lambda m: m.model.decoder, tmp_path / "grouped")
    sizes = [
        sum(x.size for x in jax.tree.leaves(m.init_cache(m.encode(IDS, MASK), 8).layers))
        for m in (model, bart)
    ]
    assert sizes[0] * 4 == sizes[1]
    attention = model.model.decoder.layers[0].self_attn
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)k_proj|d_in"):
        attention.key_values(jnp.ones((2, 3, 31)), jnp.arange(3)[None])
