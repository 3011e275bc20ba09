"""BART with a language-modelling head, encoder and decoder."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, PRNGKeyArray

from ..config import BartConfig
from ..explained import explained
from ..generation.cache import GenerationCache
from ..generation.config import GenerationConfig
from ..generation.inputs import (
    align_left,
    GenerationInputs,
    masked_ids,
    masked_states,
    with_start_token,
)
from ..generation.logits_process import LogitsProcessor
from ..generation.mixin import GenerationCall
from ..generation.output import GenerationOutput
from ..nn.buffer import Buffer
from ..nn.checks import ArrayLike, Mask
from ..nn.embedding import AbstractEmbedding
from ..nn.layer import Show
from ..nn.linear import AbstractLinear
from .bart import BartModel
from .decoder import BartDecoder
from .inputs import refuse_overrides
from .language_model import (
    AbstractLMHead,
    generation_source,
    LanguageModel,
    new_lm_head,
    Projection,
)
from .outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
)
from .seq2seq import AbstractTrunk, seq2seq_states, Seq2SeqModel


class BartForConditionalGeneration(
    LanguageModel, Seq2SeqModel[Seq2SeqLMOutput, CausalLMOutputWithCrossAttentions]
):
    """BART with a language-modelling head, for summarisation, translation and the like.

    `lm_head` is `None` where it is tied to the token embeddings, `model.shared`. `head` is
    `None`, or one of your own that makes logits from more than the last hidden states.
    `final_logits_bias` is added to the logits; it is a buffer, which nothing trains.
    `generation_config` has the defaults of `generate`.

    Source: HF's `BartForConditionalGeneration`.
    """

    model: BartModel
    lm_head: AbstractLinear | None
    head: AbstractLMHead | None
    final_logits_bias: Buffer
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
        model_key, head_key = jax.random.split(key)
        self.model = BartModel(config, key=model_key)
        self.lm_head = new_lm_head(config, key=head_key)
        self.head = None
        self.final_logits_bias = Buffer(jnp.zeros((1, config.vocab_size)))
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(
            config
        )

    @property
    def _trunk(self) -> AbstractTrunk:
        return self.model

    @property
    def decoder(self) -> BartDecoder:
        return self.model.decoder

    @property
    def decoder_embed_tokens(self) -> AbstractEmbedding:
        return self.model.decoder_embed_tokens

    @property
    def projection(self) -> Projection:
        """What makes logits from the last hidden state."""
        return Projection(self.lm_head or self.decoder_embed_tokens, self.final_logits_bias)

    def _output(
        self,
        decoded: BaseModelOutputWithCrossAttentions,
        encoded: Any,
        source: Any,
        show: Show,
        *,
        key: PRNGKeyArray | None,
    ) -> Seq2SeqLMOutput:
        return Seq2SeqLMOutput(
            logits=self.logits(decoded, source), **seq2seq_states(decoded, encoded, show)
        )

    def encode_source(self, inputs: GenerationInputs) -> GenerationInputs:
        """See `GenerationMixin.encode_source`."""
        states, mask = inputs.encoder_outputs, inputs.encoder_attention_mask
        input_ids, offset = inputs.input_ids, inputs.source_offset
        if states is None:
            embeds = inputs.inputs_embeds
            if embeds is None:
                is_token = jnp.asarray(input_ids) >= 0
                input_ids, offset = align_left(jnp.asarray(input_ids), is_token)
                embeds = self.model.encoder_embed_tokens.lookup(jnp.maximum(input_ids, 0))
            else:
                is_token = jnp.asarray(mask)
                embeds, offset = align_left(jnp.asarray(embeds), is_token)
            mask, _ = align_left(is_token, is_token)
            states = self.encode(None, mask, inputs_embeds=embeds)
        if isinstance(states, BaseModelOutput):
            states = generation_source(states.last_hidden_state, mask, input_ids)
        return GenerationInputs(inputs.prompt, input_ids, states, mask, offset)

    @explained
    def generate(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        inputs_embeds: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Integer[ArrayLike, "batch prompt"] | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        cache: GenerationCache | None = None,
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationOutput:
        """Generates token ids from `input_ids`: greedy search, sampling, beam search or
        beam sampling, as the settings say.

        The encoder and the whole loop are one compiled program. Outside of `jit`, rows and
        tokens are padded to a power of two, so that inputs of many shapes share a few
        programs; inside, nothing is padded. A row's answer depends neither on its
        neighbours nor on its padding, on either side.

        **Arguments:**

        - `input_ids`, `attention_mask`: as `encode` takes them. Padding before a row takes
            no positions: the row is read as if it were alone.
        - `generation_config`: settings that override the model's own.
        - `inputs_embeds`: embeddings instead of `input_ids`, as `encode` takes them.
        - `encoder_outputs`: of `encode`, instead of `input_ids`, or as well as them where a
            setting needs both; or what your own layers attend to, any pytree of arrays
            with a row for each input, which is then the `source` of their `Context`.
        - `decoder_input_ids`, `decoder_attention_mask`: what the answers begin with; the
            start token alone by default. Outside of `jit` the start token is put before
            them if no row begins with it, as in HF.
        - `logits_processors`: processors of your own, which apply after those of the
            settings and before the warpers of sampling.
        - `cache`: what an earlier call returned, with `output_cache=True`, in place of the
            source. `decoder_input_ids` are again the whole of what the answers begin with;
            those tokens of each row that the cache has are not read again, from the first
            on. The tokens are those of a call without a cache.
        - `key`: for sampling. What a row draws depends on the key, its tokens and, among
            rows with the same tokens, its number.
        - `overrides`: settings by name that override all others, such as `num_beams=4`.

        **Returns** the `GenerationOutput`.

        **Raises** `ValueError` if an id is outside the vocabulary, if a mask leaves nothing
        of a row, or if a setting is impossible for this model, contradicts another, or is
        not supported; `TypeError` if there is no such setting.

        Source: HF's `GenerationMixin.generate`.
        """
        return super().generate(
            input_ids,
            attention_mask,
            generation_config,
            inputs_embeds=inputs_embeds,
            encoder_outputs=encoder_outputs,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            logits_processors=logits_processors,
            cache=cache,
            key=key,
            **overrides,
        )

    @explained
    def prepare_generation(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        inputs_embeds: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Integer[ArrayLike, "batch prompt"] | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        cache: GenerationCache | None = None,
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationCall:
        """See `generate`."""
        refuse_overrides(self, "generate", "__call__", "decode", "init_cache")
        config = self.generation_config.updated(generation_config, overrides)
        source = (input_ids, attention_mask, inputs_embeds, encoder_outputs)
        prompt = None
        if decoder_input_ids is not None:
            names = ("decoder_input_ids", "decoder_attention_mask")
            prompt = masked_ids(
                decoder_input_ids, decoder_attention_mask, self.vocab_size, names
            )
            prompt = with_start_token(prompt, config.start_token_id)
        if cache is None:
            inputs = _generation_inputs(self.vocab_size, config, prompt, *source)
        elif prompt is None or any(x is not None for x in source):
            raise ValueError(
                "generate takes a cache with decoder_input_ids, which begin with what it "
                "holds, and without input_ids, inputs_embeds, encoder_outputs and a mask: "
                "it has the source."
            )
        else:
            inputs = cache.continued(prompt)
        return self.checked_call(inputs, config, logits_processors, key, cache)


def _generation_inputs(
    vocab_size: int,
    config: GenerationConfig,
    prompt: Integer[ArrayLike, "batch prompt"] | None,
    input_ids: Integer[ArrayLike, "batch source"] | None,
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    inputs_embeds: Float[ArrayLike, "batch source d_model"] | None,
    encoder_outputs: Any,
) -> GenerationInputs:
    """What a generation from a source starts from; without a prompt, from the start
    token."""
    mask = None
    if isinstance(encoder_outputs, BaseModelOutput):
        states = encoder_outputs.last_hidden_state
        states, mask = masked_states(states, attention_mask, "attention_mask")
        encoder_outputs = BaseModelOutput(jnp.asarray(states))
    if input_ids is not None:
        names = ("input_ids", "attention_mask")
        input_ids = masked_ids(input_ids, attention_mask, vocab_size, names)
    if inputs_embeds is not None:
        if input_ids is not None or encoder_outputs is not None:
            raise ValueError(
                "generate takes inputs_embeds alone: without input_ids and encoder_outputs."
            )
        inputs_embeds, mask = masked_states(inputs_embeds, attention_mask, "attention_mask")
    source = jax.tree.leaves((encoder_outputs, input_ids, inputs_embeds))
    if not source:
        raise ValueError("generate needs input_ids or encoder_outputs.")
    if prompt is None:
        prompt = np.full((len(source[0]), 1), config.start_token_id, np.int32)
    return GenerationInputs(
        prompt, input_ids, encoder_outputs, mask, inputs_embeds=inputs_embeds
    )
