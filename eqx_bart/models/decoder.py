"""BART's decoder: Lewis et al. 2019 (arXiv:1910.13461), section 2.1; HF's `BartDecoder`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from ..config import BartConfig
from ..nn.attention import causal_mask
from ..nn.cache import FirstSlot
from ..nn.checks import ArrayLike, as_indices, Mask
from ..nn.embedding import AbstractEmbedding
from ..nn.layer import Context, NOTHING, Show, Source
from ..nn.mesh import on_any_mesh
from ..nn.stack import StackOutput
from .cache import BartCache
from .layers import BartDecoderLayer
from .outputs import BaseModelOutputWithCrossAttentions
from .stack import BartStack


class BartDecoder(BartStack):
    """A `BartStack` of layers, usually `BartDecoderLayer`s."""

    def __init__(
        self,
        config: BartConfig,
        embed_tokens: AbstractEmbedding | None,
        *,
        key: PRNGKeyArray,
    ):
        """Draws the weights at random, with `config.init_std`."""
        super().__init__(
            config,
            embed_tokens,
            BartDecoderLayer,
            config.decoder_layers,
            config.decoder_layerdrop,
            key=key,
        )

    @on_any_mesh
    def init_cache(
        self,
        config: BartConfig,
        batch_size: int,
        num_slots: int,
        source: Any,
        *,
        dtype: DTypeLike,
    ) -> BartCache:
        """An empty cache, made by the layers.

        **Arguments:**

        - `config`: that of the model, for `BartCache.checked`.
        - `batch_size`, `num_slots`: the number of rows, and of slots in each.
        - `source`: as in `Context`.
        - `dtype`: of the hidden states.
        """
        layers = tuple(
            layer.init_cache(batch_size, num_slots, source, dtype) for layer in self.layers
        )
        return BartCache(config, batch_size, num_slots, layers, source)

    @on_any_mesh
    def __call__(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        position_ids: Integer[Array, "#batch length"] | None = None,
        source: Any = None,
        *,
        segment_ids: Integer[ArrayLike, "batch length"] | None = None,
        show: Show = NOTHING,
        key: PRNGKeyArray | None = None,
    ) -> BaseModelOutputWithCrossAttentions:
        """Decodes the embeddings of all tokens at once.

        **Arguments:**

        - `attention_mask`, `position_ids`, `segment_ids`, `key`: see `BartModel.decode`,
            which checks them.
        - `source`, `show`: as in `Context`.

        **Raises** `ValueError` if there are `segment_ids`, and none of a `Source`, or the
        reverse.
        """
        if segment_ids is not None:
            segment_ids = as_indices(segment_ids)
        outputs = self.run_all(
            inputs_embeds,
            attention_mask,
            position_ids,
            segment_ids,
            mask=causal_mask(inputs_embeds.shape[1]),
            source=_attended_by(segment_ids, source),
            show=show,
            key=key,
        )
        return _output(outputs, has_source=source is not None)

    @on_any_mesh
    def step(
        self,
        inputs_embeds: Float[Array, "batch new d_model"],
        cache: BartCache,
        attention_mask: Mask[ArrayLike, "batch new"] | None = None,
        position_ids: Integer[Array, "#batch new"] | None = None,
        *,
        mask: Bool[Array, "#batch 1 new slots"] | None = None,
        first_slot: FirstSlot | None = None,
        show: Show = NOTHING,
        key: PRNGKeyArray | None = None,
    ) -> tuple[BaseModelOutputWithCrossAttentions, BartCache]:
        """Decodes the embeddings of the tokens that follow those in `cache`.

        The caller must check that the cache has room; see `BartCache.checked`.

        **Arguments:**

        - `attention_mask`, `position_ids`, `key`: see `BartModel.decode`, which checks
            them.
        - `mask`: which slots each new token attends to; by default its own and those before
            it, as far as the attention masks allow.
        - `first_slot`: where they are written, if not after those in `cache`.
        - `show`: as in `Context`.

        **Returns** the outputs, and the next cache.
        """
        num_new = inputs_embeds.shape[1]
        is_token = None
        if attention_mask is not None:
            is_token = jnp.asarray(attention_mask, bool)
        cache = cache.expect(is_token, position_ids, first_slot)
        if position_ids is None:
            position_ids = self.embed_positions.span(cache.length, num_new)
        context = Context(
            cache.mask(num_new) if mask is None else mask,
            position_ids,
            cache.positions,
            cache.length if first_slot is None else first_slot,
            is_token,
            cache.source,
            show,
        )
        outputs = self.run(inputs_embeds, context, cache.layers, key=key)
        assert outputs.caches is not None
        decoded = _output(outputs, has_source=cache.source is not None)
        return decoded, cache.advance(outputs.caches, num_new)


def _attended_by(segment_ids: Integer[Array, "batch length"] | None, source: Any) -> Any:
    """What the layers attend to, where each `Source` knows whose tokens attend to it."""

    def known(x: Any) -> Any:
        return x.attended_by(segment_ids) if isinstance(x, Source) else x

    return jax.tree.map(known, source, is_leaf=lambda x: isinstance(x, Source))


def _output(
    outputs: StackOutput, *, has_source: bool
) -> BaseModelOutputWithCrossAttentions:
    shown = dict(outputs.shown)
    attentions = shown.pop("attentions", None)
    cross_attentions = shown.pop("cross_attentions", None)
    return BaseModelOutputWithCrossAttentions(
        last_hidden_state=outputs.hidden_states,
        hidden_states=outputs.all_hidden_states,
        attentions=attentions,
        cross_attentions=cross_attentions if has_source else None,
        shown=shown or None,
    )
