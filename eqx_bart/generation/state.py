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
from .places import Places, places_from, put_at, take_at
from .prompt_lookup import PromptLookup
from .slots import AbstractSlots, Decode, Newest, OwnSlots, RowAttentions


_BY_STEP = split(None, ROWS, None, TENSOR)


class Records(eqx.Module):
    """What is kept of one step, or of all steps, for the result, where it is asked for."""

    scores: Float[Array, "*steps batch rows vocab"] | None = eqx.field(metadata=_BY_STEP)
    logits: Float[Array, "*steps batch rows vocab"] | None = eqx.field(metadata=_BY_STEP)
    cross_attentions: (
        tuple[Float[Array, "*steps batch rows heads source"] | None, ...] | None
    ) = eqx.field(metadata=split(None, ROWS))

    @classmethod
    def of_tokens(
        cls,
        settings: LoopSettings,
        scores: Float[Array, "batch rows new vocab"],
        logits: Float[Array, "batch rows new vocab"],
        cross_attentions: RowAttentions | None,
    ) -> tuple["Records", ...]:
        """The records of each of the new tokens that the settings ask for."""
        records = cls(
            scores if settings.output_scores else None,
            logits if settings.output_logits else None,
            jax.tree.map(lambda x: x.swapaxes(2, 3), cross_attentions)
            if settings.output_attentions
            else None,
        )
        return tuple(
            jax.tree.map(lambda x, i=i: x[:, :, i], records) for i in range(scores.shape[2])
        )

    def write(self, steps: Places, new: "Records") -> "Records":
        """These records, with those of one more step of each row. What is after the last
        step is lost."""

        def write(old: Array, new: Array) -> Array:
            if steps.size == 1:
                return old.at[steps.reshape(())].set(new, mode="drop")
            batch, row = (jnp.arange(n, dtype=jnp.int32) for n in new.shape[:2])
            return old.at[steps, batch[:, None], row[None]].set(new, mode="drop")

        return jax.tree.map(write, self, new)


