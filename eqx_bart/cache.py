"""The key/value cache of decoding. Nothing is changed in place: each method that writes
returns a new object."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from .checks import ArrayLike, error_if, Mask
from .config import BartConfig


class KeyValues(eqx.Module):
    """What an attention attends to: a key and a value for each position and head."""

    keys: Float[Array, "batch heads length head_dim"]
    values: Float[Array, "batch heads length head_dim"]

    def write(self, new: "KeyValues", start: int | Integer[Array, ""]) -> "KeyValues":
        """These, with `new` written over the positions from `start` on."""

        def write(old: Array, new: Array) -> Array:
            new = new.astype(old.dtype)
            return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=2)

        return jax.tree.map(write, self, new)


def check_max_length(max_length: int, config: BartConfig) -> int:
    """`max_length`, if a model of this config has positions for so many tokens.

    **Raises** `ValueError` if not, or if it is less than 1.
    """
    if not 1 <= max_length <= config.max_position_embeddings:
        raise ValueError(
            f"A cache of max_length={max_length} tokens does not fit the model: it "
            f"has max_position_embeddings={config.max_position_embeddings}."
        )
    return max_length


class BartCache(eqx.Module):
    """Everything that decoding remembers between calls.

    `init_cache` of a model makes one, `decode` takes one and returns the next.

    **Fields:**

    - `self_attention`: for each decoder layer, the keys and values of the tokens decoded
        so far, in arrays with room for `max_length` of them.
    - `cross_attention`: for each decoder layer, the keys and values of the encoder's
        last hidden state; empty if there is no encoder.
    - `attention_mask`: which decoded tokens may be attended to. True = may attend.
    - `encoder_attention_mask`: the same for the encoder's positions.
    - `length`: how many tokens have been decoded; the position of the next one.
    - `config`: the config of the model that the cache belongs to.
    """

    self_attention: tuple[KeyValues, ...]
    cross_attention: tuple[KeyValues, ...]
    attention_mask: Bool[Array, "batch max_length"]
    encoder_attention_mask: Bool[Array, "batch source"] | None
    length: Integer[Array, ""]
    config: BartConfig = eqx.field(static=True)

    def __init__(
        self,
        config: BartConfig,
        batch_size: int,
        max_length: int,
        cross_attention: tuple[KeyValues, ...] = (),
        encoder_attention_mask: Bool[Array, "batch source"] | None = None,
        *,
        dtype: jnp.dtype,
    ):
        """An empty cache.

        **Raises** `ValueError` if the encoder's states and mask do not fit one another.
        """
        for key_values in cross_attention:
            states_shape = (key_values.keys.shape[0], key_values.keys.shape[2])
            mask = encoder_attention_mask
            mask_shape = states_shape if mask is None else mask.shape
            if not states_shape == mask_shape == (batch_size, states_shape[1]):
                raise ValueError(
                    f"For batch={batch_size}, the encoder's states are [batch, source]="
                    f"{list(states_shape)} and their attention_mask is {list(mask_shape)}."
                )
        heads = config.decoder_attention_heads
        shape = (batch_size, heads, max_length, config.d_model // heads)
        self.self_attention = tuple(
            KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
            for _ in range(config.decoder_layers)
        )
        self.cross_attention = cross_attention
        self.attention_mask = jnp.ones((batch_size, max_length), bool)
        self.encoder_attention_mask = encoder_attention_mask
        self.length = jnp.zeros((), jnp.int32)
        self.config = config

    @property
    def batch_size(self) -> int:
        return self.attention_mask.shape[0]

    @property
    def max_length(self) -> int:
        return self.attention_mask.shape[1]

    def check(self, config: BartConfig, batch_size: int, num_tokens: int) -> "BartCache":
        """This cache, if `num_tokens` more for each of `batch_size` rows fit into it.

        **Raises** `ValueError` if they do not, or if the cache belongs to a model of
        another config; inside `jit`, a lack of room is found when the program runs.
        """
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
        length = error_if(
            self.length,
            self.length > self.max_length - num_tokens,
            f"{message} behind those it holds. Pass a larger max_length to init_cache.",
        )
        return eqx.tree_at(lambda cache: cache.length, self, length)

    def mask(self, num_tokens: int) -> Bool[Array, "batch 1 {num_tokens} max_length"]:
        """What each of the next `num_tokens` tokens may attend to, once written."""
        slots = jnp.arange(self.max_length)
        positions = self.length + jnp.arange(num_tokens)
        is_past = slots <= positions[:, None]
        return is_past & self.attention_mask[:, None, None, :]

    def mask_tokens(self, attention_mask: Mask[ArrayLike, "batch new"]) -> "BartCache":
        """Notes which of the tokens that are written next may be attended to."""
        mask = jax.lax.dynamic_update_slice_in_dim(
            self.attention_mask, jnp.asarray(attention_mask, bool), self.length, axis=1
        )
        return eqx.tree_at(lambda cache: cache.attention_mask, self, mask)

    def advance(
        self, self_attention: tuple[KeyValues, ...], num_tokens: int
    ) -> "BartCache":
        """The cache after `num_tokens` more tokens, given its layers' new contents."""
        return eqx.tree_at(
            lambda cache: (cache.self_attention, cache.length),
            self,
            (self_attention, self.length + num_tokens),
        )
