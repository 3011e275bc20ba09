"""Rotary positions in all self-attention, instead of learned ones: queries and keys are
rotated by their positions, so that their products depend on distances alone.

Source: Su et al. 2021 (arXiv:2104.09864).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Integer
from oracle import assert_close
from support import check_all, checkpoint, CONFIG, IDS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class RotaryAttention(eb.nn.AbstractAttention):
    """BART's attention with rotated queries and keys. A key is rotated once, when it is
    made, and so stands in the cache."""

    attention: eb.nn.Attention = eqx.field(metadata=eb.nn.INLINED)

    def init_cache(self, batch_size, num_slots, dtype):
        return self.attention.init_cache(batch_size, num_slots, dtype)

    def key_values(self, states, positions: Integer[Array, "#batch length"]):
        key_values = self.attention.key_values(states, positions)
        return eb.KeyValues(rotated(key_values.keys, positions), key_values.values)

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
        queries = rotated(self.attention.queries(hidden_states), positions)
        return self.attention.attend(queries, key_values, mask, key=key)


def rotated(x, positions, base=10_000):
    """`x`, `[batch, heads, length, head_dim]`, whose pairs of features are rotated."""
    half = x.shape[-1] // 2
    angles = positions[:, None, :, None] * base ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class RotaryBart(eb.BartForConditionalGeneration):
    """BART whose self-attention has rotary positions."""

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)
        self.model = rotary(self.model)


def rotary(model):
    """`model`, a `BartModel`, with rotary positions instead of its learned ones."""

    def attentions(model):
        return [x.self_attn for s in (model.encoder, model.decoder) for x in s.layers]

    def positions(model):
        return [model.encoder.embed_positions, model.decoder.embed_positions]

    new = [RotaryAttention(x) for x in attentions(model)]
    model = eqx.tree_at(attentions, model, new)
    new = [eb.nn.NoPositionalEmbedding(x.max_positions) for x in positions(model)]
    return eqx.tree_at(positions, model, new)


# --8<-- [end:model]


@pytest.mark.slow
def test_rotary_positions(tmp_path):
    bart = checkpoint(tmp_path / "bart")
    model = eqx.nn.inference_mode(RotaryBart(bart.config, key=jax.random.key(1)))
    model = eqx.tree_at(lambda m: m.model, model, rotary(bart.model))
    unexpected = r"(?s)\bdecoder\.embed_pos\S+ unexpected.*\bencoder\.embed_pos\S+ unexp"
    with pytest.raises(eb.CheckpointError, match=unexpected):
        RotaryBart.from_pretrained(tmp_path / "bart")

    def new(model):
        stacks = model.model.encoder, model.model.decoder
        return [layer.self_attn for stack in stacks for layer in stack.layers]

    check_all(model, new, tmp_path / "rotary")
    attention = model.model.decoder.layers[0].self_attn
    states, positions = jnp.ones((2, 3, 48)), jnp.arange(3)[None]
    with pytest.raises(jaxtyping.TypeCheckError, match="length"):
        attention.key_values(states, jnp.arange(4)[None])
    keys = attention.key_values(states, positions)
    mask = jnp.ones((2, 1, 5, 3), bool)
    with pytest.raises(jaxtyping.TypeCheckError, match="queries"):
        attention(states, positions, keys, positions, mask, key=None)


def test_rotary_positions_are_relative(tmp_path):
    """Shifted positions and left-padded prompts change nothing, as they do in BART."""
    bart = eqx.nn.inference_mode(
        eb.BartForConditionalGeneration(CONFIG, key=jax.random.key(1))
    )
    model = eqx.nn.inference_mode(RotaryBart(CONFIG, key=jax.random.key(1)))
    ids = np.array([[2, 5, 7, 9], [2, 8, 3, 30]])
    padded = np.pad(ids, [(0, 0), (3, 0)], constant_values=CONFIG.pad_token_id)
    is_token = np.arange(7) >= np.full((2, 1), 3)
    source, target = np.arange(5)[None], np.arange(4)[None]

    @eqx.filter_jit
    def run(model, ids, mask, source, target):
        return model(IDS, MASK, ids, mask, source, target).logits[:, -4:]

    def logits(model, ids, mask=ids != -1, source=source, target=target):
        return run(model, ids, mask, source, target)

    for m, is_relative in ((model, True), (bart, False)):
        expected = logits(m, ids)
        for found in (
            logits(m, ids, target=target + 3),
            logits(m, ids, source=source + 2),
            logits(m, padded, is_token, target=np.arange(7)[None]),
        ):
            if is_relative:
                assert_close(found, expected, 1e-5)
            else:
                assert np.abs(found - expected).max() > 1e-2
    stretched = logits(model, ids, target=target * 2)
    assert np.abs(stretched - logits(model, ids)).max() > 1e-3
    found, expected = (
        model.generate(
            IDS, MASK, decoder_input_ids=x, decoder_attention_mask=m, max_new_tokens=4
        ).sequences[:, -4:]
        for x, m in ((padded, is_token), (ids, None))
    )
    assert np.array_equal(found, expected)
