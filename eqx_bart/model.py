"""`BartModel`: the encoder and the decoder, without a head."""

import math
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .cache import BartCache, check_max_length
from .checkpoint.pretrained import PretrainedModel
from .checks import ArrayLike, as_indices, Mask
from .config import BartConfig
from .decoder import BartDecoder
from .encoder import BartEncoder
from .layers import Embedding, split_key
from .outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    Seq2SeqModelOutput,
)


#: The label that losses ignore.
IGNORE_INDEX = -100


def shift_tokens_right(
    input_ids: Integer[ArrayLike, "batch length"],
    pad_token_id: int | None,
    decoder_start_token_id: int | None,
) -> Integer[Array, "batch length"]:
    """The decoder's input for the target `input_ids`: the start token, then all but the
    last of them. `IGNORE_INDEX` becomes padding.

    **Raises** `ValueError` if either token id is `None`. Source: HF's function.
    """
    if pad_token_id is None or decoder_start_token_id is None:
        raise ValueError(
            "shift_tokens_right needs pad_token_id and decoder_start_token_id; they are "
            f"{pad_token_id} and {decoder_start_token_id}."
        )
    shifted = jnp.roll(as_indices(input_ids), 1, axis=1)
    shifted = shifted.at[:, :1].set(decoder_start_token_id)
    return jnp.where(shifted == IGNORE_INDEX, pad_token_id, shifted)


def token_embedding(config: BartConfig, *, key: PRNGKeyArray) -> Embedding:
    """A table of token embeddings for a model of this config."""
    return Embedding(
        config.vocab_size,
        config.d_model,
        padding_idx=config.pad_token_id,
        scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
        init_std=config.init_std,
        key=key,
    )


def embed_inputs(
    embed_tokens: Embedding,
    input_ids: Integer[ArrayLike, "batch length"] | None,
    inputs_embeds: Float[Array, "batch length d_model"] | None,
    name: str,
) -> Float[Array, "batch length d_model"]:
    """The embeddings of `input_ids`, or `inputs_embeds`, whichever is given.

    **Raises** `ValueError` unless just one of them is; `name` is what the message calls
    the ids.
    """
    if (input_ids is None) == (inputs_embeds is None):
        other = name.replace("input_ids", "inputs_embeds")
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"Pass either {name} or {other}, not {given}.")
    if inputs_embeds is None:
        assert input_ids is not None
        inputs_embeds = embed_tokens(input_ids, name)
    if inputs_embeds.shape[1] == 0:
        raise ValueError(f"{name} are empty: a sequence needs at least one token.")
    return inputs_embeds


