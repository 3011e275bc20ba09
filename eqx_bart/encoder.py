"""BART's encoder: Lewis et al. 2019 (arXiv:1910.13461), section 2.1; HF's `BartEncoder`."""

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from .attention import Attention, padding_mask
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
from .outputs import BaseModelOutput


class BartEncoderLayer(eqx.Module):
    """Self-attention and feed-forward, each followed by a residual and a layer norm."""

    self_attn: Attention
    self_attn_layer_norm: LayerNorm
    fc1: Linear
    fc2: Linear
    final_layer_norm: LayerNorm
    dropout: eqx.nn.Dropout
    activation_dropout: eqx.nn.Dropout
    activation_function: str = eqx.field(static=True)

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        attn_key, fc1_key, fc2_key = jax.random.split(key, 3)
        d_model, ffn_dim, std = config.d_model, config.encoder_ffn_dim, config.init_std
        self.self_attn = Attention(
            d_model,
            config.encoder_attention_heads,
            dropout=config.attention_dropout,
            init_std=std,
            key=attn_key,
        )
        self.self_attn_layer_norm = LayerNorm(d_model)
        self.fc1 = Linear(d_model, ffn_dim, init_std=std, key=fc1_key)
        self.fc2 = Linear(ffn_dim, d_model, init_std=std, key=fc2_key)
        self.final_layer_norm = LayerNorm(d_model)
        self.dropout = eqx.nn.Dropout(config.dropout)
        self.activation_dropout = eqx.nn.Dropout(config.activation_dropout)
        self.activation_function = config.activation_function

    def __call__(
        self,
        hidden_states: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch 1 1 length"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[
        Float[Array, "batch length d_model"], Float[Array, "batch heads length length"]
    ]:
        """Returns the new hidden states and the attention weights."""
        attn_key, attn_out_key, ffn_key, ffn_out_key = split_key(key, 4)
        attended, weights = self.self_attn(
            hidden_states, self.self_attn.key_values(hidden_states), mask, key=attn_key
        )
        hidden_states = self.self_attn_layer_norm(
            hidden_states + self.dropout(attended, key=attn_out_key)
        )
        transformed = feed_forward(
            self.fc1,
            self.fc2,
            self.activation_function,
            self.activation_dropout,
            hidden_states,
            key=ffn_key,
        )
        hidden_states = self.final_layer_norm(
            hidden_states + self.dropout(transformed, key=ffn_out_key)
        )
        return hidden_states, weights


class BartEncoder(eqx.Module):
    """Embeddings and a stack of `BartEncoderLayer`s.

    `embed_tokens` is the encoder's own table of token embeddings; a model with tied
    embeddings keeps one table for all, and the encoder has none.
    """

    embed_tokens: Embedding | None
    embed_positions: LearnedPositionalEmbedding
    layernorm_embedding: LayerNorm
    layers: tuple[BartEncoderLayer, ...]
    dropout: eqx.nn.Dropout
    layerdrop: LayerDrop
    checkpointing: Checkpointing | None = eqx.field(static=True)

    def __init__(
        self, config: BartConfig, embed_tokens: Embedding | None, *, key: PRNGKeyArray
    ):
        position_key, *layer_keys = jax.random.split(key, 1 + config.encoder_layers)
        self.embed_tokens = embed_tokens
        self.embed_positions = LearnedPositionalEmbedding(
            config.max_position_embeddings,
            config.d_model,
            init_std=config.init_std,
            key=position_key,
        )
        self.layernorm_embedding = LayerNorm(config.d_model)
        self.layers = tuple(BartEncoderLayer(config, key=key) for key in layer_keys)
        self.dropout = eqx.nn.Dropout(config.dropout)
        self.layerdrop = LayerDrop(config.encoder_layerdrop)
        self.checkpointing = None

    def __call__(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        position_ids: Integer[ArrayLike, "#batch length"] | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> BaseModelOutput:
        """Encodes token embeddings. See `BartModel.encode`."""
        embed_key, *layer_keys = split_key(key, 1 + len(self.layers))
        if position_ids is None:
            positions = self.embed_positions.span(0, inputs_embeds.shape[1])
        else:
            positions = self.embed_positions(position_ids)
        hidden = embed(
            inputs_embeds, positions, self.layernorm_embedding, self.dropout, key=embed_key
        )
        mask = None if attention_mask is None else padding_mask(attention_mask)

        hidden_states, attentions = [hidden], []
        for layer, layer_key in zip(self.layers, layer_keys, strict=True):
            drop_key, layer_key = split_key(layer_key, 2)
            apply = layer if self.checkpointing is None else self.checkpointing(layer)
            new, weights = apply(hidden, mask, key=layer_key)
            hidden = self.layerdrop(new, hidden, key=drop_key)
            if output_hidden_states:
                hidden_states.append(hidden)
            if output_attentions:
                attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
