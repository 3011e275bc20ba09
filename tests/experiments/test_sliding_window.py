"""Sliding-window attention in the encoder, for sources of 4,096 tokens: each token attends
to those near it, block by block, so that memory grows with the source and not with its
square. The decoder is BART's.

Source: Beltagy et al. 2020 (arXiv:2004.05150), sections 3 and 6: Longformer and LED.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Integer
from oracle import assert_close
from support import check_all, check_saved, checkpoint, CONFIG, IDS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class WindowedAttention(eb.nn.AbstractAttention):
    """BART's attention, to the `window` tokens on either side. It is for an encoder."""

    attention: eb.nn.Attention = eqx.field(metadata=eb.nn.INLINED)
    window: int = eqx.field(static=True)

    def init_cache(self, batch_size, num_slots, dtype):
        raise TypeError("WindowedAttention is for an encoder, which has no cache.")

    def key_values(self, states, positions):
        return self.attention.key_values(states, positions)

    def __call__(
        self,
        hidden_states: Float[Array, "batch queries d_model"],
        positions: Integer[Array, "#batch queries"],
        key_values: eb.KeyValues,
        key_positions: Integer[Array, "#batch keys"],
        mask: Bool[Array, "#batch 1 1 keys"] | None,
        *,
        key,
    ):
        ours, size = self.attention, self.window
        batch, length, _ = hidden_states.shape
        num_blocks = -(-length // size)

        def blocks(x, beside):
            """`[batch, heads, length, ...]` as blocks, and `beside` tokens around each."""
            around = [(0, 0)] * x.ndim
            around[2] = (beside, num_blocks * size - length + beside)
            index = jnp.arange(num_blocks)[:, None] * size + jnp.arange(size + 2 * beside)
            x = jnp.pad(x, around)[:, :, index].swapaxes(1, 2)
            return x.reshape(batch * num_blocks, *x.shape[2:])

        is_token = jnp.ones((1, 1, 1, length), bool) if mask is None else mask
        is_token = jnp.broadcast_to(is_token, (batch, 1, 1, length))
        near = blocks(is_token.swapaxes(2, 3), size).swapaxes(2, 3)
        distance = jnp.arange(3 * size) - size - jnp.arange(size)[:, None]
        near = near & (jnp.abs(distance) <= size)
        query = ours.queries(hidden_states)
        key_values = jax.tree.map(lambda x: blocks(x, size), key_values)
        attended, _ = eb.nn.dot_product_attention(
            blocks(query, 0), key_values, near, dropout=ours.dropout, key=key
        )
        attended = attended.reshape(batch, num_blocks, *attended.shape[1:])
        attended = attended.swapaxes(1, 2).reshape(*query.shape[:2], -1, query.shape[-1])
        return ours.out_proj(eb.nn.merge_heads(attended[:, :, :length])), None


class WindowedBart(eb.BartForConditionalGeneration):
    """BART for long sources. It reads any checkpoint of BART: the names are the same."""

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)

        def attentions(model):
            return [layer.self_attn for layer in model.model.encoder.layers]

        window = config.extra.get("attention_window", 256)
        new = [WindowedAttention(x, window) for x in attentions(self)]
        self.model = eqx.tree_at(attentions, self, new).model
        longest = config.extra.get("max_encoder_position_embeddings")
        if longest is not None:
            self.model = with_positions(self.model, longest)


