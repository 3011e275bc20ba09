"""BART's decoder alone, with a language-modelling head."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Float, Integer, PRNGKeyArray

from ..config import as_id_tuple, BartConfig
from ..explained import explained
from ..generation.cache import GenerationCache
from ..generation.config import GenerationConfig
from ..generation.inputs import GenerationInputs, masked_ids, masked_states
from ..generation.logits_process import LogitsProcessor
from ..generation.mixin import GenerationCall
from ..generation.output import GenerationOutput
from ..nn.checks import ArrayLike, Mask
from ..nn.embedding import AbstractEmbedding
from ..nn.layer import Show, Source
from ..nn.linear import AbstractLinear
from ..nn.mesh import on_any_mesh
from .bart import token_embedding
from .cache import BartCache, check_max_length
from .decoder import BartDecoder
from .inputs import (
    check_source,
    embed_inputs,
    make_source,
    refuse_overrides,
    run_decoder,
    shown,
)
from .language_model import (
    AbstractLMHead,
    generation_source,
    LanguageModel,
    new_lm_head,
    Projection,
)
from .outputs import CausalLMOutputWithCrossAttentions


class BartDecoderWrapper(eqx.Module):
    """The `model` of `BartForCausalLM`, which gives the parameters HF's names."""

    decoder: BartDecoder


