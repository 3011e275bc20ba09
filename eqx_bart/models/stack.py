"""What encoder and decoder share: embeddings, and a stack of layers."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from ..config import BartConfig
from ..nn.attention import padding_mask
from ..nn.checks import ArrayLike, as_indices, Mask
from ..nn.dropout import LayerDrop, split_key
from ..nn.embedding import (
    AbstractEmbedding,
    AbstractPositionalEmbedding,
    embed,
    LearnedPositionalEmbedding,
)
from ..nn.layer import AbstractLayer, Context, Layers, Show
from ..nn.norm import LayerNorm
from ..nn.segments import segment_mask, segment_positions
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

    def run_all(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        attention_mask: Mask[ArrayLike, "batch length"] | None,
        position_ids: Integer[Array, "#batch length"] | None,
        segment_ids: Integer[ArrayLike, "batch length"] | None,
        *,
        mask: Bool[Array, "1 1 length length"] | None = None,
        source: Any = None,
        show: Show,
        key: PRNGKeyArray | None,
    ) -> StackOutput:
        """`run`, on all tokens of each row at once.

        **Arguments:**

        - `attention_mask`, `position_ids`, `segment_ids`: see `BartModel.encode`.
        - `mask`: which tokens each one may attend to, as far as the others allow.
        - `source`, `show`: as in `Context`.

        **Raises** `ValueError` if there are more tokens, or longer examples, than
        positions.
        """
        is_token = None
        if attention_mask is not None:
            is_token = jnp.asarray(attention_mask, bool)
            mask = _both(mask, padding_mask(is_token))
        if segment_ids is not None:
            segment_ids = as_indices(segment_ids)
            is_token = _both(is_token, segment_ids != 0)
            mask = _both(mask, segment_mask(segment_ids, segment_ids))
        if position_ids is None and segment_ids is not None:
            inputs_embeds, position_ids = self.embed_positions.checked(
                inputs_embeds, segment_positions(segment_ids), "positions"
            )
        elif position_ids is None:
            position_ids = self.embed_positions.span(0, inputs_embeds.shape[1])
        context = Context(
            mask,
            position_ids,
            position_ids,
            attention_mask=is_token,
            source=source,
            show=show,
            segment_ids=segment_ids,
        )
        return self.run(inputs_embeds, context, key=key)

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


def _both(a: Array | None, b: Array) -> Array:
    """What both masks allow."""
    return b if a is None else a & b
