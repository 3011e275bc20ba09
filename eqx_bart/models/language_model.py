"""Heads that make logits, and what both models with one share."""

import abc
import dataclasses
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from ..checkpoint.pretrained import PretrainedModel, replace_parts
from ..config import BartConfig
from ..files.errors import CheckpointError
from ..generation.config import GenerationConfig
from ..generation.inputs import GenerationInputs
from ..generation.mixin import GenerationMixin
from ..generation.slots import NewTokens
from ..nn.buffer import Buffer
from ..nn.checks import ArrayLike
from ..nn.embedding import AbstractEmbedding
from ..nn.layer import Show, Source
from ..nn.linear import AbstractLinear, Linear
from ..nn.mesh import on_any_mesh, ROWS, TENSOR
from .cache import BartCache
from .decoder import BartDecoder
from .layers import BartDecoderLayer
from .outputs import (
    Attentions,
    BaseModelOutputWithCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)


ModelT = TypeVar("ModelT", bound="LanguageModel")


class Projection(eqx.Module):
    """From hidden states to logits: by a linear map or, where that is tied, by the token
    embeddings; plus `final_logits_bias` where there is one."""

    lm_head: AbstractLinear | AbstractEmbedding
    final_logits_bias: Buffer | None = None

    @functools.partial(on_any_mesh, axes=(ROWS, None, TENSOR))
    def __call__(
        self, hidden_states: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        """The logits, in the dtype of the hidden states."""
        logits = self._product(hidden_states)
        if self.final_logits_bias is not None:
            bias = self.final_logits_bias.value.astype(logits.dtype)
            logits = logits + bias[None]
        return logits

    def _product(self, hidden_states: Array) -> Array:
        if isinstance(self.lm_head, AbstractLinear):
            return self.lm_head(hidden_states)
        batch, length, d_model = hidden_states.shape
        rows = hidden_states.reshape(batch * length, d_model)
        logits = self.lm_head.attend(rows)
        logits = logits.astype(hidden_states.dtype)
        return logits.reshape(batch, length, logits.shape[-1])


class AbstractLMHead(eqx.Module):
    """A head that makes logits from more than the last hidden states: from where the
    decoder attends, or from the source. It is the model's `head`; calls of the model,
    `decode`, losses and `generate` all go through it.

    **Fields:**

    - `needs_attentions`: whether it reads attention weights.
    """

    needs_attentions: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(
        self,
        decoded: BaseModelOutputWithCrossAttentions,
        source: Any,
        projection: Projection,
    ) -> Float[Array, "batch new vocab"]:
        """The logits of the token after each of the new ones.

        **Arguments:**

        - `decoded`: the decoder's outputs for the new tokens.
        - `source`: what they attend to, usually a `Source`. Its `input_ids` are set in a
            call of the model, in `generate` with `input_ids`, and where the caller gave
            them to `init_cache` or `decode`.
        - `projection`: BART's own head, by `lm_head` or the token embeddings.
        """


def new_lm_head(config: BartConfig, *, key: PRNGKeyArray) -> Linear | None:
    """A head with weights of its own, or `None` where the config ties them."""
    if config.tie_word_embeddings:
        return None
    return Linear(
        config.d_model,
        config.vocab_size,
        use_bias=False,
        init_std=config.init_std,
        key=key,
    )


class LanguageModel(PretrainedModel, GenerationMixin):
    """What both models with a language-modelling head share: the head, and generation."""

    _setting_names = frozenset({"generation_config"})

    lm_head: eqx.AbstractVar[AbstractLinear | None]
    head: eqx.AbstractVar[AbstractLMHead | None]

    @property
    @abc.abstractmethod
    def decoder(self) -> BartDecoder:
        """The decoder."""

    @property
    @abc.abstractmethod
    def decoder_embed_tokens(self) -> AbstractEmbedding:
        """The decoder's token embeddings."""

    @property
    @abc.abstractmethod
    def projection(self) -> Projection:
        """What makes logits from the last hidden state."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.decoder_embed_tokens.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest sequence, in tokens."""
        return self.decoder.embed_positions.max_positions

    @property
    def _needs_attentions(self) -> bool:
        return self.head is not None and self.head.needs_attentions

    def logits(
        self, decoded: BaseModelOutputWithCrossAttentions, source: Any
    ) -> Float[Array, "batch new vocab"]:
        """The logits of the token after each one that the decoder has read; see
        `AbstractLMHead.__call__`."""
        if self.head is None:
            return self.projection(decoded.last_hidden_state)
        return self.head(decoded, source, self.projection)

    def _decoder_output(
        self, decoded: BaseModelOutputWithCrossAttentions, source: Any, show: Show
    ) -> CausalLMOutputWithCrossAttentions:
        return CausalLMOutputWithCrossAttentions(
            logits=self.logits(decoded, source),
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions if show.attentions else None,
            cross_attentions=decoded.cross_attentions if show.attentions else None,
            shown=decoded.shown,
        )

    def init_generation_cache(
        self, inputs: GenerationInputs, num_rows: int, num_slots: int
    ) -> BartCache:
        """See `GenerationMixin.init_generation_cache`."""
        source, batch_size = inputs.encoder_outputs, len(inputs.prompt)
        dtype = self.decoder_embed_tokens.dtype
        if isinstance(source, Source):
            dtype = source.hidden_states.dtype
        source = self.source_of_rows(source, num_rows)
        return self.decoder.init_cache(
            self.config, batch_size * num_rows, num_slots, source, dtype=dtype
        )

    def source_of_rows(self, source: Any, num_rows: int) -> Any:
        """The source of `num_rows` rows for each input, which follow one another."""
        if isinstance(source, Source) and self._rows_share_source:
            return dataclasses.replace(source, num_rows=num_rows)
        if num_rows == 1:
            return source
        return jax.tree.map(lambda x: jnp.repeat(x, num_rows, axis=0), source)

    @property
    def _rows_share_source(self) -> bool:
        """Whether the source of an input may stand once for all of its rows: BART's own
        layers attend to it so, and the others are given one for each row."""
        layers = self.decoder.layers
        return self.head is None and all(type(x) is BartDecoderLayer for x in layers)

    def generation_step(
        self, new: NewTokens, cache: BartCache
    ) -> tuple[Float[Array, "batch new vocab"], Attentions | None, BartCache]:
        """See `GenerationMixin.generation_step`."""
        decoded, cache = self.decoder.step(
            self.decoder_embed_tokens.lookup(new.ids),
            cache,
            position_ids=new.positions,
            mask=new.mask,
            first_slot=new.first_slot,
            show=Show(new.output_attentions or self._needs_attentions),
        )
        return self.logits(decoded, cache.source), decoded.cross_attentions, cache

    def with_generation_config(  # noqa: PYI019  # beartype knows no Self in a method
        self: ModelT, generation_config: GenerationConfig | None = None, **overrides: Any
    ) -> ModelT:
        """The model with other defaults of `generate`.

        **Arguments:**

        - `generation_config`: settings that override the model's own.
        - `overrides`: settings by name that override all others; `None` takes one away.

        **Raises** as `generate` does.
        """
        new = self.generation_config.changed(generation_config, overrides)
        return replace_parts(self, GenerationConfig, new)

    @classmethod
    def _read_settings(
        cls, directory: Path, config: BartConfig, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        _warn_of_another_head(cls.__name__, config)
        try:
            if (directory / "generation_config.json").is_file():
                own = GenerationConfig.from_pretrained(directory)
            else:
                own = GenerationConfig.from_model_config(config)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"config.json at {directory}: {error}") from error
        return {"generation_config": own.changed(given.get("generation_config"), {})}

    def _settings(self) -> dict[str, Any]:
        return {"generation_config": self.generation_config}

    def _write_settings(self, directory: Path) -> None:
        self.generation_config.save_pretrained(directory)


def _warn_of_another_head(name: str, config: BartConfig) -> None:
    """Warns if the checkpoint is that of a model with another head. Nothing is missing from
    it, since the token embeddings stand in for a language-modelling head."""
    if config.architecture in ("BartForSequenceClassification", "BartForQuestionAnswering"):
        warnings.warn(
            f"This is the checkpoint of a {config.architecture}: the language-modelling "
            f"head of a {name} was not trained with it.",
            stacklevel=2,
        )


def generation_source(
    states: Float[ArrayLike, "batch source d_model"],
    mask: Bool[ArrayLike, "batch source"] | None,
    input_ids: Integer[ArrayLike, "batch source"] | None,
) -> Source:
    """A `Source` made of what a generation has; padding is -1 in its `input_ids`."""
    return Source(
        jnp.asarray(states),
        None if mask is None else jnp.asarray(mask),
        None if input_ids is None else jnp.maximum(jnp.asarray(input_ids), 0),
    )