class BartForCausalLM(LanguageModel):
    """BART's decoder with a language-modelling head, with or without an encoder's states.

    `lm_head` is `None` where it is tied to `model.decoder.embed_tokens`. `head` is `None`,
    or one of your own that makes logits from more than the last hidden states.
    `generation_config` has the defaults of `generate`.

    Source: HF's `BartForCausalLM`.
    """

    model: BartDecoderWrapper
    lm_head: AbstractLinear | None
    head: AbstractLMHead | None
    config: BartConfig
    generation_config: GenerationConfig

    def __init__(
        self,
        config: BartConfig,
        generation_config: GenerationConfig | None = None,
        *,
        key: PRNGKeyArray,
    ):
        """Draws the weights at random; see `BartModel`."""
        decoder_key, embed_key, head_key = jax.random.split(key, 3)
        embed_tokens = token_embedding(config, key=embed_key)
        self.model = BartDecoderWrapper(BartDecoder(config, embed_tokens, key=decoder_key))
        self.lm_head = new_lm_head(config, key=head_key)
        self.head = None
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(
            config
        )

    @property
    def decoder(self) -> BartDecoder:
        return self.model.decoder

    @property
    def decoder_embed_tokens(self) -> AbstractEmbedding:
        embed_tokens = self.model.decoder.embed_tokens
        assert embed_tokens is not None
        return embed_tokens

    @property
    def projection(self) -> Projection:
        """What makes logits from the last hidden state."""
        return Projection(self.lm_head or self.decoder_embed_tokens)

    @explained
    @on_any_mesh
    def init_cache(
        self,
        batch_size: int,
        max_length: int,
        encoder_hidden_states: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
    ) -> BartCache:
        """A cache for decoding up to `max_length` tokens.

        **Arguments:**

        - `batch_size`, `max_length`: the number of rows, and of tokens to make room for in
            each.
        - `encoder_hidden_states`, `encoder_attention_mask`: what the decoder attends to,
            if there is an encoder. Their keys and values are computed here, once.

        **Raises** `ValueError` if the model has no `max_length` positions, or if the
        encoder's states and their mask do not fit one another, or the rows.
        """
        source = None
        if encoder_hidden_states is not None:
            check_source(batch_size, encoder_hidden_states, encoder_attention_mask)
            source = make_source(encoder_hidden_states, encoder_attention_mask)
        return self.decoder.init_cache(
            self.config,
            batch_size,
            check_max_length(max_length, self.max_positions),
            source,
            dtype=self.decoder_embed_tokens.dtype,
        )

    @explained
    @on_any_mesh
    def decode(
        self,
        input_ids: Integer[ArrayLike, "batch length"] | None,
        cache: BartCache,
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        position_ids: Integer[ArrayLike, "#batch length"] | None = None,
        *,
        inputs_embeds: Float[ArrayLike, "batch length d_model"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[CausalLMOutputWithCrossAttentions, BartCache]:
        """Runs the decoder on the tokens that follow those in `cache`, any number of them.

        **Arguments:**

        - `input_ids`, `attention_mask`, `position_ids`, `inputs_embeds`: as
            `BartModel.decode` takes the decoder's.
        - `cache`, `output_attentions`, `output_hidden_states`, `key`: as there.

        **Returns** the outputs, with logits; and the next cache.

        **Raises** as `BartModel.decode` does.
        """
        show = shown(
            self.config,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        decoded, next_cache = self._run_decoder(
            input_ids, inputs_embeds, attention_mask, position_ids, None, cache, show, key
        )
        return self._decoder_output(decoded, cache.source, show), next_cache

    @explained
    @on_any_mesh
    def __call__(
        self,
        input_ids: Integer[ArrayLike, "batch length"] | None = None,
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        encoder_hidden_states: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        position_ids: Integer[ArrayLike, "#batch length"] | None = None,
        *,
        inputs_embeds: Float[ArrayLike, "batch length d_model"] | None = None,
        segment_ids: Integer[ArrayLike, "batch length"] | None = None,
        encoder_segment_ids: Integer[ArrayLike, "batch source"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> CausalLMOutputWithCrossAttentions:
        """Runs the decoder on all tokens at once.

        **Arguments:**

        - `input_ids`, `attention_mask`, `position_ids`, `inputs_embeds`: as
            `BartModel.decode` takes the decoder's.
        - `encoder_hidden_states`, `encoder_attention_mask`: what the decoder attends to;
            without them, only its own tokens.
        - `segment_ids`, `encoder_segment_ids`: which example each token is of, and each of
            the encoder's states, where a row holds more than one; see `BartModel.encode`.
        - `output_attentions`, `output_hidden_states`, `key`: as in `BartModel.decode`.

        **Returns** the outputs, with logits.

        **Raises** as `BartModel.decode` does, and `ValueError` if there is a mask without
        the encoder's states.
        """
        source = None
        if encoder_hidden_states is not None:
            source = make_source(
                encoder_hidden_states,
                encoder_attention_mask,
                segment_ids=encoder_segment_ids,
            )
        elif encoder_attention_mask is not None or encoder_segment_ids is not None:
            name = "attention_mask" if encoder_segment_ids is None else "segment_ids"
            raise ValueError(f"There is encoder_{name}, but no encoder_hidden_states.")
        show = shown(
            self.config,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        decoded, _ = self._run_decoder(
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            segment_ids,
            source,
            show,
            key,
        )
        return self._decoder_output(decoded, source, show)

    def _run_decoder(
        self,
        input_ids: Integer[ArrayLike, "batch length"] | None,
        inputs_embeds: Float[ArrayLike, "batch length d_model"] | None,
        attention_mask: Mask[ArrayLike, "batch length"] | None,
        position_ids: Integer[ArrayLike, "#batch length"] | None,
        segment_ids: Integer[ArrayLike, "batch length"] | None,
        before: Any,
        show: Show,
        key: PRNGKeyArray | None,
    ) -> Any:
        """The decoder's outputs after `before`, a source or a cache, and the next cache."""
        inputs_embeds = embed_inputs(
            self.decoder_embed_tokens, input_ids, inputs_embeds, "input_ids"
        )
        return run_decoder(
            self.decoder,
            self.config,
            inputs_embeds,
            attention_mask,
            position_ids,
            before,
            segment_ids=segment_ids,
            show=Show(show.attentions or self._needs_attentions, show.hidden_states),
            key=key,
        )

    def _described_config(self) -> BartConfig:
        return dataclasses.replace(
            self.config,
            decoder_layers=len(self.decoder.layers),
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_positions,
        )

    def encode_source(self, inputs: GenerationInputs) -> GenerationInputs:
        """See `GenerationMixin.encode_source`: there is nothing to encode."""
        states, mask = inputs.encoder_outputs, inputs.encoder_attention_mask
        if states is not None and not isinstance(states, Source):
            states = generation_source(states, mask, None)
        return GenerationInputs(inputs.prompt, inputs.input_ids, states, mask)

    @explained
    def generate(
        self,
        input_ids: Integer[ArrayLike, "batch prompt"],
        attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        encoder_hidden_states: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        cache: GenerationCache | None = None,
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationOutput:
        """Continues `input_ids`; see `BartForConditionalGeneration.generate`.

        **Arguments:**

        - `input_ids`, `attention_mask`: the prompt. Without a mask, `pad_token_id` is
            padding, unless it is an `eos_token_id` too, as in HF.
        - `encoder_hidden_states`, `encoder_attention_mask`: what the decoder attends to,
            if there is an encoder, and no `cache`, which has them.
        - the others: as there. Settings about the source are about the prompt here, as in
            HF.

        **Returns** and **raises** as there.
        """
        return super().generate(
            input_ids,
            attention_mask,
            generation_config,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            logits_processors=logits_processors,
            cache=cache,
            key=key,
            **overrides,
        )

    @explained
    def prepare_generation(
        self,
        input_ids: Integer[ArrayLike, "batch prompt"],
        attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        encoder_hidden_states: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        cache: GenerationCache | None = None,
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationCall:
        """See `generate`."""
        refuse_overrides(self, "generate", "__call__", "decode", "init_cache")
        config = self.generation_config.updated(generation_config, overrides)
        has_source = encoder_hidden_states is not None
        if cache is not None:
            if has_source or encoder_attention_mask is not None:
                raise ValueError(
                    "generate takes a cache without encoder_hidden_states and their mask: "
                    "it has them."
                )
            has_source = cache.inputs.encoder_outputs is not None
        if config.output_attentions and not has_source:
            raise ValueError(
                "output_attentions of generate are those to an encoder, and there are no "
                "encoder_hidden_states. For attention to the tokens themselves, call the "
                "model on the generated sequences with output_attentions=True."
            )
        pad = config.pad_token_id
        if attention_mask is None and pad not in (None, *as_id_tuple(config.eos_token_id)):
            attention_mask = input_ids != pad
        names = ("input_ids", "attention_mask")
        prompt = masked_ids(input_ids, attention_mask, self.vocab_size, names)
        if cache is not None:
            inputs = dataclasses.replace(cache.continued(prompt), input_ids=prompt)
        elif encoder_hidden_states is not None:
            source = masked_states(
                encoder_hidden_states, encoder_attention_mask, "encoder_attention_mask"
            )
            inputs = GenerationInputs(prompt, prompt, *source)
        else:
            inputs = GenerationInputs(prompt, prompt)
        return self.checked_call(inputs, config, logits_processors, key, cache)
