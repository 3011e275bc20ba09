"""BART's decoder: Lewis et al. 2019 (arXiv:1910.13461), section 2.1; HF's `BartDecoder`."""

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from .attention import Attention, causal_mask, padding_mask
from .cache import BartCache, KeyValues
from .checks import ArrayLike, Mask
from .config import BartConfig
from .layers import (
    Checkpointing,
    embed,
    Embedding,
    feed_forward,
    LayerDrop,
    LayerNorm,
    LearnedPositionalEmbedding,
    Linear,
    split_key,
)
from .outputs import BaseModelOutputWithCrossAttentions


class BartDecoderLayer(eqx.Module):
    """Self-attention, attention to the encoder, and feed-forward, each followed by a
    residual and a layer norm."""

    self_attn: Attention
    self_attn_layer_norm: LayerNorm
    encoder_attn: Attention
    encoder_attn_layer_norm: LayerNorm
    fc1: Linear
    fc2: Linear
    final_layer_norm: LayerNorm
    dropout: eqx.nn.Dropout
    activation_dropout: eqx.nn.Dropout
    activation_function: str = eqx.field(static=True)

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        self_key, encoder_key, fc1_key, fc2_key = jax.random.split(key, 4)
        d_model, ffn_dim, std = config.d_model, config.decoder_ffn_dim, config.init_std

        def attention(key: PRNGKeyArray) -> Attention:
            return Attention(
                d_model,
                config.decoder_attention_heads,
                dropout=config.attention_dropout,
                init_std=std,
                key=key,
            )

        self.self_attn = attention(self_key)
        self.self_attn_layer_norm = LayerNorm(d_model)
        self.encoder_attn = attention(encoder_key)
        self.encoder_attn_layer_norm = LayerNorm(d_model)
        self.fc1 = Linear(d_model, ffn_dim, init_std=std, key=fc1_key)
        self.fc2 = Linear(ffn_dim, d_model, init_std=std, key=fc2_key)
        self.final_layer_norm = LayerNorm(d_model)
        self.dropout = eqx.nn.Dropout(config.dropout)
        self.activation_dropout = eqx.nn.Dropout(config.activation_dropout)
        self.activation_function = config.activation_function

    def __call__(
        self,
        hidden_states: Float[Array, "batch length d_model"],
        key_values: KeyValues,
        mask: Bool[Array, "#batch 1 length keys"],
        encoder_key_values: KeyValues | None,
        encoder_mask: Bool[Array, "batch 1 1 source"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[
        Float[Array, "batch length d_model"],
        Float[Array, "batch heads length keys"],
        Float[Array, "batch heads length source"] | None,
    ]:
        """Returns the new hidden states, the self-attention weights and, if there is an
        encoder to attend to, the cross-attention weights."""
        keys = split_key(key, 6)
        attended, weights = self.self_attn(hidden_states, key_values, mask, key=keys[0])
        hidden_states = self.self_attn_layer_norm(
            hidden_states + self.dropout(attended, key=keys[1])
        )
        cross_weights = None
        if encoder_key_values is not None:
            attended, cross_weights = self.encoder_attn(
                hidden_states, encoder_key_values, encoder_mask, key=keys[2]
            )
            hidden_states = self.encoder_attn_layer_norm(
                hidden_states + self.dropout(attended, key=keys[3])
            )
        transformed = feed_forward(
            self.fc1,
            self.fc2,
            self.activation_function,
            self.activation_dropout,
            hidden_states,
            key=keys[4],
        )
        hidden_states = self.final_layer_norm(
            hidden_states + self.dropout(transformed, key=keys[5])
        )
        return hidden_states, weights, cross_weights


class BartDecoder(eqx.Module):
    """Embeddings and a stack of `BartDecoderLayer`s.

    `embed_tokens` is the decoder's own table of token embeddings; an encoder-decoder
    with tied embeddings keeps one table for all, and its decoder has none.
    """

    embed_tokens: Embedding | None
    embed_positions: LearnedPositionalEmbedding
    layernorm_embedding: LayerNorm
    layers: tuple[BartDecoderLayer, ...]
    dropout: eqx.nn.Dropout
    layerdrop: LayerDrop
    checkpointing: Checkpointing | None = eqx.field(static=True)

    def __init__(
        self, config: BartConfig, embed_tokens: Embedding | None, *, key: PRNGKeyArray
    ):
        position_key, *layer_keys = jax.random.split(key, 1 + config.decoder_layers)
        self.embed_tokens = embed_tokens
        self.embed_positions = LearnedPositionalEmbedding(
            config.max_position_embeddings,
            config.d_model,
            init_std=config.init_std,
            key=position_key,
        )
        self.layernorm_embedding = LayerNorm(config.d_model)
        self.layers = tuple(BartDecoderLayer(config, key=key) for key in layer_keys)
        self.dropout = eqx.nn.Dropout(config.dropout)
        self.layerdrop = LayerDrop(config.decoder_layerdrop)
        self.checkpointing = None

    def cross_attention(
        self, encoder_hidden_states: Float[Array, "batch source d_model"]
    ) -> tuple[KeyValues, ...]:
        """For each layer, the keys and values of the encoder's last hidden state."""
        return tuple(
            layer.encoder_attn.key_values(encoder_hidden_states) for layer in self.layers
        )

    def __call__(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        encoder_hidden_states: Float[Array, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        position_ids: Integer[ArrayLike, "#batch length"] | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> BaseModelOutputWithCrossAttentions:
        """Decodes the embeddings of all tokens at once; see `BartModel.decode`."""
        mask = causal_mask(inputs_embeds.shape[1])
        if attention_mask is not None:
            mask = mask & padding_mask(attention_mask)
        cross_attention = ()
        if encoder_hidden_states is not None:
            cross_attention = self.cross_attention(encoder_hidden_states)
        outputs, _ = self._run(
            inputs_embeds,
            self._positions(inputs_embeds, 0, position_ids),
            mask,
            cross_attention,
            encoder_attention_mask,
            None,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=key,
        )
        return outputs

    def step(
        self,
        inputs_embeds: Float[Array, "batch new d_model"],
        cache: BartCache,
        attention_mask: Mask[ArrayLike, "batch new"] | None = None,
        position_ids: Integer[ArrayLike, "#batch new"] | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[BaseModelOutputWithCrossAttentions, BartCache]:
        """Decodes the embeddings of the tokens that follow those in `cache`.

        That the cache fits them is for the caller to see to; see `BartCache.check`.
        """
        if attention_mask is not None:
            cache = cache.mask_tokens(attention_mask)
        return self.extend(
            inputs_embeds,
            self._positions(inputs_embeds, cache.length, position_ids),
            cache,
            cache.mask(inputs_embeds.shape[1]),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=key,
        )

    def extend(
        self,
        inputs_embeds: Float[Array, "batch new d_model"],
        positions: Float[Array, "#batch new d_model"],
        cache: BartCache,
        mask: Bool[Array, "#batch 1 new slots"],
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[BaseModelOutputWithCrossAttentions, BartCache]:
        """`step` with the embeddings of positions, and with a mask over the slots of the
        cache, which says what each of the new tokens attends to."""
        outputs, self_attention = self._run(
            inputs_embeds,
            positions,
            mask,
            cache.cross_attention,
            cache.encoder_attention_mask,
            cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=key,
        )
        return outputs, cache.advance(self_attention, inputs_embeds.shape[1])

    def _positions(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        start: int | Integer[Array, ""],
        position_ids: Integer[ArrayLike, "#batch length"] | None,
    ) -> Float[Array, "#batch length d_model"]:
        """The embeddings of `position_ids`, or of the positions from `start` on."""
        if position_ids is None:
            return self.embed_positions.span(start, inputs_embeds.shape[1])
        return self.embed_positions(position_ids, "decoder_position_ids")

    def _run(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        positions: Float[Array, "#batch length d_model"],
        mask: Bool[Array, "#batch 1 length keys"],
        cross_attention: tuple[KeyValues, ...],
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None,
        cache: BartCache | None,
        *,
        output_attentions: bool,
        output_hidden_states: bool,
        key: PRNGKeyArray | None,
    ) -> tuple[BaseModelOutputWithCrossAttentions, tuple[KeyValues, ...]]:
        """The layers; returns the outputs and what each layer's self-attention attended
        to, which with a cache is what it holds and the new tokens behind it."""
        encoder_mask = None
        if encoder_attention_mask is not None:
            encoder_mask = padding_mask(encoder_attention_mask)
        embed_key, *layer_keys = split_key(key, 1 + len(self.layers))
        hidden = embed(
            inputs_embeds, positions, self.layernorm_embedding, self.dropout, key=embed_key
        )
        hidden_states, attentions, cross_attentions, self_attention = [hidden], [], [], []
        for i, (layer, layer_key) in enumerate(zip(self.layers, layer_keys, strict=True)):
            drop_key, layer_key = split_key(layer_key, 2)
            key_values = layer.self_attn.key_values(hidden)
            if cache is not None:
                key_values = cache.self_attention[i].write(key_values, cache.length)
            apply = layer if self.checkpointing is None else self.checkpointing(layer)
            new, weights, cross_weights = apply(
                hidden,
                key_values,
                mask,
                cross_attention[i] if cross_attention else None,
                encoder_mask,
                key=layer_key,
            )
            hidden = self.layerdrop(new, hidden, key=drop_key)
            self_attention.append(key_values)
            if output_hidden_states:
                hidden_states.append(hidden)
            if output_attentions:
                attentions.append(weights)
                cross_attentions.append(cross_weights)
        has_cross_attentions = output_attentions and bool(cross_attention)
        outputs = BaseModelOutputWithCrossAttentions(
            last_hidden_state=hidden,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if has_cross_attentions else None,
        )
        return outputs, tuple(self_attention)
