"""BART with a head: for conditional generation, sequence classification, question
answering, and, from the decoder alone, causal language modelling."""

import abc
from collections.abc import Sequence
from typing import Any, Generic, overload, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .cache import BartCache, check_max_length
from .checkpoint.pretrained import PretrainedModel
from .checks import ArrayLike, error_if, Mask
from .config import as_id_tuple, BartConfig
from .decoder import BartDecoder
from .generation import (
    GenerationCall,
    GenerationConfig,
    GenerationInputs,
    GenerationMixin,
    GenerationOutput,
    LogitsProcessor,
)
from .generation.inputs import align_left, encoder_mask, masked_ids, with_start_token
from .layers import Buffer, dot_transposed, Embedding, Linear, split_key
from .model import BartModel, embed_inputs, token_embedding
from .outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    ModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
    Seq2SeqSequenceClassifierOutput,
)


OutputT = TypeVar("OutputT", bound=ModelOutput)
DecodedT = TypeVar("DecodedT", bound=ModelOutput)


class Seq2SeqModel(PretrainedModel, Generic[OutputT, DecodedT]):
    """An encoder-decoder with a head: what the three of them share."""

    model: eqx.AbstractVar[BartModel]

    @abc.abstractmethod
    def _head(
        self,
        outputs: Seq2SeqModelOutput,
        input_ids: Integer[ArrayLike, "batch source"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> OutputT:
        """What `__call__` makes of the trunk's outputs."""

    @abc.abstractmethod
    def _decoder_head(self, outputs: BaseModelOutputWithCrossAttentions) -> DecodedT:
        """What `decode` makes of the decoder's outputs."""

    def encode(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        position_ids: Integer[ArrayLike, "#batch source"] | None = None,
        *,
        inputs_embeds: Float[Array, "batch source d_model"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> BaseModelOutput:
        """See `BartModel.encode`."""
        return self.model.encode(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=key,
        )

    def init_cache(
        self,
        encoder_outputs: BaseModelOutput,
        max_length: int,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
    ) -> BartCache:
        """See `BartModel.init_cache`."""
        return self.model.init_cache(encoder_outputs, max_length, attention_mask)

    @overload
    def decode(
        self,
        decoder_input_ids: Integer[ArrayLike, "batch target"] | None = None,
        cache: None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
        decoder_position_ids: Integer[ArrayLike, "#batch target"] | None = None,
        *,
        encoder_outputs: BaseModelOutput,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        decoder_inputs_embeds: Float[Array, "batch target d_model"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> DecodedT: ...

    @overload
    def decode(
        self,
        decoder_input_ids: Integer[ArrayLike, "batch target"] | None,
        cache: BartCache,
        decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
        decoder_position_ids: Integer[ArrayLike, "#batch target"] | None = None,
        *,
        decoder_inputs_embeds: Float[Array, "batch target d_model"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[DecodedT, BartCache]: ...

    def decode(
        self,
        decoder_input_ids: Integer[ArrayLike, "batch target"] | None = None,
        cache: BartCache | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
        decoder_position_ids: Integer[ArrayLike, "#batch target"] | None = None,
        *,
        encoder_outputs: BaseModelOutput | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        decoder_inputs_embeds: Float[Array, "batch target d_model"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> DecodedT | tuple[DecodedT, BartCache]:
        """`BartModel.decode`, with its arguments, and the head on top of it."""
        decode: Any = self.model.decode  # which pyright takes for its first overload
        decoded = decode(
            decoder_input_ids,
            cache,
            decoder_attention_mask,
            decoder_position_ids,
            encoder_outputs=encoder_outputs,
            encoder_attention_mask=encoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=key,
        )
        if cache is None:
            return self._decoder_head(decoded)
        outputs, next_cache = decoded
        return self._decoder_head(outputs), next_cache

    def __call__(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        decoder_input_ids: Integer[ArrayLike, "batch target"] | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
        position_ids: Integer[ArrayLike, "#batch source"] | None = None,
        decoder_position_ids: Integer[ArrayLike, "#batch target"] | None = None,
        *,
        inputs_embeds: Float[Array, "batch source d_model"] | None = None,
        decoder_inputs_embeds: Float[Array, "batch target d_model"] | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> OutputT:
        """`BartModel.__call__`, with its arguments, and the head on top of it."""
        trunk_key, head_key = split_key(key, 2)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            position_ids,
            decoder_position_ids,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=trunk_key,
        )
        return self._head(outputs, input_ids, key=head_key)


class Projection(eqx.Module):
    """From hidden states to logits: by `lm_head` or, where that is tied, by the token
    embeddings, and with `final_logits_bias` where there is one."""

    lm_head: Linear | Embedding
    final_logits_bias: Buffer | None = None

    def __call__(
        self, hidden_states: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        """The logits, in the dtype of the hidden states."""
        logits = self._product(hidden_states)
        if self.final_logits_bias is not None:
            logits = logits + self.final_logits_bias.value.astype(logits.dtype)
        return logits

    def _product(self, hidden_states: Array) -> Array:
        if isinstance(self.lm_head, Linear):
            return self.lm_head(hidden_states)
        batch, length, d_model = hidden_states.shape
        rows = hidden_states.reshape(batch * length, d_model)
        logits = dot_transposed(rows, self.lm_head.weight).astype(hidden_states.dtype)
        return logits.reshape(batch, length, logits.shape[-1])


def _new_lm_head(config: BartConfig, *, key: PRNGKeyArray) -> Linear | None:
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


def _causal_lm_output(
    outputs: BaseModelOutputWithCrossAttentions,
    logits: Float[Array, "batch length vocab"],
) -> CausalLMOutputWithCrossAttentions:
    """`outputs`, with the logits in place of the last hidden state."""
    return CausalLMOutputWithCrossAttentions(
        logits=logits,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
        cross_attentions=outputs.cross_attentions,
    )


def _seq2seq_states(outputs: Seq2SeqModelOutput) -> dict[str, Any]:
    """The fields of `outputs` that every head passes on."""
    return {k: v for k, v in vars(outputs).items() if k != "last_hidden_state"}


class BartForConditionalGeneration(
    Seq2SeqModel[Seq2SeqLMOutput, CausalLMOutputWithCrossAttentions], GenerationMixin
):
    """BART with a language-modelling head, for summarisation, translation and the like.

    `lm_head` is `None` where it is tied to the token embeddings, `model.shared`.
    `final_logits_bias` is added to the logits; it is a buffer, which nothing trains.
    `generation_config` has the defaults of `generate`.

    Source: HF's `BartForConditionalGeneration`.
    """

    model: BartModel
    lm_head: Linear | None
    final_logits_bias: Buffer
    config: BartConfig = eqx.field(static=True)
    generation_config: GenerationConfig = eqx.field(static=True)

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
        self.lm_head = _new_lm_head(config, key=head_key)
        self.final_logits_bias = Buffer(jnp.zeros((1, config.vocab_size)))
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(
            config
        )

    @property
    def projection(self) -> Projection:
        """What makes logits of the trunk's last hidden state."""
        return Projection(self.lm_head or self.model.shared, self.final_logits_bias)

    def _logits(
        self, hidden_states: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        return self.projection(hidden_states)

    def _head(
        self,
        outputs: Seq2SeqModelOutput,
        input_ids: Integer[ArrayLike, "batch source"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> Seq2SeqLMOutput:
        logits = self._logits(outputs.last_hidden_state)
        return Seq2SeqLMOutput(logits=logits, **_seq2seq_states(outputs))

    def _decoder_head(
        self, outputs: BaseModelOutputWithCrossAttentions
    ) -> CausalLMOutputWithCrossAttentions:
        return _causal_lm_output(outputs, self._logits(outputs.last_hidden_state))

    @property
    def _decoder(self) -> BartDecoder:
        return self.model.decoder

    @property
    def _decoder_embed_tokens(self) -> Embedding:
        return self.model.decoder.embed_tokens or self.model.shared

    def _encoded(self, inputs: GenerationInputs) -> GenerationInputs:
        if inputs.encoder_hidden_states is not None:
            return inputs
        input_ids, offset = align_left(jnp.asarray(inputs.input_ids))
        mask = input_ids >= 0
        embed_tokens = self.model.encoder.embed_tokens or self.model.shared
        inputs_embeds = embed_tokens.lookup(jnp.maximum(input_ids, 0))
        states = self.encode(None, mask, inputs_embeds=inputs_embeds).last_hidden_state
        return GenerationInputs(inputs.prompt, input_ids, states, mask, offset)

    def generate(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        encoder_outputs: BaseModelOutput | None = None,
        decoder_input_ids: Integer[ArrayLike, "batch prompt"] | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationOutput:
        """Generates token ids from `input_ids`: greedy search, sampling, beam search or
        beam sampling, as the settings say.

        The encoder and the whole loop are one compiled program. Outside of `jit`, rows and
        tokens are padded to a power of two, so that inputs of many shapes share a few
        programs; inside, everything is as it is given. A row's answer depends neither on
        its neighbours nor on its padding, on whichever side.

        **Arguments:**

        - `input_ids`, `attention_mask`: as `encode` takes them. Padding before a row does
            not count as positions: the row is read as if it stood alone.
        - `generation_config`: settings that go before those of the model's own.
        - `encoder_outputs`: of `encode`, instead of `input_ids`, or beside them where a
            setting needs both.
        - `decoder_input_ids`, `decoder_attention_mask`: what the answers begin with, the
            start token alone by default. Outside of `jit` the start token is put before
            them if no row begins with it, as in HF.
        - `logits_processors`: processors of your own, which apply behind those of the
            settings and before the warpers of sampling.
        - `key`: for sampling. A row draws by the key, its tokens and, among rows that are
            alike, its number.
        - `overrides`: settings by name that go before all others, `num_beams=4` say.

        **Returns** the `GenerationOutput`.

        **Raises** `ValueError` if an id is outside the vocabulary, if a mask leaves nothing
        of a row, or if a setting is impossible for this model, contradicts another, or is
        not supported; `TypeError` if there is no such setting. Source: HF's
        `GenerationMixin.generate`.
        """
        return self._generate(
            self._generation_call(
                input_ids,
                attention_mask,
                generation_config,
                encoder_outputs=encoder_outputs,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                logits_processors=logits_processors,
                key=key,
                **overrides,
            )
        )

    def _generation_call(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        encoder_outputs: BaseModelOutput | None = None,
        decoder_input_ids: Integer[ArrayLike, "batch prompt"] | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationCall:
        config = self.generation_config.updated(generation_config, overrides)
        start, vocab_size = config.start_token_id, self.config.vocab_size
        states, mask = None, None
        if encoder_outputs is not None:
            states = encoder_outputs.last_hidden_state
            mask = encoder_mask(states, attention_mask, "attention_mask")
        if input_ids is not None:
            names = ("input_ids", "attention_mask")
            input_ids = masked_ids(input_ids, attention_mask, vocab_size, names)
        source = input_ids if states is None else states
        if source is None:
            raise ValueError("generate needs input_ids or encoder_outputs.")
        if decoder_input_ids is None:
            prompt = np.full((source.shape[0], 1), start, np.int32)
        else:
            names = ("decoder_input_ids", "decoder_attention_mask")
            prompt = masked_ids(
                decoder_input_ids, decoder_attention_mask, vocab_size, names
            )
            prompt = with_start_token(prompt, start)
        inputs = GenerationInputs(prompt, input_ids, states, mask)
        return self._checked_call(inputs, config, logits_processors, key)


class ClassificationHead(eqx.Module):
    """HF's `BartClassificationHead`: a tanh layer between dropouts, and a projection."""

    dense: Linear
    out_proj: Linear
    dropout: eqx.nn.Dropout

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        dense_key, out_key = jax.random.split(key)
        d_model, std = config.d_model, config.init_std
        self.dense = Linear(d_model, d_model, init_std=std, key=dense_key)
        self.out_proj = Linear(d_model, config.num_labels, init_std=std, key=out_key)
        self.dropout = eqx.nn.Dropout(config.classifier_dropout)

    def __call__(
        self, pooled: Float[Array, "batch d_model"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "batch num_labels"]:
        in_key, hidden_key = split_key(key, 2)
        hidden = jnp.tanh(self.dense(self.dropout(pooled, key=in_key)))
        return self.out_proj(self.dropout(hidden, key=hidden_key))


class BartForSequenceClassification(
    Seq2SeqModel[Seq2SeqSequenceClassifierOutput, BaseModelOutputWithCrossAttentions]
):
    """BART with a classifier of whole sequences, for GLUE tasks and the like.

    The decoder reads what the encoder reads, and the classifier reads the decoder's
    state at the last `</s>` of each row (Lewis et al. 2019, section 3.1), so that a
    call needs `input_ids`. Source: HF's `BartForSequenceClassification`.
    """

    model: BartModel
    classification_head: ClassificationHead
    config: BartConfig = eqx.field(static=True)

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random; see `BartModel`."""
        model_key, head_key = jax.random.split(key)
        self.model = BartModel(config, key=model_key)
        self.classification_head = ClassificationHead(config, key=head_key)
        self.config = config

    def _head(
        self,
        outputs: Seq2SeqModelOutput,
        input_ids: Integer[ArrayLike, "batch source"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> Seq2SeqSequenceClassifierOutput:
        if input_ids is None:
            raise ValueError(
                "BartForSequenceClassification needs input_ids: it reads the state at the "
                "last </s> of each row. For embeddings of your own, pass with them the "
                "encoder_outputs of encode(inputs_embeds=...)."
            )
        pooled = last_eos_state(
            outputs.last_hidden_state, jnp.asarray(input_ids), self.config.eos_token_ids
        )
        return Seq2SeqSequenceClassifierOutput(
            logits=self.classification_head(pooled, key=key), **_seq2seq_states(outputs)
        )

    def _decoder_head(
        self, outputs: BaseModelOutputWithCrossAttentions
    ) -> BaseModelOutputWithCrossAttentions:
        return outputs


def last_eos_state(
    hidden_states: Float[Array, "batch target d_model"],
    input_ids: Integer[Array, "batch source"],
    eos_token_ids: tuple[int, ...],
) -> Float[Array, "batch d_model"]:
    """Each row's hidden state at its last end-of-sequence token.

    **Raises** `ValueError` if the two lengths differ, if a row has no such token, or if
    the rows have different numbers of them; inside `jit`, when the program runs.
    """
    if hidden_states.shape[1] != input_ids.shape[1]:
        raise ValueError(
            "The decoder must read as many tokens as the encoder for its state at </s> to "
            f"be found: it read {hidden_states.shape[1]}, the encoder {input_ids.shape[1]}."
        )
    is_eos = jnp.isin(input_ids, jnp.asarray(eos_token_ids))
    counts = jnp.sum(is_eos, axis=1)
    counts = error_if(counts, counts == 0, "A row of input_ids has no eos_token_id.")
    counts = error_if(
        counts,
        jnp.any(counts != counts[:1]),
        "All rows of input_ids must have the same number of eos_token_id.",
    )
    order = jnp.cumsum(is_eos, axis=1)
    is_last = is_eos & (order == counts[:, None])
    return jnp.take_along_axis(
        hidden_states, jnp.argmax(is_last, axis=1)[:, None, None], axis=1
    )[:, 0]


class BartForQuestionAnswering(
    Seq2SeqModel[Seq2SeqQuestionAnsweringModelOutput, BaseModelOutputWithCrossAttentions]
):
    """BART with a head for the start and end of an answer in the text, as for SQuAD.

    Source: HF's `BartForQuestionAnswering`.
    """

    model: BartModel
    qa_outputs: Linear
    config: BartConfig = eqx.field(static=True)

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random; see `BartModel`."""
        model_key, head_key = jax.random.split(key)
        self.model = BartModel(config, key=model_key)
        self.qa_outputs = Linear(config.d_model, 2, init_std=config.init_std, key=head_key)
        self.config = config

    def _head(
        self,
        outputs: Seq2SeqModelOutput,
        input_ids: Integer[ArrayLike, "batch source"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> Seq2SeqQuestionAnsweringModelOutput:
        logits = self.qa_outputs(outputs.last_hidden_state)
        return Seq2SeqQuestionAnsweringModelOutput(
            start_logits=logits[..., 0],
            end_logits=logits[..., 1],
            **_seq2seq_states(outputs),
        )

    def _decoder_head(
        self, outputs: BaseModelOutputWithCrossAttentions
    ) -> BaseModelOutputWithCrossAttentions:
        return outputs


class BartDecoderWrapper(eqx.Module):
    """What stands at `model` in `BartForCausalLM`, for the sake of HF's names."""

    decoder: BartDecoder


class BartForCausalLM(GenerationMixin):
    """BART's decoder with a language-modelling head, with or without an encoder's states.

    `lm_head` is `None` where it is tied to `model.decoder.embed_tokens`.
    `generation_config` has the defaults of `generate`. Source: HF's `BartForCausalLM`.
    """

    model: BartDecoderWrapper
    lm_head: Linear | None
    config: BartConfig = eqx.field(static=True)
    generation_config: GenerationConfig = eqx.field(static=True)

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
        self.lm_head = _new_lm_head(config, key=head_key)
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(
            config
        )

    @property
    def _decoder(self) -> BartDecoder:
        return self.model.decoder

    @property
    def _decoder_embed_tokens(self) -> Embedding:
        embed_tokens = self.model.decoder.embed_tokens
        assert embed_tokens is not None
        return embed_tokens

    def init_cache(
        self,
        batch_size: int,
        max_length: int,
        encoder_hidden_states: Float[Array, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
    ) -> BartCache:
        """A cache for decoding up to `max_length` tokens; see `BartModel.init_cache`."""
        cross_attention = ()
        if encoder_hidden_states is not None:
            cross_attention = self.model.decoder.cross_attention(encoder_hidden_states)
        mask = encoder_attention_mask
        return BartCache(
            self.config,
            batch_size,
            check_max_length(max_length, self.config),
            cross_attention,
            None if mask is None else jnp.asarray(mask, bool),
            dtype=self._decoder_embed_tokens.weight.dtype,
        )

    def decode(
        self,
        input_ids: Integer[ArrayLike, "batch length"] | None,
        cache: BartCache,
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        position_ids: Integer[ArrayLike, "#batch length"] | None = None,
        *,
        inputs_embeds: Float[Array, "batch length d_model"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[CausalLMOutputWithCrossAttentions, BartCache]:
        """Runs the decoder on the tokens that follow those in `cache`, any number of them.

        The arguments, the results and the errors are those of `BartModel.decode`.
        """
        inputs_embeds = embed_inputs(
            self._decoder_embed_tokens, input_ids, inputs_embeds, "input_ids"
        )
        outputs, cache = self.model.decoder.step(
            inputs_embeds,
            cache.check(self.config, *inputs_embeds.shape[:2]),
            attention_mask,
            position_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=key,
        )
        return self._output(outputs), cache

    def __call__(
        self,
        input_ids: Integer[ArrayLike, "batch length"] | None = None,
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        encoder_hidden_states: Float[Array, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        position_ids: Integer[ArrayLike, "#batch length"] | None = None,
        *,
        inputs_embeds: Float[Array, "batch length d_model"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> CausalLMOutputWithCrossAttentions:
        """Runs the decoder on all tokens at once.

        The arguments, the results and the errors are those of `BartModel.decode`, but
        that the encoder's states are optional: without them no layer attends to any.
        """
        if encoder_hidden_states is None and encoder_attention_mask is not None:
            raise ValueError(
                "There is an encoder_attention_mask but no encoder_hidden_states."
            )
        inputs_embeds = embed_inputs(
            self._decoder_embed_tokens, input_ids, inputs_embeds, "input_ids"
        )
        outputs = self.model.decoder(
            inputs_embeds,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            position_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=key,
        )
        return self._output(outputs)

    def _output(
        self, outputs: BaseModelOutputWithCrossAttentions
    ) -> CausalLMOutputWithCrossAttentions:
        return _causal_lm_output(outputs, self._logits(outputs.last_hidden_state))

    def _logits(
        self, hidden_states: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        return Projection(self.lm_head or self._decoder_embed_tokens)(hidden_states)

    def generate(
        self,
        input_ids: Integer[ArrayLike, "batch prompt"],
        attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        encoder_hidden_states: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationOutput:
        """Continues `input_ids`; see `BartForConditionalGeneration.generate`.

        **Arguments:**

        - `input_ids`, `attention_mask`: the prompt. Without a mask, `pad_token_id` is
            padding, unless it is an `eos_token_id` too, as in HF.
        - `encoder_hidden_states`, `encoder_attention_mask`: what the decoder attends to,
            if it is to attend to anything.
        - the others, results and errors: as there. Settings about the source are about
            the prompt here, as in HF.
        """
        return self._generate(
            self._generation_call(
                input_ids,
                attention_mask,
                generation_config,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                logits_processors=logits_processors,
                key=key,
                **overrides,
            )
        )

    def _generation_call(
        self,
        input_ids: Integer[ArrayLike, "batch prompt"],
        attention_mask: Mask[ArrayLike, "batch prompt"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        encoder_hidden_states: Float[ArrayLike, "batch source d_model"] | None = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> GenerationCall:
        config = self.generation_config.updated(generation_config, overrides)
        pad = config.pad_token_id
        if attention_mask is None and pad not in (None, *as_id_tuple(config.eos_token_id)):
            attention_mask = input_ids != pad
        names = ("input_ids", "attention_mask")
        prompt = masked_ids(input_ids, attention_mask, self.config.vocab_size, names)
        mask = None
        if encoder_hidden_states is not None:
            mask = encoder_mask(
                encoder_hidden_states, encoder_attention_mask, "encoder_attention_mask"
            )
        inputs = GenerationInputs(prompt, prompt, encoder_hidden_states, mask)
        return self._checked_call(inputs, config, logits_processors, key)
