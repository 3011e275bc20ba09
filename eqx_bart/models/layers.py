"""The layers of BART's encoder and decoder.

Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.1; HF's `BartEncoderLayer` and
`BartDecoderLayer`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import BartConfig
from ..nn.attention import AbstractAttention, Attention
from ..nn.cache import KeyValues
from ..nn.dropout import split_key
from ..nn.feed_forward import AbstractFeedForward, FeedForward, transform
from ..nn.layer import AbstractLayer, Context, cross_attend, self_attend, Shown, Source
from ..nn.linear import AbstractLinear
from ..nn.mesh import on_any_mesh
from ..nn.norm import LayerNorm
from ..nn.segments import any_in_segment
from ..nn.stored import INLINED


class BartLayer(AbstractLayer):
    """What the layers of encoder and decoder share: HF's names for two linear maps."""

    feed_forward: eqx.AbstractVar[AbstractFeedForward]

    @property
    def fc1(self) -> AbstractLinear:
        """`feed_forward.fc1`."""
        return self.feed_forward.fc1  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def fc2(self) -> AbstractLinear:
        """`feed_forward.fc2`."""
        return self.feed_forward.fc2  # pyright: ignore[reportAttributeAccessIssue]


class BartEncoderLayer(BartLayer):
    """Self-attention and feed-forward, each followed by a residual and a layer norm."""

    self_attn: AbstractAttention
    self_attn_layer_norm: LayerNorm
    feed_forward: AbstractFeedForward = eqx.field(metadata=INLINED)
    final_layer_norm: LayerNorm
    dropout: eqx.nn.Dropout

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random, with `config.init_std`."""
        attn_key, ffn_key = jax.random.split(key)
        self.self_attn = _attention(config, config.encoder_attention_heads, attn_key)
        self.self_attn_layer_norm = LayerNorm(config.d_model)
        self.feed_forward = _feed_forward(config, config.encoder_ffn_dim, ffn_key)
        self.final_layer_norm = LayerNorm(config.d_model)
        self.dropout = eqx.nn.Dropout(config.dropout)

    def init_cache(
        self, batch_size: int, num_slots: int, source: Any, dtype: DTypeLike
    ) -> None:
        return None

    @on_any_mesh
    def __call__(
        self,
        hidden_states: Float[Array, "batch new d_model"],
        context: Context,
        cache: Any = None,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "batch new d_model"], Any, Shown]:
        keys = split_key(key, 4)
        attended, cache, weights = self_attend(
            self.self_attn, hidden_states, context, cache, key=keys[0]
        )
        hidden_states = self.self_attn_layer_norm(
            hidden_states + self.dropout(attended, key=keys[1])
        )
        transformed, shown = transform(
            self.feed_forward, hidden_states, context, key=keys[2]
        )
        hidden_states = self.final_layer_norm(
            hidden_states + self.dropout(transformed, key=keys[3])
        )
        hidden_states = _without_overflow(hidden_states, context)
        return hidden_states, cache, {"attentions": weights, **shown}


class DecoderLayerCache(eqx.Module):
    """What a `BartDecoderLayer` remembers: keys and values of the tokens, and of the
    encoder's states if there are any."""

    self_attention: KeyValues
    cross_attention: KeyValues | None


class BartDecoderLayer(BartLayer):
    """Self-attention, attention to the encoder, and feed-forward, each followed by a
    residual and a layer norm."""

    self_attn: AbstractAttention
    self_attn_layer_norm: LayerNorm
    encoder_attn: AbstractAttention
    encoder_attn_layer_norm: LayerNorm
    feed_forward: AbstractFeedForward = eqx.field(metadata=INLINED)
    final_layer_norm: LayerNorm
    dropout: eqx.nn.Dropout

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random, with `config.init_std`."""
        self_key, encoder_key, ffn_key = jax.random.split(key, 3)
        heads = config.decoder_attention_heads
        self.self_attn = _attention(config, heads, self_key)
        self.self_attn_layer_norm = LayerNorm(config.d_model)
        self.encoder_attn = _attention(config, heads, encoder_key)
        self.encoder_attn_layer_norm = LayerNorm(config.d_model)
        self.feed_forward = _feed_forward(config, config.decoder_ffn_dim, ffn_key)
        self.final_layer_norm = LayerNorm(config.d_model)
        self.dropout = eqx.nn.Dropout(config.dropout)

    def init_cache(
        self, batch_size: int, num_slots: int, source: Source | None, dtype: DTypeLike
    ) -> DecoderLayerCache:
        cross_attention = None
        if source is not None:
            cross_attention = self.encoder_attn.key_values(
                source.hidden_states, source.positions
            )
        slots = self.self_attn.init_cache(batch_size, num_slots, dtype)
        return DecoderLayerCache(slots, cross_attention)

    @on_any_mesh
    def __call__(
        self,
        hidden_states: Float[Array, "batch new d_model"],
        context: Context,
        cache: DecoderLayerCache | None = None,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "batch new d_model"], DecoderLayerCache | None, Shown]:
        keys = split_key(key, 6)
        slots, cross_cache = None, None
        if cache is not None:
            slots, cross_cache = cache.self_attention, cache.cross_attention
        attended, slots, weights = self_attend(
            self.self_attn, hidden_states, context, slots, key=keys[0]
        )
        hidden_states = self.self_attn_layer_norm(
            hidden_states + self.dropout(attended, key=keys[1])
        )
        cross_weights = None
        if context.source is not None:
            attended, cross_weights = cross_attend(
                self.encoder_attn,
                hidden_states,
                context,
                context.source,
                cross_cache,
                key=keys[2],
            )
            hidden_states = self.encoder_attn_layer_norm(
                hidden_states + self.dropout(attended, key=keys[3])
            )
        transformed, shown = transform(
            self.feed_forward, hidden_states, context, key=keys[4]
        )
        hidden_states = self.final_layer_norm(
            hidden_states + self.dropout(transformed, key=keys[5])
        )
        next_cache = None if slots is None else DecoderLayerCache(slots, cross_cache)
        shows = {"attentions": weights, "cross_attentions": cross_weights, **shown}
        return hidden_states, next_cache, shows


def _without_overflow(
    hidden_states: Float[Array, "batch new d_model"], context: Context
) -> Float[Array, "batch new d_model"]:
    """The states, clamped in examples where float16 overflows. HF's encoder layers clamp
    all rows if one overflows. Overflow in padding changes nothing but the padding."""
    if hidden_states.dtype != jnp.float16:
        return hidden_states
    limit = float(jnp.finfo(jnp.float16).max) - 1000
    is_over = jnp.any(~jnp.isfinite(hidden_states), axis=-1)
    counts = is_over if context.attention_mask is None else is_over & context.attention_mask
    is_clamped = is_over | any_in_segment(counts, context.segment_ids)
    clamped = jnp.clip(hidden_states, -limit, limit)
    return jnp.where(is_clamped[..., None], clamped, hidden_states)


def _attention(config: BartConfig, num_heads: int, key: PRNGKeyArray) -> Attention:
    return Attention(
        config.d_model,
        num_heads,
        dropout=config.attention_dropout,
        init_std=config.init_std,
        key=key,
    )


def _feed_forward(config: BartConfig, ffn_dim: int, key: PRNGKeyArray) -> FeedForward:
    return FeedForward(
        config.d_model,
        ffn_dim,
        activation_function=config.activation_function,
        dropout=config.activation_dropout,
        init_std=config.init_std,
        key=key,
    )
