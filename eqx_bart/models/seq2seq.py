"""What all encoder-decoders share: `encode`, `init_cache`, `decode` and `__call__`."""

import abc
import dataclasses
from typing import Any, Generic, overload, TypeVar

import equinox as eqx
import jax
from jaxtyping import Float, Integer, PRNGKeyArray

from ..checkpoint.pretrained import PretrainedModel
from ..config import BartConfig
from ..explained import explained
from ..nn.checks import ArrayLike, Mask
from ..nn.dropout import split_key
from ..nn.embedding import AbstractEmbedding
from ..nn.layer import Show
from ..nn.mesh import on_any_mesh
from ..nn.output import ModelOutput
from .cache import BartCache, check_max_length
from .decoder import BartDecoder
from .encoder import BartEncoder
from .inputs import (
    check_source,
    embed_inputs,
    refuse_overrides,
    run_decoder,
    shift_tokens_right,
    shown,
    source_of,
)
from .outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions


OutputT = TypeVar("OutputT", bound=ModelOutput)
DecodedT = TypeVar("DecodedT", bound=ModelOutput)


class AbstractTrunk(eqx.Module):
    """An encoder and a decoder."""

    shared: eqx.AbstractVar[AbstractEmbedding]
    encoder: eqx.AbstractVar[BartEncoder]
    decoder: eqx.AbstractVar[BartDecoder]

    @property
    def encoder_embed_tokens(self) -> AbstractEmbedding:
        """The encoder's table of token embeddings, its own or the shared one."""
        return self.encoder.embed_tokens or self.shared

    @property
    def decoder_embed_tokens(self) -> AbstractEmbedding:
        """The decoder's table of token embeddings, its own or the shared one."""
        return self.decoder.embed_tokens or self.shared