class Progress(eqx.Module):
    """What a strategy may want to know about the rows, and what it decides about them.

    **Fields:**

    - `input_ids`: the tokens so far, the prompt first, with -1 where it is padded.
    - `ancestors`: for each row and step, the row whose token of that step it continues;
        see `AbstractSlots`.
    - `num_new`: how many tokens have been generated: of each row, of each input whose rows
        go in step, or of all if all go in step, as the sizes of its axes say.
    - `settings`: what the loop reads of the settings.
    - `prompt_length`: the length of the prompt, padding included.
    """

    input_ids: Integer[Array, "batch rows max_length"]
    ancestors: Integer[Array, "batch rows steps"]
    num_new: Places
    settings: LoopSettings = eqx.field(metadata=split())
    prompt_length: int = eqx.field(static=True)

    @property
    def length(self) -> Places:
        """The number of tokens in each row, the prompt and its padding included."""
        return self.prompt_length + self.num_new

    @property
    def lengths(self) -> Integer[Array, "batch rows"]:
        """`length`, row by row."""
        return jnp.broadcast_to(self.length, self.input_ids.shape[:2])

    @property
    def num_rows(self) -> int:
        """The number of rows of each input."""
        return self.input_ids.shape[1]

    def part(self, first: int, count: int) -> "Progress":
        """So many rows of each input from this one on, which are numbered from 0; they go
        in step with the others."""
        rows = slice(first, first + count)
        new = (self.input_ids[:, rows], self.ancestors[:, rows] - first)
        return eqx.tree_at(lambda p: (p.input_ids, p.ancestors), self, new)

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
        counts: Integer[Array, "batch rows"],
    ) -> "Progress":
        """The progress after so many more tokens in each row, or after one in each if all
        rows go in step."""
        more = 1
        if self.num_new.size > 1 or counts.size == 1:
            axes = tuple(i for i in range(2) if self.num_new.shape[i] == 1)
            more = jnp.max(counts, axis=axes, keepdims=True)
        return eqx.tree_at(
            lambda p: (p.input_ids, p.ancestors, p.num_new),
            self,
            (input_ids, ancestors, self.num_new + more),
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
        self, logits: Float[Array, "batch rows new vocab"]
    ) -> Float[Array, "batch rows new vocab"]:
        """What the processors are given, made from the logits of the next token."""

    @abc.abstractmethod
    def choose(
        self,
        scores: Float[Array, "batch rows new vocab"],
        processors: tuple[LogitsProcessor, ...],
        progress: Progress,
        drafts: Integer[Array, "batch rows drafts"],
    ) -> tuple[Float[Array, "batch rows new vocab"], "AbstractStrategy", Progress]:
        """Chooses a token for each row, by the processed scores; and, as long as the draft
        of a token is what was chosen, the token after it.

        **Returns** the scores, `processed`; the next strategy; and the next progress. A row
        may continue the tokens and the ancestors of another one.
        """

    @abc.abstractmethod
    def is_going_on(self, progress: Progress) -> Bool[Array, "batch rows"]:
        """Which rows have not ended."""

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
    - `lookup`: with `prompt_lookup_num_tokens`, what drafts tokens.
    """

    progress: Progress
    strategy: AbstractStrategy
    first: Integer[Array, " batch"]
    slots: AbstractSlots
    records: Records
    source_offset: Integer[Array, " batch"] | None
    processors: tuple[LogitsProcessor, ...]
    inputs: GenerationInputs | None
    lookup: PromptLookup | None

    @property
    def is_done(self) -> Bool[Array, ""]:
        """Whether all rows have ended."""
        return ~jnp.any(self.strategy.is_going_on(self.progress))

    @property
    def settings(self) -> LoopSettings:
        """What the loop reads of the settings."""
        return self.progress.settings

    @property
    def is_drafting(self) -> Bool[Array, ""]:
        """Whether the next step is to try drafts."""
        lookup, progress = self.lookup, self.progress
        if lookup is None:
            return jnp.zeros((), bool)
        return lookup.is_worthwhile(self.strategy.is_going_on(progress))

    @property
    def no_drafts(self) -> Integer[Array, "batch rows 0"]:
        """The drafts of a step that tries none."""
        return jnp.zeros((*self.progress.input_ids.shape[:2], 0), jnp.int32)

    def step(self, decode: Decode, *, tries_drafts: bool) -> "GenerationState":
        """The state after one more token in each row; or, if it tries drafts, after one
        more than there are right ones."""
        lookup, drafts = self.lookup, self.no_drafts
        if tries_drafts and lookup is not None:
            drafts = lookup.drafts
        new_records, strategy, progress, slots = self.chosen(decode, drafts)
        records = self.records
        for i, new in enumerate(new_records):
            records = records.write(self._recorded(i, progress), new)
        if lookup is not None:
            lookup = lookup.after(
                progress.input_ids,
                self.progress.length,
                progress.length,
                drafts.shape[2] + 1,
            )
        return GenerationState(
            progress,
            strategy,
            self.first,
            slots,
            records,
            self.source_offset,
            self.processors,
            self.inputs,
            lookup,
        )

    def _recorded(self, i: int, progress: Progress) -> Places:
        """Where records of the new token `i` of each row are kept: after the last step, and
        so nowhere, if it was drafted wrongly."""
        if i == 0:
            return self.progress.num_new
        step = self.progress.num_new + i
        return jnp.where(step < progress.num_new, step, self.settings.num_steps)

    def chosen(
        self, decode: Decode, drafts: Integer[Array, "batch rows drafts"]
    ) -> tuple[tuple[Records, ...], AbstractStrategy, Progress, AbstractSlots]:
        """What may be kept of the next token of each row, and of those after it, as if the
        drafts were right; the next strategy and the next progress; and the slots with the
        newest token and the drafts in them."""
        progress, strategy = self.progress, self.strategy
        newest = take_at(progress.input_ids, progress.length - 1)
        tokens = jnp.concatenate([newest[..., None], jnp.maximum(drafts, 0)], axis=-1)
        logits, cross_attentions, slots = self.slots.decode(
            decode,
            Newest(
                tokens,
                self._positions(*tokens.shape),
                progress.ancestors,
                progress.num_new,
            ),
            output_attentions=self.settings.output_attentions,
        )
        logits = logits.astype(at_least_float32(logits))
        scores, strategy, progress = strategy.choose(
            strategy.scores(logits), self.processors, progress, drafts
        )
        records = Records.of_tokens(self.settings, scores, logits, cross_attentions)
        return records, strategy, progress, slots

    def _positions(
        self, batch: int, rows: int, new: int
    ) -> Integer[Array, "{batch} {rows} {new}"]:
        """The positions of the newest token of each row and of drafts after it; no larger
        than that of the last token that is ever read."""
        last = self.progress.prompt_length + jnp.asarray(self.settings.max_new_tokens) - 2
        place = jnp.minimum(places_from(self.progress.length - 1, new), last)
        positions = place - self.first[:, None, None]
        return jnp.broadcast_to(positions, (batch, rows, new)).astype(jnp.int32)

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
        index = jnp.moveaxis(ancestors, -1, 0)[..., None, None]

        def along(weights: Array) -> Array:
            chosen = jnp.take_along_axis(weights, index, axis=2)
            chosen = jnp.where(index >= 0, chosen, 0)
            if self.source_offset is not None:
                chosen = jax.vmap(jnp.roll, (1, 0, None), 1)(chosen, self.source_offset, -1)
            chosen = chosen.transpose(1, 2, 3, 0, 4)
            return chosen.reshape(-1, *chosen.shape[2:])

        return jax.tree.map(along, self.records.cross_attentions)

    def _cache(self, lengths: Integer[Array, " rows"]) -> GenerationCache | None:
        """The cache, for another generation, with rows of these lengths."""
        if self.inputs is None:
            return None
        assert isinstance(self.slots, OwnSlots)
        progress = self.progress
        num_read = jnp.minimum(lengths, progress.lengths[:, 0] - 1)[:, None]
        place = jnp.arange(progress.input_ids.shape[-1], dtype=jnp.int32)[None]
        input_ids = jnp.where(place < num_read, progress.input_ids[:, 0], -1)
        positions = jnp.where(input_ids >= 0, place - self.first[:, None], -1)
        past = self.slots.past(
            positions[:, progress.prompt_length - 1 : -1], jnp.max(progress.num_new)
        )
        inputs = dataclasses.replace(self.inputs, prompt=input_ids)
        return GenerationCache(past, inputs)


def processed(
    processors: tuple[LogitsProcessor, ...],
    scores: Float[Array, "batch rows new vocab"],
    progress: Progress,
    drafts: Integer[Array, "batch rows drafts"],
) -> Float[Array, "batch rows new vocab"]:
    """The scores, changed by the processors. A row of NaN stays one, even where they force
    a token, unless one of them is there to remove NaN."""
    is_nan = jnp.isnan(scores[..., :1])
    if any(isinstance(p, InfNanRemoveLogitsProcessor) for p in processors):
        is_nan = jnp.zeros_like(is_nan)
    input_ids, new = progress.input_ids, scores.shape[2]
    if new > 1:
        input_ids = put_at(input_ids, progress.length, drafts)
    input_ids = jnp.repeat(input_ids.reshape(-1, input_ids.shape[-1]), new, axis=0)
    lengths = places_from(progress.lengths, new).reshape(-1, 1)
    flat = scores.reshape(-1, scores.shape[-1])
    for processor in processors:
        flat = processor(input_ids, flat, lengths)
    return jnp.where(is_nan, jnp.nan, flat.reshape(scores.shape))


def initial_progress(
    prompt: Integer[Array, "batch prompt"],
    settings: LoopSettings,
    pace: tuple[int, int] = (1, 1),
) -> Progress:
    """The rows before the first step; `pace` is the shape of `Progress.num_new`."""
    batch, length = prompt.shape
    rows, steps = settings.num_rows, settings.num_steps
    prompts = jnp.broadcast_to(prompt[:, None], (batch, rows, length)).astype(jnp.int32)
    new = jnp.full((batch, rows, steps), settings.pad_token_id, jnp.int32)
    return Progress(
        jnp.concatenate([prompts, new], axis=-1),
        jnp.full((batch, rows, steps), -1, jnp.int32),
        jnp.zeros(pace, jnp.int32),
        settings,
        length,
    )


def _all_rows(values: Array | None) -> Float[Array, "steps rows vocab"] | None:
    return None if values is None else values.reshape(len(values), -1, values.shape[-1])
