"""`generate`: one compiled program that encodes the input and decodes to the end."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ..cache import BartCache
from ..checks import ArrayLike, check_range, Mask
from ..config import BartConfig
from ..outputs import BaseModelOutput
from .config import GenerationConfig, Settings


class GenerationOutput(eqx.Module):
    """What `generate` returns.

    **Fields:**

    - `sequences`: the token ids, the start token first; behind the end of a row there is
        padding up to `max_length`.
    """

    sequences: Integer[Array, "batch max_length"]


@runtime_checkable
class Generator(Protocol):
    """What `generate` needs of a model."""

    config: BartConfig

    def encode(
        self,
        input_ids: Integer[ArrayLike, "batch source"],
        attention_mask: Mask[ArrayLike, "batch source"] | None,
    ) -> BaseModelOutput: ...

    def init_cache(
        self,
        encoder_outputs: BaseModelOutput,
        max_length: int,
        attention_mask: Mask[ArrayLike, "batch source"] | None,
    ) -> BartCache: ...

    def step(
        self, tokens: Integer[Array, "batch new"], cache: BartCache
    ) -> tuple[Float[Array, "batch new vocab"], BartCache]: ...


def generate(
    model: Generator,
    input_ids: Integer[ArrayLike, "batch source"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    generation_config: GenerationConfig,
) -> GenerationOutput:
    """Generates with greedy search: each token is the likeliest, given those before it.

    The encoder and the whole loop are one compiled program. A model compiles once for
    each shape of its input and each config.

    **Arguments:**

    - `model`: in inference mode.
    - `input_ids`, `attention_mask`: as `encode` takes them.
    - `generation_config`: the settings.

    **Returns** the `GenerationOutput`. **Raises** `ValueError` if an id is outside the
    vocabulary, or as `GenerationConfig.settle` does. Source: HF's `GenerationMixin`.
    """
    settings = generation_config.settle(1, model.config)
    check_range(input_ids, model.config.vocab_size, "input_ids", "the vocabulary")
    return GenerationOutput(_greedy_search(model, input_ids, attention_mask, settings))


class _State(eqx.Module):
    """What the loop carries: the rows so far, which have ended, and the cache."""

    sequences: Integer[Array, "batch max_length"]
    is_finished: Bool[Array, " batch"]
    length: Integer[Array, ""]
    cache: BartCache


@eqx.filter_jit
def _greedy_search(
    model: Generator,
    input_ids: Integer[ArrayLike, "batch source"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    settings: Settings,
) -> Integer[Array, "batch max_length"]:
    max_length, pad_token_id = settings.max_length, settings.pad_token_id
    eos_token_ids = jnp.asarray(settings.eos_token_ids, jnp.int32)
    batch_size = input_ids.shape[0]

    def is_unfinished(state: _State) -> Bool[Array, ""]:
        return (state.length < max_length) & ~jnp.all(state.is_finished)

    def next_token(state: _State) -> _State:
        last = jax.lax.dynamic_slice_in_dim(state.sequences, state.length - 1, 1, axis=1)
        logits, cache = model.step(last, state.cache)
        token = jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)
        token = _force(token, state.length, settings)
        token = jnp.where(state.is_finished, pad_token_id, token)
        return _State(
            sequences=state.sequences.at[:, state.length].set(token),
            is_finished=state.is_finished | jnp.isin(token, eos_token_ids),
            length=state.length + 1,
            cache=cache,
        )

    encoder_outputs = model.encode(input_ids, attention_mask)
    sequences = jnp.full((batch_size, max_length), pad_token_id, jnp.int32)
    start = _State(
        sequences=sequences.at[:, 0].set(settings.decoder_start_token_id),
        is_finished=jnp.zeros(batch_size, bool),
        length=jnp.ones((), jnp.int32),
        cache=model.init_cache(encoder_outputs, max_length - 1, attention_mask),
    )
    return jax.lax.while_loop(is_unfinished, next_token, start).sequences


def _force(
    token: Integer[Array, " batch"], length: Integer[Array, ""], settings: Settings
) -> Integer[Array, " batch"]:
    """`token`, or what `forced_bos_token_id` and `forced_eos_token_id` put in its place."""
    if settings.forced_bos_token_id is not None:
        token = jnp.where(length == 1, settings.forced_bos_token_id, token)
    if settings.forced_eos_token_ids:
        is_last = length == settings.max_length - 1
        token = jnp.where(is_last, min(settings.forced_eos_token_ids), token)
    return token