class Seq2SeqModel(PretrainedModel, Generic[OutputT, DecodedT]):
    """An encoder-decoder, with or without a head."""

    @property
    @abc.abstractmethod
    def _trunk(self) -> AbstractTrunk:
        """The encoder and the decoder."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self._trunk.encoder_embed_tokens.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest sequence that the encoder and the decoder read, in tokens."""
        trunk = self._trunk
        sides = (trunk.encoder, trunk.decoder)
        return min(x.embed_positions.max_positions for x in sides)

    @property
    @abc.abstractmethod
    def _needs_attentions(self) -> bool:
        """Whether the head reads attention weights."""

    @abc.abstractmethod
    def _output(
        self,
        decoded: BaseModelOutputWithCrossAttentions,
        encoded: Any,
        source: Any,
        show: Show,
        *,
        key: PRNGKeyArray | None,
    ) -> OutputT:
        """What `__call__` makes of the trunk's outputs."""

    @abc.abstractmethod
    def _decoder_output(
        self, decoded: BaseModelOutputWithCrossAttentions, source: Any, show: Show
    ) -> DecodedT:
        """What `decode` makes of the decoder's outputs."""

    @explained
    @on_any_mesh
    def encode(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        position_ids: Integer[ArrayLike, "#batch source"] | None = None,
        *,
        inputs_embeds: Float[ArrayLike, "batch source d_model"] | None = None,
        segment_ids: Integer[ArrayLike, "batch source"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> BaseModelOutput:
        """Runs the encoder.

        **Arguments:**

        - `input_ids`: tokens, in `[0, vocab_size)`; or `inputs_embeds`, their embeddings.
        - `attention_mask`: 1 or True for tokens, 0 or False for padding; all 1 by default.
        - `position_ids`: 0, 1, 2, ... by default, whatever the mask, and in each example.
        - `segment_ids`: which example each token is of, where a row holds more than one:
            any number for each, other than its neighbours', and 0 for padding. Tokens see
            their own example alone. See `eqx_bart.pack`.
        - `output_attentions`, `output_hidden_states`: whether to return these as well; by
            default what the config says.
        - `key`: for dropout and LayerDrop; needed in training mode only.

        **Returns** the hidden states.

        **Raises** `ValueError` if an id or a position is outside its table, `RuntimeError`
        if a key is missing.
        """
        trunk = self._trunk
        inputs_embeds = embed_inputs(
            trunk.encoder_embed_tokens, input_ids, inputs_embeds, "input_ids"
        )
        if position_ids is not None:
            table = trunk.encoder.embed_positions
            inputs_embeds, position_ids = table.checked(
                inputs_embeds, position_ids, "position_ids"
            )
        show = shown(
            self.config,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return trunk.encoder(
            inputs_embeds,
            attention_mask,
            position_ids,
            segment_ids=segment_ids,
            show=show,
            key=key,
        )

    @explained
    @on_any_mesh
    def init_cache(
        self,
        encoder_outputs: Any,
        max_length: int,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        *,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
    ) -> BartCache:
        """A cache for decoding up to `max_length` tokens from `encoder_outputs`.

        The keys and values of cross-attention are computed here, once.

        **Arguments:**

        - `encoder_outputs`: what `encode` returned; or what your own layers attend to,
            any pytree of arrays with a row for each input.
        - `max_length`: the number of tokens to make room for in each row.
        - `attention_mask`: the encoder's.
        - `input_ids`: what the encoder has read, for a head that copies from it.

        **Raises** `ValueError` if the model has no `max_length` positions, or if the
        encoder's states and their mask do not fit one another.
        """
        decoder = self._trunk.decoder
        dtype = self._trunk.decoder_embed_tokens.dtype
        batch_size = len(jax.tree.leaves(encoder_outputs)[0])
        if isinstance(encoder_outputs, BaseModelOutput):
            states = encoder_outputs.last_hidden_state
            check_source(batch_size, states, attention_mask)
            dtype = states.dtype
        return decoder.init_cache(
            self.config,
            batch_size,
            check_max_length(max_length, decoder.embed_positions.max_positions),
            source_of(encoder_outputs, attention_mask, input_ids),
            dtype=dtype,
        )

    @overload
    def decode(
        self,
        decoder_input_ids: Integer[ArrayLike, "batch target"] | None = None,
        cache: None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
        decoder_position_ids: Integer[ArrayLike, "#batch target"] | None = None,
        *,
        encoder_outputs: Any,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        encoder_input_ids: Integer[ArrayLike, "batch source"] | None = None,
        encoder_segment_ids: Integer[ArrayLike, "batch source"] | None = None,
        decoder_inputs_embeds: Float[ArrayLike, "batch target d_model"] | None = None,
        decoder_segment_ids: Integer[ArrayLike, "batch target"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
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
        decoder_inputs_embeds: Float[ArrayLike, "batch target d_model"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[DecodedT, BartCache]: ...

    @explained
    @on_any_mesh
    def decode(
        self,
        decoder_input_ids: Integer[ArrayLike, "batch target"] | None = None,
        cache: BartCache | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
        decoder_position_ids: Integer[ArrayLike, "#batch target"] | None = None,
        *,
        encoder_outputs: Any = None,
        encoder_attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        encoder_input_ids: Integer[ArrayLike, "batch source"] | None = None,
        encoder_segment_ids: Integer[ArrayLike, "batch source"] | None = None,
        decoder_inputs_embeds: Float[ArrayLike, "batch target d_model"] | None = None,
        decoder_segment_ids: Integer[ArrayLike, "batch target"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> DecodedT | tuple[DecodedT, BartCache]:
        """Runs the decoder: on all tokens at once, or on the next ones, with a cache.

        **Arguments:**

        - `decoder_input_ids`: tokens, in `[0, vocab_size)`; or `decoder_inputs_embeds`,
            their embeddings. With a cache, any number of tokens that follow those in it.
        - `cache`: from `init_cache`, or from the previous call.
        - `decoder_attention_mask`: which of these tokens may be attended to, by them and
            by all that follow.
        - `decoder_position_ids`: by default the positions follow one another from 0, or
            from the end of the cache, whatever the mask.
        - `encoder_outputs`, `encoder_attention_mask`: what `encode` returned and the mask
            that it was given, or what your own layers attend to. For use without a cache: a
            cache has both.
        - `encoder_input_ids`: what `encode` was given, for a head that copies from it.
        - `encoder_segment_ids`: what `encode` was given; `decoder_segment_ids`: those of
            these tokens, which attend to their own example's. For use without a cache.
        - `output_attentions`, `output_hidden_states`, `key`: as in `encode`.

        **Returns** the decoder's outputs, with logits if the model has a language-modelling
        head; with a cache, these and the next cache.

        **Raises** `ValueError` if an id or a position is outside its table, or if the
        tokens do not fit the cache; `RuntimeError` if a key is missing.
        """
        if (cache is None) == (encoder_outputs is None):
            raise ValueError(
                "decode takes either a cache from init_cache or the encoder_outputs of "
                f"encode; it was given {'neither' if cache is None else 'both'}."
            )
        of_source = (encoder_attention_mask, encoder_input_ids, encoder_segment_ids)
        if cache is not None and any(x is not None for x in of_source):
            raise ValueError(
                "A cache knows the encoder's attention_mask from init_cache, and its "
                "input_ids: give them there, not to decode. Its rows have one example each."
            )
        show = shown(
            self.config,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        before: Any = cache
        if encoder_outputs is not None:
            before = source_of(encoder_outputs, *of_source)
        decoded, next_cache = self._decode(
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            decoder_position_ids,
            before,
            segment_ids=decoder_segment_ids,
            show=show,
            key=key,
        )
        source = before if cache is None else cache.source
        output = self._decoder_output(decoded, source, show)
        return output if next_cache is None else (output, next_cache)

    def _decode(
        self,
        input_ids: Integer[ArrayLike, "batch target"] | None,
        inputs_embeds: Float[ArrayLike, "batch target d_model"] | None,
        attention_mask: Mask[ArrayLike, "batch target"] | None,
        position_ids: Integer[ArrayLike, "#batch target"] | None,
        before: Any,
        *,
        segment_ids: Integer[ArrayLike, "batch target"] | None,
        show: Show,
        key: PRNGKeyArray | None,
    ) -> tuple[BaseModelOutputWithCrossAttentions, BartCache | None]:
        """The decoder's outputs for all tokens, given a source; or for the next ones, given
        a cache, and the next cache."""
        trunk = self._trunk
        inputs_embeds = embed_inputs(
            trunk.decoder_embed_tokens, input_ids, inputs_embeds, "decoder_input_ids"
        )
        return run_decoder(
            trunk.decoder,
            self.config,
            inputs_embeds,
            attention_mask,
            position_ids,
            before,
            segment_ids=segment_ids,
            show=Show(show.attentions or self._needs_attentions, show.hidden_states),
            key=key,
        )

    @explained
    @on_any_mesh
    def __call__(
        self,
        input_ids: Integer[ArrayLike, "batch source"] | None = None,
        attention_mask: Mask[ArrayLike, "batch source"] | None = None,
        decoder_input_ids: Integer[ArrayLike, "batch target"] | None = None,
        decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
        position_ids: Integer[ArrayLike, "#batch source"] | None = None,
        decoder_position_ids: Integer[ArrayLike, "#batch target"] | None = None,
        *,
        inputs_embeds: Float[ArrayLike, "batch source d_model"] | None = None,
        decoder_inputs_embeds: Float[ArrayLike, "batch target d_model"] | None = None,
        segment_ids: Integer[ArrayLike, "batch source"] | None = None,
        decoder_segment_ids: Integer[ArrayLike, "batch target"] | None = None,
        encoder_outputs: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> OutputT:
        """Encodes and decodes.

        **Arguments:**

        - `input_ids`, `attention_mask`, `position_ids`, `inputs_embeds`, `segment_ids`: as
            in `encode`.
        - `decoder_input_ids`, `decoder_attention_mask`, `decoder_position_ids`,
            `decoder_inputs_embeds`, `decoder_segment_ids`: as in `decode`. By default the
            decoder reads `input_ids`, shifted right by one; see `shift_tokens_right`.
        - `encoder_outputs`: what `encode` returned, to save a run of the encoder; the
            `attention_mask` is still needed. Or what your own layers attend to, any pytree
            of arrays.
        - `output_attentions`, `output_hidden_states`, `key`: as in `encode`.

        **Returns** the model's outputs, with those of the encoder and the decoder.

        **Raises** as `encode` and `decode` do, and `ValueError` if the decoder's input has
        no default.
        """
        refuse_overrides(self, "__call__", "decode")
        encoder_key, decoder_key, head_key = split_key(key, 3)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if input_ids is None:
                raise ValueError(
                    "Without input_ids there is no default for the decoder's input: pass "
                    "decoder_input_ids or decoder_inputs_embeds."
                )
            config = self.config
            decoder_input_ids = shift_tokens_right(
                input_ids, config.pad_token_id, config.decoder_start_token_id, segment_ids
            )
            decoder_segment_ids = segment_ids
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_ids,
                attention_mask,
                position_ids,
                inputs_embeds=inputs_embeds,
                segment_ids=segment_ids,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                key=encoder_key,
            )
        show = shown(
            self.config,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        source = source_of(encoder_outputs, attention_mask, input_ids, segment_ids)
        decoded, _ = self._decode(
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            decoder_position_ids,
            source,
            segment_ids=decoder_segment_ids,
            show=show,
            key=decoder_key,
        )
        return self._output(decoded, encoder_outputs, source, show, key=head_key)

    def _described_config(self) -> BartConfig:
        trunk = self._trunk
        return dataclasses.replace(
            self.config,
            encoder_layers=len(trunk.encoder.layers),
            decoder_layers=len(trunk.decoder.layers),
            vocab_size=trunk.shared.vocab_size,
            max_position_embeddings=trunk.decoder.embed_positions.max_positions,
        )


def seq2seq_states(
    decoded: BaseModelOutputWithCrossAttentions, encoded: Any, show: Show
) -> dict[str, Any]:
    """The fields that all encoder-decoders return after their own, by HF's names."""
    states: dict[str, Any] = {
        "decoder_hidden_states": decoded.hidden_states,
        "decoder_attentions": decoded.attentions if show.attentions else None,
        "cross_attentions": decoded.cross_attentions if show.attentions else None,
        "decoder_shown": decoded.shown,
    }
    if not isinstance(encoded, BaseModelOutput):
        return states
    return states | {
        "encoder_last_hidden_state": encoded.last_hidden_state,
        "encoder_hidden_states": encoded.hidden_states,
        "encoder_attentions": encoded.attentions,
        "encoder_shown": encoded.shown,
    }
