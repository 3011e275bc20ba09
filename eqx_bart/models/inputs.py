"""What models make of the arguments that they are given."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..config import BartConfig
from ..explained import explained
from ..nn.checks import ArrayLike, as_indices, Mask
from ..nn.embedding import AbstractEmbedding
from ..nn.layer import Show, Source
from ..nn.mesh import on_any_mesh
from ..nn.segments import segment_starts
from .cache import BartCache
from .decoder import BartDecoder
from .outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions


#: The label that losses ignore.
IGNORE_INDEX = -100


@explained
@on_any_mesh
def shift_tokens_right(
    input_ids: Integer[ArrayLike, "batch length"],
    pad_token_id: int | None,
    decoder_start_token_id: int | None,
    segment_ids: Integer[ArrayLike, "batch length"] | None = None,
) -> Integer[Array, "batch length"]:
    """The decoder's input for a target: the start token, then all but the target's last.

    **Arguments:**

    - `input_ids`: the target.
    - `pad_token_id`: what replaces the label that losses ignore, -100.
    - `decoder_start_token_id`: the start token.
    - `segment_ids`: which of the targets in a row each token is of; see `BartModel.encode`.
        Each target is shifted by itself.

    **Raises** `ValueError` if either token id is `None`.

    Source: HF's function of this name.
    """
    if pad_token_id is None or decoder_start_token_id is None:
        raise ValueError(
            "shift_tokens_right needs pad_token_id and decoder_start_token_id; they are "
            f"{pad_token_id} and {decoder_start_token_id}."
        )
    shifted = jnp.roll(as_indices(input_ids), 1, axis=1)
    if segment_ids is None:
        shifted = shifted.at[:, :1].set(decoder_start_token_id)
    else:
        is_first = segment_starts(as_indices(segment_ids))
        shifted = jnp.where(is_first, decoder_start_token_id, shifted)
    return jnp.where(shifted == IGNORE_INDEX, pad_token_id, shifted)


def embed_inputs(
    embed_tokens: AbstractEmbedding,
    input_ids: Integer[ArrayLike, "batch length"] | None,
    inputs_embeds: Float[ArrayLike, "batch length d_model"] | None,
    name: str,
) -> Float[Array, "batch length d_model"]:
    """The embeddings of `input_ids`, or `inputs_embeds` as they are.

    **Raises** `ValueError` unless exactly one of them is given, or if there are no tokens;
    `name` is what the message calls the ids.
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
    return jnp.asarray(inputs_embeds)


def shown(
    config: BartConfig, *, output_attentions: bool | None, output_hidden_states: bool | None
) -> Show:
    """What a call of a model shows: what the config says where the call does not."""
    if output_attentions is None:
        output_attentions = config.output_attentions
    if output_hidden_states is None:
        output_hidden_states = config.output_hidden_states
    return Show(output_attentions, output_hidden_states)


def source_of(
    encoder_outputs: Any,
    attention_mask: Mask[ArrayLike, "..."] | None,
    input_ids: Integer[ArrayLike, "..."] | None,
    segment_ids: Integer[ArrayLike, "..."] | None = None,
) -> Any:
    """The `Source` made of what an encoder returned. What layers of your own attend to is
    returned as it is.

    **Raises** `TypeError` if there is a mask, or ids, that would go unused.
    """
    if isinstance(encoder_outputs, BaseModelOutput):
        states = encoder_outputs.last_hidden_state
        return make_source(states, attention_mask, input_ids, segment_ids)
    if any(x is not None for x in (attention_mask, input_ids, segment_ids)):
        raise TypeError(
            "An attention_mask, input_ids and segment_ids go with what encode returned. Of "
            f"a {type(encoder_outputs).__name__} they have to be parts."
        )
    return encoder_outputs


def make_source(
    hidden_states: Float[ArrayLike, "batch source d_model"],
    attention_mask: Mask[ArrayLike, "..."] | None,
    input_ids: Integer[ArrayLike, "..."] | None = None,
    segment_ids: Integer[ArrayLike, "..."] | None = None,
) -> Source:
    """A `Source` made of what users give."""
    return Source(
        jnp.asarray(hidden_states),
        None if attention_mask is None else jnp.asarray(attention_mask, bool),
        None if input_ids is None else as_indices(input_ids),
        segment_ids=None if segment_ids is None else as_indices(segment_ids),
    )


def check_source(
    batch_size: int,
    hidden_states: Float[ArrayLike, "_ source d_model"],
    attention_mask: Mask[ArrayLike, "..."] | None,
) -> None:
    """**Raises** `ValueError` if an encoder's states and their mask do not fit one another,
    or the rows of a cache."""
    shape = hidden_states.shape[:2]
    mask_shape = shape if attention_mask is None else attention_mask.shape
    if not shape == mask_shape == (batch_size, shape[1]):
        raise ValueError(
            f"For batch={batch_size}, the encoder's states are [batch, source]="
            f"{list(shape)} and their attention_mask is {list(mask_shape)}."
        )


def refuse_overrides(model: Any, used: str, *unused: str) -> None:
    """**Raises** `TypeError` if the class of `model` overrides a method that is `unused` in
    `used`, the method that the user calls."""
    for name in unused:
        method = getattr(type(model), name)
        if not method.__module__.startswith(f"{__name__.partition('.')[0]}."):
            raise TypeError(
                f"{type(model).__name__} overrides {name}, and {used} does not go by it. "
                "Change what both use instead: a layer, an attention, or the head, an "
                "AbstractLMHead."
            )


def run_decoder(
    decoder: BartDecoder,
    config: BartConfig,
    inputs_embeds: Float[Array, "batch target d_model"],
    attention_mask: Mask[ArrayLike, "batch target"] | None,
    position_ids: Integer[ArrayLike, "#batch target"] | None,
    before: Any,
    *,
    segment_ids: Integer[ArrayLike, "batch target"] | None = None,
    show: Show,
    key: PRNGKeyArray | None,
) -> tuple[BaseModelOutputWithCrossAttentions, BartCache | None]:
    """The decoder's outputs, and the next cache if there is one.

    `before` is a source or `None`, for all tokens at once; or the cache of the tokens
    before these.

    **Raises** `ValueError` if a position is outside the table, if the tokens do not fit
    the cache, or if there is a cache as well as `segment_ids`.
    """
    if position_ids is not None:
        inputs_embeds, position_ids = decoder.embed_positions.checked(
            inputs_embeds, position_ids, "decoder_position_ids"
        )
    if isinstance(before, BartCache):
        if segment_ids is not None:
            raise ValueError(
                "decoder_segment_ids are for a pass over all tokens: the rows of a cache "
                "have one example each."
            )
        inputs_embeds = before.checked(config, inputs_embeds)
        return decoder.step(
            inputs_embeds, before, attention_mask, position_ids, show=show, key=key
        )
    decoded = decoder(
        inputs_embeds,
        attention_mask,
        position_ids,
        before,
        segment_ids=segment_ids,
        show=show,
        key=key,
    )
    return decoded, None
