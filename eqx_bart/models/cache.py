"""The cache of decoding. Nothing is changed in place: each method that writes returns a new
object."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ..config import BartConfig
from ..nn.cache import FirstSlot, KeyValues, written
from ..nn.checks import ArrayLike, error_if, Mask


def check_max_length(max_length: int, max_positions: int) -> int:
    """`max_length`, if a model has positions for that many tokens.

    **Raises** `ValueError` if not, or if it is less than 1.
    """
    if not 1 <= max_length <= max_positions:
        raise ValueError(
            f"A cache of max_length={max_length} tokens does not fit the model: it "
            f"has max_position_embeddings={max_positions}."
        )
    return max_length


class BartCache(eqx.Module):
    """Everything that decoding remembers between calls.

    A model's `init_cache` makes one; `decode` takes one and returns the next.

    **Fields:**

    - `layers`: what each decoder layer remembers, in shapes of its own: usually a
        `DecoderLayerCache`, with room for the keys and values of `max_length` tokens.
    - `attention_mask`: which decoded tokens may be attended to. True = may attend.
    - `positions`: of the token in each slot, decoded or still to come.
    - `length`: how many tokens have been decoded; the position of the next one.
    - `source`: what an encoder has made of its input, as in `Context`; `None` without one.
    - `config`: the config of the model that the cache belongs to.
    """

    layers: tuple[Any, ...]
    attention_mask: Bool[Array, "batch max_length"]
    positions: Integer[Array, "batch max_length"]
    length: Integer[Array, ""]
    source: Any
    config: BartConfig

    def __init__(
        self,
        config: BartConfig,
        batch_size: int,
        max_length: int,
        layers: tuple[Any, ...],
        source: Any = None,
    ):
        """An empty cache.

        **Arguments:**

        - `batch_size`, `max_length`: the number of rows, and of slots in each.
        - `layers`: what `AbstractLayer.init_cache` returned for each layer.
        - `config`, `source`: see the fields.
        """
        slots = jnp.arange(max_length, dtype=jnp.int32)
        self.layers = layers
        self.attention_mask = jnp.ones((batch_size, max_length), bool)
        self.positions = jnp.broadcast_to(slots, (batch_size, max_length))
        self.length = jnp.zeros((), jnp.int32)
        self.source = source
        self.config = config

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        return self.attention_mask.shape[0]

    @property
    def max_length(self) -> int:
        """How many tokens there is room for in each row."""
        return self.attention_mask.shape[1]

    @property
    def self_attention(self) -> tuple[KeyValues, ...]:
        """For each `DecoderLayerCache`, the keys and values of the tokens so far."""
        return tuple(layer.self_attention for layer in self.layers)

    @property
    def cross_attention(self) -> tuple[KeyValues | None, ...]:
        """For each `DecoderLayerCache`, the keys and values of the encoder's states, if
        there are any."""
        return tuple(layer.cross_attention for layer in self.layers)

    def checked(
        self, config: BartConfig, inputs_embeds: Float[Array, "rows new d_model"]
    ) -> Float[Array, "rows new d_model"]:
        """The embeddings of the next tokens, if these fit into this cache.

        `config` is that of the model that decodes.

        **Raises** `ValueError` if they do not fit, or if the cache belongs to a model with
        another config. Inside `jit`, a lack of room is found when the program runs.
        """
        batch_size, num_tokens, _ = inputs_embeds.shape
        if self.config != config:
            raise ValueError(
                "This cache belongs to a model with another config. Make one with the "
                "init_cache of the model that decodes."
            )
        if self.batch_size != batch_size:
            raise ValueError(
                f"The cache holds a batch of {self.batch_size} rows and was given "
                f"decoder_input_ids for {batch_size}."
            )
        message = (
            f"The cache has room for max_length={self.max_length} tokens: {num_tokens} "
            "more do not fit"
        )
        if num_tokens > self.max_length:
            raise ValueError(f"{message} even when it is empty.")
        return error_if(
            inputs_embeds,
            self.length > self.max_length - num_tokens,
            f"{message} after those it holds. Pass a larger max_length to init_cache.",
        )

    def mask(self, num_tokens: int) -> Bool[Array, "batch 1 {num_tokens} max_length"]:
        """What each of the next `num_tokens` tokens may attend to, once written."""
        slots = jnp.arange(self.max_length, dtype=jnp.int32)[None]
        is_past = slots <= (self.length + jnp.arange(num_tokens, dtype=jnp.int32))[:, None]
        return is_past[None, None] & self.attention_mask[:, None, None, :]

    def expect(
        self,
        attention_mask: Mask[ArrayLike, "batch new"] | None = None,
        position_ids: Integer[Array, "#batch new"] | None = None,
        first_slot: FirstSlot | None = None,
    ) -> "BartCache":
        """This cache, with notes about the tokens that are written next.

        **Arguments:**

        - `attention_mask`: which of them may be attended to; all by default.
        - `position_ids`: their positions; by default those that follow one another.
        - `first_slot`: as in `Context`; by default the first that has not been written to.
        """
        start = self.length if first_slot is None else first_slot

        def noted(old: Array, new: Array) -> Array:
            new = jnp.broadcast_to(new, (self.batch_size, new.shape[1])).astype(old.dtype)
            return written(old, new, start, axis=1)

        mask, positions = self.attention_mask, self.positions
        if attention_mask is not None:
            mask = noted(mask, jnp.asarray(attention_mask, bool))
        if position_ids is not None:
            positions = noted(positions, position_ids)
        return eqx.tree_at(
            lambda cache: (cache.attention_mask, cache.positions), self, (mask, positions)
        )

    def advance(self, layers: tuple[Any, ...], num_tokens: int) -> "BartCache":
        """The cache after `num_tokens` more tokens; `layers` is what its layers then
        remember."""
        return eqx.tree_at(
            lambda cache: (cache.layers, cache.length),
            self,
            (layers, self.length + num_tokens),
        )
