"""The state of a generation between two steps, for any strategy."""

import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ..nn.matmul import at_least_float32
from ..nn.mesh import on_any_mesh, ROWS, split, TENSOR
from .cache import GenerationCache
from .call import LoopSettings
from .inputs import GenerationInputs
from .logits_process import InfNanRemoveLogitsProcessor, LogitsProcessor
from .output import GenerationOutput
from .slots import AbstractSlots, CrossAttentions, Decode, Newest, OwnSlots


_BY_STEP = split(None, ROWS, None, TENSOR)


class Records(eqx.Module):
    """What is kept of one step, or of all steps, for the result, where it is asked for."""

    scores: Float[Array, "*steps batch rows vocab"] | None = eqx.field(metadata=_BY_STEP)
    logits: Float[Array, "*steps batch rows vocab"] | None = eqx.field(metadata=_BY_STEP)
    cross_attentions: (
        tuple[Float[Array, "*steps batch heads rows source"] | None, ...] | None
    ) = eqx.field(metadata=split(None, ROWS))

    @classmethod
    def of_step(
        cls,
        settings: LoopSettings,
        scores: Float[Array, "batch rows vocab"],
        logits: Float[Array, "batch rows vocab"],
        cross_attentions: CrossAttentions | None,
    ) -> "Records":
        """The records of one step that the settings ask for."""
        return cls(
            scores if settings.output_scores else None,
            logits if settings.output_logits else None,
            cross_attentions if settings.output_attentions else None,
        )

    def write(self, step: Integer[Array, ""], new: "Records") -> "Records":
        """These records, with those of one more step."""

        def write(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(old, new, step, axis=0)

        return jax.tree.map(write, self, new)


class Progress(eqx.Module):
    """What a strategy may want to know about the rows, and what it decides about them.

    **Fields:**

    - `input_ids`: the tokens so far, the prompt first, with -1 where it is padded.
    - `ancestors`: for each row and step, the row whose token of that step it continues;
        see `AbstractSlots`.
    - `num_new`: how many tokens have been generated.
    - `settings`: what the loop reads of the settings.
    - `prompt_length`: the length of the prompt, padding included.
    """

    input_ids: Integer[Array, "batch rows max_length"]
    ancestors: Integer[Array, "batch rows steps"]
    num_new: Integer[Array, ""]
    settings: LoopSettings = eqx.field(metadata=split())
    prompt_length: int = eqx.field(static=True)

    @property
    def length(self) -> Integer[Array, ""]:
        """The number of tokens in each row, the prompt and its padding included."""
        return self.prompt_length + self.num_new

    @property
    def num_rows(self) -> int:
        """The number of rows of each input."""
        return self.input_ids.shape[1]

    def padded(
        self, input_ids: Integer[Array, "rows max_length"]
    ) -> Integer[Array, "rows max_length"]:
        """Tokens of rows like these, with `pad_token_id` where the prompt is padded. After
        the prompt, -1 is what has come of NaN."""
        is_prompt = jnp.arange(input_ids.shape[-1], dtype=jnp.int32) < self.prompt_length
        is_padding = is_prompt[None] & (input_ids < 0)
        return jnp.where(is_padding, self.settings.pad_token_id, input_ids)

    def advance(
        self,
        input_ids: Integer[Array, "batch rows max_length"],
        ancestors: Integer[Array, "batch rows steps"],
    ) -> "Progress":
        """The progress after one more token in each row."""
        return eqx.tree_at(
            lambda p: (p.input_ids, p.ancestors, p.num_new),
            self,
            (input_ids, ancestors, self.num_new + 1),
        )


class Result(eqx.Module):
    """A strategy's answers. The fields are those of `GenerationOutput`, and `ancestors`:
    those of each answer as in `Progress`, -1 after its end."""

    sequences: Integer[Array, "rows max_length"]
    lengths: Integer[Array, " rows"]
    ancestors: Integer[Array, "batch answers steps"]
    sequences_scores: Float[Array, " rows"] | None = None
    beam_indices: Integer[Array, "rows steps"] | None = None
    token_log_probs: Float[Array, "rows steps"] | None = None


class AbstractStrategy(eqx.Module):
    """How the next tokens are chosen, and what has to be remembered for it."""

    @abc.abstractmethod
    def scores(
        self, logits: Float[Array, "batch rows vocab"]
    ) -> Float[Array, "batch rows vocab"]:
        """What the processors are given, made from the logits of the next token."""

    @abc.abstractmethod
    def choose(
        self, scores: Float[Array, "batch rows vocab"], progress: Progress
    ) -> tuple["AbstractStrategy", Progress]:
        """Chooses a token for each row, by the processed scores.

        **Returns** the next strategy and the next progress. A row may continue the tokens
        and the ancestors of another one.
        """

    @abc.abstractmethod
    def is_done(self, progress: Progress) -> Bool[Array, ""]:
        """Whether all rows have ended."""

    @abc.abstractmethod
    def result(self, progress: Progress) -> Result:
        """The answers, once all rows have ended."""

    @abc.abstractmethod
    def decided(self, progress: Progress) -> list[np.ndarray]:
        """The new tokens of each row that nothing can change any more."""


class GenerationState(eqx.Module):
    """What decoding carries from one step to the next: a row for each beam, or sample.

    **Fields:**

    - `progress`: the rows, and the settings.
    - `strategy`: what chooses their tokens.
    - `first`: where the prompt of each input begins, after its padding.
    - `slots`: the model's cache, and which of its slots are whose.
    - `records`: what is kept for the result.
    - `source_offset`: how far the source has been moved to the left.
    - `processors`: what changes the scores.
    - `inputs`: with `output_cache`, what `encode_source` has returned.
    """

    progress: Progress
    strategy: AbstractStrategy
    first: Integer[Array, " batch"]
    slots: AbstractSlots
    records: Records
    source_offset: Integer[Array, " batch"] | None
    processors: tuple[LogitsProcessor, ...]
    inputs: GenerationInputs | None

    @property
    def is_done(self) -> Bool[Array, ""]:
        """Whether all rows have ended."""
        return self.strategy.is_done(self.progress)

    @property
    def settings(self) -> LoopSettings:
        """What the loop reads of the settings."""
        return self.progress.settings

    def step(self, decode: Decode) -> "GenerationState":
        """The state after one more token in each row."""
        scores, records, slots = self.observe(decode)
        strategy, progress = self.strategy.choose(scores, self.progress)
        return GenerationState(
            progress,
            strategy,
            self.first,
            slots,
            self.records.write(self.progress.num_new, records),
            self.source_offset,
            self.processors,
            self.inputs,
        )

    def observe(
        self, decode: Decode
    ) -> tuple[Float[Array, "batch rows vocab"], Records, AbstractSlots]:
        """The processed scores of the next token; what is kept of this step; and the slots
        with the newest token in them."""
        progress = self.progress
        newest = jax.lax.dynamic_index_in_dim(
            progress.input_ids, progress.length - 1, axis=2, keepdims=False
        )
        positions = progress.length - 1 - self.first[:, None]
        logits, cross_attentions, slots = self.slots.decode(
            decode,
            Newest(
                newest,
                jnp.broadcast_to(positions, newest.shape),
                progress.ancestors,
                progress.num_new,
            ),
            output_attentions=self.settings.output_attentions,
        )
        logits = logits.astype(at_least_float32(logits))
        scores = self._process(self.strategy.scores(logits))
        records = Records.of_step(self.settings, scores, logits, cross_attentions)
        return scores, records, slots

    def _process(
        self, scores: Float[Array, "batch rows vocab"]
    ) -> Float[Array, "batch rows vocab"]:
        """The scores, changed by the processors. A row of NaN stays one, even where they
        force a token, unless one of them is there to remove NaN."""
        is_nan = jnp.isnan(scores[..., :1])
        if any(isinstance(p, InfNanRemoveLogitsProcessor) for p in self.processors):
            is_nan = jnp.zeros_like(is_nan)
        input_ids = self.progress.input_ids
        input_ids = input_ids.reshape(-1, input_ids.shape[-1])
        flat = scores.reshape(-1, scores.shape[-1])
        for processor in self.processors:
            flat = processor(input_ids, flat, self.progress.length)
        return jnp.where(is_nan, jnp.nan, flat.reshape(scores.shape))

    @on_any_mesh
    def output(self) -> GenerationOutput:
        """What `generate` returns, once all rows have ended."""
        result = self.strategy.result(self.progress)
        return GenerationOutput(
            sequences=result.sequences,
            lengths=result.lengths,
            sequences_scores=result.sequences_scores,
            scores=_all_rows(self.records.scores),
            logits=_all_rows(self.records.logits),
            beam_indices=result.beam_indices,
            token_log_probs=result.token_log_probs,
            cross_attentions=self._cross_attentions(result.ancestors),
            cache=self._cache(result.lengths),
        )

    def decided(self) -> list[np.ndarray]:
        """The new tokens of each row that nothing can change any more."""
        return self.strategy.decided(self.progress)

    def _cross_attentions(
        self, ancestors: Integer[Array, "batch answers steps"]
    ) -> tuple[Float[Array, "rows heads steps source"] | None, ...] | None:
        """The recorded cross-attentions, along these ancestors."""
        if self.records.cross_attentions is None:
            return None
        index = jnp.moveaxis(ancestors, -1, 0)[:, :, None, :, None]

        def along(weights: Array) -> Array:
            chosen = jnp.take_along_axis(weights, index, axis=3)
            chosen = jnp.where(index >= 0, chosen, 0)
            if self.source_offset is not None:
                chosen = jax.vmap(jnp.roll, (1, 0, None), 1)(chosen, self.source_offset, -1)
            chosen = chosen.transpose(1, 3, 2, 0, 4)
            return chosen.reshape(-1, *chosen.shape[2:])

        return jax.tree.map(along, self.records.cross_attentions)

    def _cache(self, lengths: Integer[Array, " rows"]) -> GenerationCache | None:
        """The cache, for another generation, with rows of these lengths."""
        if self.inputs is None:
            return None
        assert isinstance(self.slots, OwnSlots)
        progress = self.progress
        num_read = jnp.minimum(lengths, progress.length - 1)[:, None]
        place = jnp.arange(progress.input_ids.shape[-1], dtype=jnp.int32)[None]
        input_ids = jnp.where(place < num_read, progress.input_ids[:, 0], -1)
        positions = jnp.where(input_ids >= 0, place - self.first[:, None], -1)
        past = self.slots.past(
            positions[:, progress.prompt_length - 1 : -1], progress.num_new
        )
        inputs = dataclasses.replace(self.inputs, prompt=input_ids)
        return GenerationCache(past, inputs)


def initial_progress(
    prompt: Integer[Array, "batch prompt"], settings: LoopSettings
) -> Progress:
    """The rows before the first step."""
    batch, length = prompt.shape
    rows, steps = settings.num_rows, settings.num_steps
    prompts = jnp.broadcast_to(prompt[:, None], (batch, rows, length)).astype(jnp.int32)
    new = jnp.full((batch, rows, steps), settings.pad_token_id, jnp.int32)
    return Progress(
        jnp.concatenate([prompts, new], axis=-1),
        jnp.full((batch, rows, steps), -1, jnp.int32),
        jnp.zeros((), jnp.int32),
        settings,
        length,
    )


def _all_rows(values: Array | None) -> Float[Array, "steps rows vocab"] | None:
    return None if values is None else values.reshape(len(values), -1, values.shape[-1])