def with_positions(model, num):
    """`model`, a `BartModel`, whose encoder has `num` positions, copies of those it has."""

    def table(model):
        return model.encoder.embed_positions.weight

    offset = len(table(model)) - model.encoder.embed_positions.max_positions
    unused, rows = jnp.split(table(model), [offset])
    rows = jnp.tile(rows, (-(-num // len(rows)), 1))[:num]
    return eqx.tree_at(table, model, jnp.concatenate([unused, rows]))


def lengthened(model, num):
    """`model`, a `WindowedBart`, for sources of `num` tokens."""
    extra = {**model.config.extra, "max_encoder_position_embeddings": num}
    config = dataclasses.replace(model.config, extra=extra)
    longer = with_positions(model.model, num)
    return eqx.tree_at(lambda m: m.model, model, longer).with_config(config)


# --8<-- [end:model]


def windowed(directory, window, config=CONFIG):
    """A BART, and what its checkpoint is with windows."""
    bart = checkpoint(directory, config)
    config = dataclasses.replace(bart.config, extra={"attention_window": window})
    return bart, WindowedBart.from_pretrained(directory, config=config)


@pytest.mark.slow
def test_sliding_window(tmp_path):
    bart, model = windowed(tmp_path / "bart", 2)
    check_all(model, lambda m: m.model.encoder.layers, tmp_path / "windowed")
    expected = eqx.filter_jit(bart)(IDS, MASK).logits
    found = eqx.filter_jit(model)(IDS, MASK).logits
    assert np.abs(found - expected).max() > 1e-2
    _, wide = windowed(tmp_path / "bart", 5)
    assert_close(eqx.filter_jit(wide)(IDS, MASK).logits, expected, 1e-5)
    attention = model.model.encoder.layers[0].self_attn
    states, positions = jnp.ones((2, 3, 48)), jnp.arange(3)[None]
    keys = attention.key_values(states, positions)
    with pytest.raises(jaxtyping.TypeCheckError, match="d_in=31"):
        attention(states[..., :31], positions, keys, positions, None, key=None)
    few = jax.tree.map(lambda x: x[..., :3], keys)
    with pytest.raises(jaxtyping.TypeCheckError, match="head_dim"):
        attention(states, positions, few, positions, None, key=None)


@pytest.mark.parametrize(("length", "window"), [(11, 3), (12, 4), (7, 20)])
def test_window_is_full_attention_in_a_band(length, window):
    """With padding on the right, on the left, and within."""
    full = eb.nn.Attention(16, 2, dropout=0.0, init_std=0.5, key=jax.random.key(0))
    attention = WindowedAttention(full, window)
    states = jax.random.normal(jax.random.key(1), (4, length, 16))
    positions, mask = jnp.arange(length)[None], np.ones((4, length), bool)
    mask[1, length // 2 + 1 :] = False
    mask[2, : length // 2] = False
    mask[3, length // 3] = False
    mask = jnp.asarray(mask)[:, None, None, :]
    distance = positions[0] - positions[0][:, None]
    band = (jnp.abs(distance) <= window)[None, None]
    keys = full.key_values(states, positions)

    @eqx.filter_jit
    def attend(attention, mask):
        return attention(states, positions, keys, positions, mask, key=None)[0]

    for m, both in ((mask, mask & band), (None, band)):
        found, expected = attend(attention, m), attend(full, both)
        reads = np.any(np.broadcast_to(both, (4, 1, length, length)), axis=(1, 3))
        assert_close(found[reads], expected[reads], 1e-5)
        assert jnp.isfinite(found).all()


def test_long_sources(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        max_position_embeddings=1024,
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    bart, short = windowed(tmp_path / "bart", 64, config)
    model = lengthened(short, 4096)
    table = model.model.encoder.embed_positions.weight
    old = bart.model.encoder.embed_positions.weight
    assert np.array_equal(table[:1026], old)
    for copy in jnp.split(table[2:], 4):
        assert np.array_equal(copy, old[2:])
    check_saved(model, tmp_path / "long")

    ids = np.random.default_rng(0).integers(3, config.vocab_size, (1, 4096))
    with pytest.raises(ValueError, match="1024"):
        short.encode(ids)
    found = {n: memory(model, ids[:, :n]) for n in (1024, 2048, 4096)}
    assert found[4096] < 2.1 * found[2048] < 4.4 * found[1024], found
    full = memory(bart, ids[:, :1024])
    assert full > 3.5 * memory(bart, ids[:, :512])
    assert full > found[4096]

    padded = np.pad(ids[:, :3000], [(0, 0), (1096, 0)], constant_values=1)
    answers = [
        model.generate(x, x != 1, max_new_tokens=3).sequences[:, -3:]
        for x in (ids[:, :3000], padded)
    ]
    assert np.array_equal(*answers)


def memory(model, ids):
    """What `encode` needs beside its input and its output, in bytes."""
    encode = eqx.filter_jit(lambda model, ids: model.encode(ids).last_hidden_state)
    compiled = encode.lower(model, ids).compile()
    return compiled.compiled.memory_analysis().temp_size_in_bytes
