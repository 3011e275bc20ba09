"""What encoder and decoder share: embeddings, and a stack of layers."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import BartConfig
from ..nn.dropout import LayerDrop, split_key
from ..nn.embedding import (
    AbstractEmbedding,
    AbstractPositionalEmbedding,
    embed,
    LearnedPositionalEmbedding,
)
from ..nn.layer import AbstractLayer, Context, Layers
from ..nn.norm import LayerNorm
from ..nn.stack import Checkpointing, run_layers, StackOutput


class BartStack(eqx.Module):
    """Embeddings and a stack of layers: the base of `BartEncoder` and `BartDecoder`.

    `embed_tokens` is a stack's own table of token embeddings; an encoder-decoder with tied
    embeddings keeps one table for all, and its stacks have none. `layer_norm` comes after
    all layers. BART has none; mBART and others with their norms before the sub-layers have
    one.
    """

    embed_tokens: AbstractEmbedding | None
    embed_positions: AbstractPositionalEmbedding
    layernorm_embedding: LayerNorm
    layers: Layers
    layer_norm: LayerNorm | None
    dropout: eqx.nn.Dropout
    layerdrop: LayerDrop
    checkpointing: Checkpointing | None

    def __init__(
        self,
        config: BartConfig,
        embed_tokens: AbstractEmbedding | None,
        layer: Callable[..., AbstractLayer],
        num_layers: int,
        layerdrop: float,
        *,
        key: PRNGKeyArray,
    ):
        """Draws the weights at random, with `config.init_std`. Each of the `num_layers`
        layers is a `layer(config, key=...)`."""
        position_key, *layer_keys = jax.random.split(key, 1 + num_layers)
        self.embed_tokens = embed_tokens
        self.embed_positions = LearnedPositionalEmbedding(
            config.max_position_embeddings,
            config.d_model,
            init_std=config.init_std,
            key=position_key,
        )
        self.layernorm_embedding = LayerNorm(config.d_model)
        self.layers = tuple(layer(config, key=key) for key in layer_keys)
        self.layer_norm = None
        self.dropout = eqx.nn.Dropout(config.dropout)
        self.layerdrop = LayerDrop(layerdrop)
        self.checkpointing = None

    def run(
        self,
        inputs_embeds: Float[Array, "batch new d_model"],
        context: Context,
        caches: Sequence[Any] | None = None,
        *,
        key: PRNGKeyArray | None,
    ) -> StackOutput:
        """Adds the positions, and runs the layers; see `eqx_bart.nn.stack.run_layers`."""
        embed_key, *layer_keys = split_key(key, 1 + len(self.layers))
        embedded = embed(
            inputs_embeds,
            self.embed_positions.lookup(context.positions),
            self.layernorm_embedding,
            self.dropout,
            key=embed_key,
        )
        return run_layers(
            self.layers,
            embedded,
            context,
            caches,
            layerdrop=self.layerdrop,
            layer_norm=self.layer_norm,
            checkpointing=self.checkpointing,
            keys=layer_keys,
        )