class BartModel(PretrainedModel):
    """An encoder-decoder that returns hidden states. Source: HF's `BartModel`.

    `shared` is the table of token embeddings. With `tie_word_embeddings` off, encoder and
    decoder have tables of their own, and `shared`, as in HF, goes unused.
    """

    shared: Embedding
    encoder: BartEncoder
    decoder: BartDecoder
    config: BartConfig = eqx.field(static=True)

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random, as HF does, with `config.init_std`.

        The model is in training mode; see `equinox.nn.inference_mode`.
        """
        keys = jax.random.split(key, 5)
        encoder_tokens = decoder_tokens = None
        if not config.tie_word_embeddings:
            encoder_tokens = token_embedding(config, key=keys[3])
            decoder_tokens = token_embedding(config, key=keys[4])
        self.shared = token_embedding(config, key=keys[0])
        self.encoder = BartEncoder(config, encoder_tokens, key=keys[1])
        self.decoder = BartDecoder(config, decoder_tokens, key=keys[2])
        self.config = config

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
        """Runs the encoder.

        **Arguments:**

        - `input_ids`: tokens, in `[0, vocab_size)`; or `inputs_embeds`, their embeddings.
        - `attention_mask`: 1 or True for tokens, 0 or False for padding; all 1 by default.
        - `position_ids`: 0, 1, 2, ... by default, whatever the mask.
        - `output_attentions`, `output_hidden_states`: whether to return these as well.
        - `key`: for dropout and LayerDrop; needed in training mode only.

        **Returns** the hidden states. **Raises** `ValueError` if an id or a position is
        outside its table, `RuntimeError` if a key is missing.
        """
        inputs_embeds = embed_inputs(
            self.encoder.embed_tokens or self.shared, input_ids, inputs_embeds, "input_ids"
        )
        return self.encoder(
            inputs_embeds,
            attention_mask,
            position_ids,
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
        """A cache for decoding up to `max_length` tokens from `encoder_outputs`.

        The keys and values of cross-attention are computed here, once. `attention_mask`
        is the encoder's. **Raises** `ValueError` if the model has no `max_length`
        positions.
        """
        states = encoder_outputs.last_hidden_state
        return BartCache(
            self.config,
            states.shape[0],
            check_max_length(max_length, self.config),
            self.decoder.cross_attention(states),
            None if attention_mask is None else jnp.asarray(attention_mask, bool),
            dtype=states.dtype,
        )

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
    ) -> BaseModelOutputWithCrossAttentions: ...

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
    ) -> tuple[BaseModelOutputWithCrossAttentions, BartCache]: ...

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
    ) -> (
        BaseModelOutputWithCrossAttentions
        | tuple[BaseModelOutputWithCrossAttentions, BartCache]
    ):
        """Runs the decoder: on all tokens at once, or on the next ones, with a cache.

        **Arguments:**

        - `decoder_input_ids`: tokens, in `[0, vocab_size)`; or `decoder_inputs_embeds`,
            their embeddings. With a cache, any number of tokens that follow those in it.
        - `cache`: from `init_cache`, or from the previous call.
        - `decoder_attention_mask`: which of these tokens may be attended to, by them and
            by all that follow.
        - `decoder_position_ids`: by default the positions follow one another from 0, or
            from where the cache ends, whatever the mask.
        - `encoder_outputs`, `encoder_attention_mask`: what `encode` returned and the mask
            it was given. For use without a cache: a cache has both.
        - `output_attentions`, `output_hidden_states`, `key`: as in `encode`.

        **Returns** the hidden states; with a cache, these and the next cache.

        **Raises** `ValueError` if an id or a position is outside its table, or if the
        tokens do not fit the cache; `RuntimeError` if a key is missing.
        """
        if (cache is None) == (encoder_outputs is None):
            raise ValueError(
                "decode takes either a cache from init_cache or the encoder_outputs of "
                f"encode; it was given {'neither' if cache is None else 'both'}."
            )
        if cache is not None and encoder_attention_mask is not None:
            raise ValueError(
                "A cache knows the encoder's attention_mask from init_cache: give it "
                "there, not to decode."
            )
        inputs_embeds = embed_inputs(
            self.decoder.embed_tokens or self.shared,
            decoder_input_ids,
            decoder_inputs_embeds,
            "decoder_input_ids",
        )
        options: Any = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "key": key,
        }
        if encoder_outputs is not None:
            return self.decoder(
                inputs_embeds,
                decoder_attention_mask,
                encoder_outputs.last_hidden_state,
                encoder_attention_mask,
                decoder_position_ids,
                **options,
            )
        assert cache is not None
        cache = cache.check(self.config, *inputs_embeds.shape[:2])
        return self.decoder.step(
            inputs_embeds, cache, decoder_attention_mask, decoder_position_ids, **options
        )

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
    ) -> Seq2SeqModelOutput:
        """Encodes and decodes.

        The arguments are those of `encode` and `decode`. The decoder's input is by
        default the encoder's, shifted right by one. `encoder_outputs` replaces a run of
        the encoder; the `attention_mask` is still needed.
        """
        encoder_key, decoder_key = split_key(key, 2)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if input_ids is None:
                raise ValueError(
                    "Without input_ids there is no default for the decoder's input: pass "
                    "decoder_input_ids or decoder_inputs_embeds."
                )
            decoder_input_ids = shift_tokens_right(
                input_ids, self.config.pad_token_id, self.config.decoder_start_token_id
            )
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_ids,
                attention_mask,
                position_ids,
                inputs_embeds=inputs_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                key=encoder_key,
            )
        decoded = self.decode(
            decoder_input_ids,
            None,
            decoder_attention_mask,
            decoder_position_ids,
            encoder_outputs=encoder_outputs,
            encoder_attention_mask=attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            key=decoder_key,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )
