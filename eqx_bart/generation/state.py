"""Where a generation stands between two steps, whatever the strategy."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ..cache import BartCache
from .config import GenerationConfig
from .logits_process import LogitsProcessor
from .output import GenerationOutput


CrossAttentions = tuple[Float[Array, "batch heads rows source"], ...]

#: Decodes the newest token of each row: from tokens, cache, positions, mask and whether to
#: return cross-attentions, to logits, cross-attentions and the next cache.
Decode = Callable[
    [
        Integer[Array, "batch rows"],
        BartCache,
        Integer[Array, "batch rows"],
        Bool[Array, "batch 1 rows slots"],
        bool,
    ],
    tuple[Float[Array, "batch rows vocab"], CrossAttentions | None, BartCache],
]


class Records(eqx.Module):
    """What is kept of one step, or of all, on request, for the result."""

    scores: Float[Array, "*steps batch rows vocab"] | None
    logits: Float[Array, "*steps batch rows vocab"] | None
    cross_attentions: tuple[Float[Array, "*steps batch heads rows source"], ...] | None

    def write(self, step: Integer[Array, ""], new: "Records") -> "Records":
        """These, with those of one more step."""

        def write(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(old, new, step, axis=0)

        return jax.tree.map(write, self, new)


class GenerationState(eqx.Module):
    """What decoding carries from one step to the next: a row for each beam, or sample.

    The rows of an input share a cache. Its first slots hold the prompt, but for the last
    token, once; then each step adds one slot for each row. Nothing in it ever moves: where
    beam search goes on with other rows, only `ancestors` changes, and with it the mask.

    **Fields:**

    - `input_ids`: the tokens so far, the prompt first, with -1 where it is padded.
    - `ancestors`: for each row and step, whose slot of that step it attends to.
    - `num_new`: how many tokens have been generated.
    - `first`: where the prompt of each input begins, behind its padding.
    - `cache`: the keys and values.
    - `records`: what is kept for the result.
    - `source_offset`: how far the source has been moved to the left.
    - `processors`: what changes the scores.
    - `config`: the settings, settled.
    - `prompt_length`: the length of the prompt, padding included.
    """

    input_ids: Integer[Array, "batch rows max_length"]
    ancestors: Integer[Array, "batch rows steps"]
    num_new: Integer[Array, ""]
    first: Integer[Array, " batch"]
    cache: BartCache
    records: Records
    source_offset: Integer[Array, " batch"] | None
    processors: tuple[LogitsProcessor, ...]
    config: GenerationConfig = eqx.field(static=True)
    prompt_length: int = eqx.field(static=True)

    @property
    @abc.abstractmethod
    def is_done(self) -> Bool[Array, ""]:
        """Whether all rows have ended."""

    @abc.abstractmethod
    def step(self, decode: Decode) -> "GenerationState":
        """The state after one more token in each row."""

    @abc.abstractmethod
    def output(self) -> GenerationOutput:
        """The result, once all rows have ended."""

    @abc.abstractmethod
    def decided(self) -> list[np.ndarray]:
        """The new tokens of each row, as far as nothing can change them any more."""

    @property
    def length(self) -> Integer[Array, ""]:
        """The number of tokens in each row, the prompt and its padding included."""
        return self.prompt_length + self.num_new

    def decode(
        self, decode: Decode
    ) -> tuple[Float[Array, "batch rows vocab"], CrossAttentions | None, BartCache]:
        """The logits of the next token, and the cache with the newest one in it."""
        newest = jax.lax.dynamic_index_in_dim(
            self.input_ids, self.length - 1, axis=2, keepdims=False
        )
        positions = self.length - 1 - self.first[:, None]
        return decode(
            newest,
            self.cache,
            jnp.broadcast_to(positions, newest.shape),
            self._mask(),
            self.config.output_attentions,
        )

    def _mask(self) -> Bool[Array, "batch 1 rows slots"]:
        """Each row attends to the prompt, to its ancestors and to itself."""
        batch, rows, steps = self.ancestors.shape
        row, step = jnp.arange(rows), jnp.arange(steps)
        ancestors = jnp.where(step == self.num_new, row[:, None], self.ancestors)
        is_own = (ancestors[..., None] == row) & (step <= self.num_new)[:, None]
        prompt = self.input_ids[:, :, : self.prompt_length - 1] >= 0
        mask = jnp.concatenate([prompt, is_own.reshape(batch, rows, -1)], axis=-1)
        return mask[:, None]

    def process(
        self, scores: Float[Array, "batch rows vocab"]
    ) -> Float[Array, "batch rows vocab"]:
        """The scores, changed by the processors."""
        input_ids = self.input_ids.reshape(-1, self.input_ids.shape[-1])
        flat = scores.reshape(-1, scores.shape[-1])
        for processor in self.processors:
            flat = processor(input_ids, flat, self.length)
        return flat.reshape(scores.shape)

    def record(
        self,
        scores: Float[Array, "batch rows vocab"],
        logits: Float[Array, "batch rows vocab"],
        cross_attentions: CrossAttentions | None,
    ) -> Records:
        """The records with those of this step."""
        new = Records(
            scores if self.config.output_scores else None,
            logits if self.config.output_logits else None,
            cross_attentions,
        )
        return self.records.write(self.num_new, new)

    def _recorded(self, name: str) -> Float[Array, "steps rows vocab"] | None:
        values = getattr(self.records, name)
        if values is None:
            return None
        steps, _, _, vocab = values.shape
        return values.reshape(steps, -1, vocab)

    def _cross_attentions(
        self, ancestors: Integer[Array, "batch results steps"]
    ) -> tuple[Float[Array, "answers heads steps source"], ...] | None:
        """The recorded cross-attentions, along these ancestors."""
        if self.records.cross_attentions is None:
            return None
        index = jnp.moveaxis(ancestors, -1, 0)[:, :, None, :, None]

        def along(weights: Array) -> Array:
            chosen = jnp.take_along_axis(weights, jnp.maximum(index, 0), axis=3)
            chosen = jnp.where(index >= 0, chosen, 0)
            if self.source_offset is not None:
                chosen = jax.vmap(jnp.roll, (1, 0, None), 1)(chosen, self.source_offset, -1)
            chosen = chosen.transpose(1, 3, 2, 0, 4)
            return chosen.reshape(-1, *chosen.shape[2:])

        return tuple(along(weights) for weights in self.records.cross_attentions)


def initial_fields(
    prompt: Integer[Array, "batch prompt"],
    rows: int,
    cache: BartCache,
    config: GenerationConfig,
    processors: tuple[LogitsProcessor, ...],
    source_offset: Integer[Array, " batch"] | None,
    vocab_size: int,
    dtype: jnp.dtype,
) -> dict[str, Any]:
    """The fields of a `GenerationState` before the first step."""
    batch, length = prompt.shape
    steps = config.max_new_tokens
    prompts = jnp.broadcast_to(prompt[:, None], (batch, rows, length)).astype(jnp.int32)
    new = jnp.full((batch, rows, steps), config.pad_token_id, jnp.int32)

    def recorded(is_wanted: bool) -> Array | None:  # noqa: FBT001
        shape = (steps, batch, rows, vocab_size)
        return jnp.zeros(shape, dtype) if is_wanted else None

    cross_attentions = None
    if config.output_attentions and cache.cross_attention:
        cross_attentions = tuple(
            jnp.zeros((steps, batch, x.keys.shape[1], rows, x.keys.shape[2]), x.keys.dtype)
            for x in cache.cross_attention
        )
    return {
        "input_ids": jnp.concatenate([prompts, new], axis=-1),
        "ancestors": jnp.full((batch, rows, steps), -1, jnp.int32),
        "num_new": jnp.zeros((), jnp.int32),
        "first": jnp.argmax(prompt >= 0, axis=1).astype(jnp.int32),
        "cache": cache,
        "records": Records(
            recorded(config.output_scores),
            recorded(config.output_logits),
            cross_attentions,
        ),
        "source_offset": source_offset,
        "processors": processors,
        "config": config,
        "prompt_length": length,
    }
