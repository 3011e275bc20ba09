"""BART's encoder: Lewis et al. 2019 (arXiv:1910.13461), section 2.1; HF's `BartEncoder`."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..config import BartConfig
from ..nn.attention import padding_mask
from ..nn.checks import ArrayLike, Mask
from ..nn.dropout import LayerDrop, split_key
from ..nn.embedding import (
    AbstractPositionalEmbedding,
    embed,
    Embedding,
    LearnedPositionalEmbedding,
)
from ..nn.layer import Context, Layers, NOTHING, Show
from ..nn.norm import LayerNorm
from ..nn.stack import Checkpointing, run_layers
from .layers import BartEncoderLayer
from .outputs import BaseModelOutput


class BartEncoder(eqx.Module):
    """Embeddings and a stack of layers, usually `BartEncoderLayer`s.

    `embed_tokens` is the encoder's own table of token embeddings; a model with tied
    embeddings keeps one table for all, and the encoder has none. `layer_norm` comes after
    all layers. BART has none; mBART and others with their norms before the sub-layers have
    one.
    """

    embed_tokens: Embedding | None
    embed_positions: AbstractPositionalEmbedding
    layernorm_embedding: LayerNorm
    layers: Layers
    layer_norm: LayerNorm | None
    dropout: eqx.nn.Dropout
    layerdrop: LayerDrop
    checkpointing: Checkpointing | None

    def __init__(
        self, config: BartConfig, embed_tokens: Embedding | None, *, key: PRNGKeyArray
    ):
        """Draws the weights at random, with `config.init_std`."""
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
        self.layer_norm = None
        self.dropout = eqx.nn.Dropout(config.dropout)
        self.layerdrop = LayerDrop(config.encoder_layerdrop)
        self.checkpointing = None

    def __call__(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        position_ids: Integer[Array, "#batch length"] | None = None,
        *,
        show: Show = NOTHING,
        key: PRNGKeyArray | None = None,
    ) -> BaseModelOutput:
        """Encodes token embeddings.

        **Arguments:**

        - `attention_mask`, `position_ids`, `key`: see `BartModel.encode`, which checks
            them.
        - `show`: as in `Context`.
        """
        embed_key, *layer_keys = split_key(key, 1 + len(self.layers))
        if position_ids is None:
            position_ids = self.embed_positions.span(0, inputs_embeds.shape[1])
        mask = None if attention_mask is None else jnp.asarray(attention_mask, bool)
        context = Context(
            None if mask is None else padding_mask(mask),
            position_ids,
            position_ids,
            attention_mask=mask,
            show=show,
        )
        embedded = embed(
            inputs_embeds,
            self.embed_positions.lookup(position_ids),
            self.layernorm_embedding,
            self.dropout,
            key=embed_key,
        )
        outputs = run_layers(
            self.layers,
            embedded,
            context,
            layerdrop=self.layerdrop,
            layer_norm=self.layer_norm,
            checkpointing=self.checkpointing,
            keys=layer_keys,
        )
        attentions = outputs.shown.pop("attentions", None)
        return BaseModelOutput(
            last_hidden_state=outputs.hidden_states,
            hidden_states=outputs.all_hidden_states,
            attentions=attentions,
            shown=outputs.shown or None,
        )
