"""`generate`, for all models that have a decoder and a language-modelling head."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from ..explained import explained
from ..nn.dropout import refuse_training_mode
from ..nn.matmul import at_least_float32
from ..nn.mesh import on_any_mesh, put_rows, rows_sharding
from ..nn.processes import check_same, is_shared, own_bytes
from .beam_search import BeamSearch
from .cache import GenerationCache
from .call import GenerationCall, LoopInputs
from .config import GenerationConfig
from .diverse_beam_search import DiverseBeamSearch
from .inputs import (
    align_right,
    array_library,
    as_jax,
    GenerationInputs,
    is_traced,
    power_of_two,
)
from .logits_process import LogitsProcessor
from .many import answers, checked_inputs, longest_first, Loop
from .output import GenerationOutput
from .programs import run, run_over, shapes
from .prompt_lookup import PromptLookup
from .reading import ordered, with_bar
from .row_keys import row_keys
from .sample import Sampling
from .slots import (
    AbstractSlots,
    by_row,
    CrossAttentions,
    NewTokens,
    OwnSlots,
    Past,
    repeated,
    SharedSlots,
)
from .state import GenerationState, initial_progress, Records


# Up to this many beams share slots; measured on CPUs.
_FEW_BEAMS = 16


class GenerationMixin(eqx.Module):
    """What generates tokens: `generate`, `stream`, and `init_generation` with `step`.

    A model of your own can generate if it has the abstract members of this class: sizes, a
    cache, a step and the arguments of `generate`. Its cache is any pytree of arrays.

    Source: HF's `GenerationMixin`.
    """

    generation_config: eqx.AbstractVar[GenerationConfig]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens: the last axis of the logits."""

    @property
    @abc.abstractmethod
    def max_positions(self) -> int:
        """The longest sequence, in tokens."""

    @abc.abstractmethod
    def encode_source(self, inputs: GenerationInputs) -> GenerationInputs:
        """The inputs, with what the model makes of the source as `encoder_outputs`.

        Source tokens that are padding are -1. A model that moves the source must set
        `source_offset`.
        """

    @abc.abstractmethod
    def init_generation_cache(
        self, inputs: GenerationInputs, num_rows: int, num_slots: int
    ) -> Any:
        """An empty cache, a pytree of arrays.

        **Arguments:**

        - `inputs`: what `encode_source` has returned.
        - `num_rows`: how many rows there are for each input; those of an input follow one
            another. They are the first axis of what differs between them.
        - `num_slots`: how many tokens of a row there is room for.
        """

    @abc.abstractmethod
    def generation_step(
        self, new: NewTokens, cache: Any
    ) -> tuple[Float[Array, "batch new vocab"], CrossAttentions | None, Any]:
        """Decodes tokens, which are written to slots of the cache.

        **Arguments:**

        - `new`: the tokens, where they are, and what they attend to.
        - `cache`: from `init_generation_cache`, or from the last call.

        **Returns** the logits; the cross-attentions of each layer, or `None`; and the next
        cache.
        """

    @abc.abstractmethod
    def prepare_generation(self, *args: Any, **kwargs: Any) -> GenerationCall:
        """Checks the arguments of `generate`; see `checked_call`."""

    @explained
    def checked_call(
        self,
        inputs: GenerationInputs,
        generation_config: GenerationConfig,
        logits_processors: Sequence[LogitsProcessor] = (),
        key: PRNGKeyArray | None = None,
        cache: GenerationCache | None = None,
    ) -> GenerationCall:
        """A call with these inputs, and with every open setting decided.

        **Arguments:**

        - `inputs`: what generation starts from, before `encode_source`; with a cache,
            `cache.continued(prompt)`.
        - `generation_config`, `logits_processors`, `key`, `cache`: see
            `BartForConditionalGeneration.generate`.

        **Raises** `ValueError` if a setting does not fit the model, or if there is no key
        to draw with, or if processes have given different inputs; `RuntimeError` if the
        model is in training mode.
        """
        refuse_training_mode(self, "generate")
        if jax.process_count() > 1 and is_shared(self):
            check_same(
                "The processes have given generate different inputs. NumPy arrays must be "
                "the same in all of them; rows that each has of its own become one array "
                "with jax.make_array_from_process_local_data.",
                *own_bytes((inputs, key)),
            )
        config = generation_config.settled(
            inputs.prompt.shape[1], self.vocab_size, self.max_positions
        )
        if config.do_sample and key is None:
            raise ValueError(
                "do_sample=True draws at random and needs a key: pass key=...."
            )
        key = key if config.do_sample else None
        return GenerationCall(inputs, tuple(logits_processors), key, config, cache)

    @explained
    @on_any_mesh
    def generate(self, *args: Any, **kwargs: Any) -> GenerationOutput:
        """Generates token ids; `prepare_generation` has the arguments.

        Outside of `jit`, arrays are padded to shapes that many inputs share.
        """
        call = self.prepare_generation(*args, **kwargs)
        if is_traced(self, call):
            return self._run(call.exact())
        usual = call.in_usual_shapes(self.max_positions)
        return _trimmed(run(GenerationMixin._run, self, usual), call, usual)

    def _run(self, loop: LoopInputs) -> GenerationOutput:
        return self._while(lambda state: ~state.is_done, self._start(loop)).output()

    def _while(
        self,
        goes_on: Callable[[GenerationState], Bool[Array, ""]],
        state: GenerationState,
    ) -> GenerationState:
        """The state after all steps before which `goes_on` holds."""

        def steps(state: GenerationState, *, tries_drafts: bool) -> GenerationState:
            """After those up to one that is to try drafts, or not to."""
            return _while(
                lambda state: goes_on(state) & (state.is_drafting == tries_drafts),
                lambda state: state.step(self.generation_step, tries_drafts=tries_drafts),
                state,
            )

        if state.lookup is None:
            return steps(state, tries_drafts=False)
        # Loops in a loop: XLA copies a cache that only one branch of a condition writes to.
        return _while(
            goes_on,
            lambda state: steps(steps(state, tries_drafts=False), tries_drafts=True),
            state,
        )

    @explained
    def stream(self, *args: Any, **kwargs: Any) -> Iterator[list[np.ndarray]]:
        """Generates as `generate` does, and yields tokens as soon as they are decided.

        The arguments are those of `generate`. Without beams each step decides a token
        for each row that has not ended. With beams, it decides what all beams that may
        still win have in common, which may be no token, or more than one.

        **Yields**, step by step, a list with an array of new token ids for each row, which
        may be empty. Joined, a row's arrays are its `sequences` after the prompt and
        without padding.

        **Raises** as `generate` does, and `ValueError` inside `jit`, or with beams if
        `num_return_sequences` is more than 1.
        """
        call, usual = self._checked_stream(*args, **kwargs)
        return self._stream(usual, len(call.inputs.prompt))

    @on_any_mesh
    def _checked_stream(
        self, *args: Any, **kwargs: Any
    ) -> tuple[GenerationCall, LoopInputs]:
        call = self.prepare_generation(*args, **kwargs)
        if is_traced(self, call):
            raise ValueError("stream cannot run inside jit: use generate, or step.")
        config = call.config
        if config.num_beams > 1 and config.num_return_sequences > 1:
            raise ValueError(
                "stream gives the best beam alone: pass num_return_sequences=1, not "
                f"{config.num_return_sequences}."
            )
        return call, call.in_usual_shapes(self.max_positions)

    def _stream(self, loop: LoopInputs, batch_size: int) -> Iterator[list[np.ndarray]]:
        num_rows = batch_size * loop.settings.num_return_sequences
        state = self._compiled_start(loop)
        yielded = [0] * num_rows
        while not state.is_done:
            state = self._compiled_step(state)
            decided = state.decided()[:num_rows]
            yield [row[n:] for row, n in zip(decided, yielded, strict=True)]
            yielded = [len(row) for row in decided]

    @on_any_mesh
    def _compiled_start(self, loop: LoopInputs) -> GenerationState:
        return run(GenerationMixin._start, self, loop)

    @on_any_mesh
    def _compiled_step(self, state: GenerationState) -> GenerationState:
        return run(GenerationMixin.step, self, state)

    @explained
    def generate_many(
        self,
        inputs: Iterable[Any],
        generation_config: GenerationConfig | None = None,
        *,
        batch_size: int = 32,
        in_order: bool = True,
        progress: bool = False,
        logits_processors: Sequence[LogitsProcessor] = (),
        key: PRNGKeyArray | None = None,
        **overrides: Any,
    ) -> Iterator[tuple[int, GenerationOutput]]:
        """Generates for any number of inputs, as `generate` does for each of them alone.

        A batch does not wait for its slowest row: where a row has ended, another input is
        started while the others go on. Inputs are read ahead, 32 batches at most, and the
        longest of them come first, so that few positions are padding.

        **Arguments:**

        - `inputs`: the token ids of each input, without padding: of its source, or of the
            prompt of a decoder alone. They may be of different lengths, and have no end.
        - `generation_config`, `logits_processors`, `key`, `overrides`: as in `generate`.
            If prompts differ in length, the settings must say `max_new_tokens`.
        - `batch_size`: how many inputs are answered at the same time.
        - `in_order`: whether the answers come in the order of the inputs; otherwise as they
            end.
        - `progress`: whether to show a progress bar on the terminal.

        **Yields** the number of each input, from 0 on, and its `GenerationOutput`, which is
        that of `generate` for a batch of this input alone; but a sample depends on the key,
        the tokens, and how many inputs before had the same tokens.

        **Raises** as `generate` does, with a note about which input it is, after the
        answers to all inputs that were read before it; `ValueError` if `batch_size` is less
        than 1, inside `jit`, or with `output_cache`.
        """
        if batch_size < 1:
            raise ValueError(
                f"batch_size={batch_size}: at least one input is answered at a time."
            )
        if is_traced(self, key):
            raise ValueError("generate_many cannot run inside jit: use generate.")
        if isinstance(inputs, str | Mapping):
            raise TypeError(
                "generate_many takes the token ids of each input, such as "
                f"tokenizer(texts)['input_ids'], not a {type(inputs).__name__}."
            )

        def prepare(input_ids: np.ndarray) -> GenerationCall:
            return self.prepare_generation(
                input_ids,
                generation_config=generation_config,
                logits_processors=logits_processors,
                key=key,
                **overrides,
            )

        loop = Loop(
            self._compiled_start_apart,
            self._shapes_apart,
            self._compiled_go_on,
            self.max_positions,
        )
        num_inputs = len(inputs) if isinstance(inputs, Sized) else None
        if num_inputs is not None:  # places are computed whether they are taken or not
            batch_size = min(batch_size, power_of_two(num_inputs))
        checked = longest_first(checked_inputs(inputs, prepare), batch_size)
        found = answers(loop, checked, batch_size)
        found = with_bar(found, num_inputs, "Generating") if progress else found
        return ordered(found) if in_order else found

    @on_any_mesh
    def _compiled_start_apart(self, loop: LoopInputs) -> GenerationState:
        return run(GenerationMixin._start_apart, self, loop)

    @on_any_mesh
    def _shapes_apart(self, loop: LoopInputs) -> Any:
        return shapes(GenerationMixin._start_apart, self, loop)

    def _start_apart(self, loop: LoopInputs) -> GenerationState:
        return self._start(loop, in_step=False)

    @on_any_mesh
    def _compiled_go_on(
        self, state: GenerationState, counts: np.ndarray, num_ended: np.ndarray
    ) -> tuple[GenerationState, Bool[Array, " batch"]]:
        return run_over(GenerationMixin._go_on, self, state, counts, num_ended)

    def _go_on(
        self,
        state: GenerationState,
        counts: Bool[Array, " batch"],
        num_ended: Integer[Array, ""],
    ) -> tuple[GenerationState, Bool[Array, " batch"]]:
        """The state once so many of the inputs that count have ended, and which of all have
        not."""

        def is_going_on(state: GenerationState) -> Bool[Array, " batch"]:
            return jnp.any(state.strategy.is_going_on(state.progress), axis=1)

        def goes_on(state: GenerationState) -> Bool[Array, ""]:
            has_ended = counts & ~is_going_on(state)
            return jnp.sum(has_ended, dtype=jnp.int32) < num_ended

        state = self._while(goes_on, state)
        return state, is_going_on(state)

    @explained
    @on_any_mesh
    def init_generation(self, *args: Any, **kwargs: Any) -> GenerationState:
        """The state before the first step, for a loop of your own; see `step`.

        The arguments are those of `generate`. The source is encoded here.
        """
        return self._start(self.prepare_generation(*args, **kwargs).exact())

    @explained
    @on_any_mesh
    def step(self, state: GenerationState) -> GenerationState:
        """The state after one more token in each row.

        A pure function, to be called under `eqx.filter_jit` until `state.is_done`; then
        `state.output()` is what `generate` returns.
        """
        if state.lookup is None:
            return state.step(self.generation_step, tries_drafts=False)
        arrays, others = eqx.partition(state, eqx.is_array)

        def step(arrays: Any, *, tries_drafts: bool) -> Any:
            state = eqx.combine(arrays, others)
            new = state.step(self.generation_step, tries_drafts=tries_drafts)
            return eqx.filter(new, eqx.is_array)

        branches = (functools.partial(step, tries_drafts=x) for x in (True, False))
        return eqx.combine(jax.lax.cond(state.is_drafting, *branches, arrays), others)

    def _start(self, loop: LoopInputs, *, in_step: bool = True) -> GenerationState:
        """The state before the first step; `in_step` if all inputs take it together."""
        if len(loop.inputs.prompt) == 0:
            raise ValueError("The batch is empty: generation needs at least one row.")
        settings, inputs = loop.settings, self.encode_source(loop.inputs)
        prompt = align_right(jnp.asarray(inputs.prompt))
        source = inputs.input_ids
        source = None if source is None else jnp.asarray(source)
        strategy = BeamSearch if settings.is_beam_search else Sampling
        if settings.num_beam_groups > 1:
            strategy = DiverseBeamSearch
        slots = self._slots(loop, prompt, inputs)
        keys = None
        if loop.key is not None:
            num_alike = None if loop.num_alike is None else jnp.asarray(loop.num_alike)
            keys = row_keys(loop.key, prompt, source, num_alike=num_alike)
        num_drafts = settings.prompt_lookup_num_tokens
        pace = (1, 1) if in_step else (len(prompt), 1)
        if num_drafts:
            pace = (len(prompt), settings.num_rows)
        strategy, progress = strategy.init(
            initial_progress(prompt, settings, pace), _scores_dtype(self, slots), keys
        )
        lookup = None
        if num_drafts:
            lookup = PromptLookup.init(
                jnp.zeros((len(prompt), 0), jnp.int32) if source is None else source,
                progress.input_ids,
                progress.length,
                num_tokens=num_drafts,
                ngram_size=settings.max_matching_ngram_size,
            )
        state = GenerationState(
            progress,
            strategy,
            _begin(prompt),
            slots,
            Records(None, None, None),
            inputs.source_offset,
            loop.processors,
            inputs if settings.output_cache else None,
            lookup,
        )
        records = self._empty_records(state)
        return eqx.tree_at(lambda state: state.records, state, records)

    def _slots(
        self,
        loop: LoopInputs,
        prompt: Integer[Array, "batch prompt"],
        inputs: GenerationInputs,
    ) -> AbstractSlots:
        """The slots of all rows, with all but the last token of the prompt in them."""
        settings, past = loop.settings, loop.past
        rows, num_slots = settings.num_rows, loop.num_unread + settings.num_steps
        num_slots += settings.prompt_lookup_num_tokens
        if past is not None:
            num_slots += past.positions.shape[1]
        elif settings.is_beam_search and rows <= _FEW_BEAMS:
            num_slots += (rows - 1) * settings.num_steps
            past = self._prefilled(loop, prompt, inputs, num_slots)
            return SharedSlots(past.cache, past.positions, past.length)
        past = self._prefilled(loop, prompt, inputs, num_slots)
        one, many = (
            eqx.filter_eval_shape(self.init_generation_cache, inputs, n, num_slots)
            for n in (1, rows)
        )
        is_by_row = by_row(one, many, rows)
        return OwnSlots(
            repeated(past.cache, many, rows),
            past.positions,
            past.length,
            is_by_row,
            can_move=settings.is_beam_search,
        )

    def _prefilled(
        self,
        loop: LoopInputs,
        prompt: Integer[Array, "batch prompt"],
        inputs: GenerationInputs,
        num_slots: int,
    ) -> Past:
        """All but the last token of the prompt, in a cache of one row for each input."""
        batch, length = prompt.shape
        past = Past(
            self.init_generation_cache(inputs, 1, num_slots),
            jnp.full((batch, num_slots), -1, jnp.int32),
            jnp.zeros((), jnp.int32),
        )
        begin = length - 1 - loop.num_unread
        first = begin - _begin(prompt)
        if loop.past is not None:
            past = loop.past.written_into(past).before(first)
        return past.read(self.generation_step, prompt[:, begin:-1], first)

    def _empty_records(self, state: GenerationState) -> Records:
        """Empty records for all steps."""
        settings = state.settings
        if not (
            settings.output_scores or settings.output_logits or settings.output_attentions
        ):
            return state.records
        one = eqx.filter_eval_shape(
            lambda s: s.chosen(self.generation_step, s.no_drafts)[0][0], state
        )
        return jax.tree.map(
            lambda x: jnp.zeros((settings.num_steps, *x.shape), x.dtype), one
        )


def _while(
    goes_on: Callable[[GenerationState], Bool[Array, ""]],
    step: Callable[[GenerationState], GenerationState],
    state: GenerationState,
) -> GenerationState:
    """`jax.lax.while_loop`. A user's processor may hold things other than arrays."""
    arrays, others = eqx.partition(state, eqx.is_array)
    end = jax.lax.while_loop(
        lambda arrays: goes_on(eqx.combine(arrays, others)),
        lambda arrays: eqx.filter(step(eqx.combine(arrays, others)), eqx.is_array),
        arrays,
    )
    return eqx.combine(end, others)


def _begin(prompt: Integer[Array, "batch prompt"]) -> Integer[Array, " batch"]:
    """Where the prompt of each row begins, after its padding."""
    return jnp.argmax(prompt >= 0, axis=1).astype(jnp.int32)


def _scores_dtype(*trees: Any) -> jnp.dtype:
    """The widest dtype that scores can come to have, of what they are computed from."""
    return at_least_float32(*filter(eqx.is_inexact_array, jax.tree.leaves(trees)))


def _trimmed(
    output: GenerationOutput, call: GenerationCall, usual: LoopInputs
) -> GenerationOutput:
    """The output for `usual`, without the padding that `call` does not have."""
    config = call.config
    batch, prompt_length = call.inputs.prompt.shape
    padding = usual.inputs.prompt.shape[1] - prompt_length
    rows = batch * config.num_return_sequences
    beams = batch * usual.settings.num_rows
    steps = config.max_new_tokens
    source = call.inputs.source_length
    exact = (batch, prompt_length, source, steps)
    if exact == (
        *usual.inputs.prompt.shape,
        usual.inputs.source_length,
        usual.settings.num_steps,
    ):
        return output

    of_prompt = slice(padding, padding + prompt_length + steps)
    trimmed = output.part(
        slice(rows), slice(0, beams), of_prompt, slice(steps), slice(source)
    )
    sharding = rows_sharding(usual.inputs)
    trimmed = put_rows(trimmed, sharding, batch)
    if output.cache is None:
        return trimmed

    inputs = output.cache.inputs
    prompt = as_jax(array_library(inputs).asarray(inputs.prompt)[:rows, of_prompt])
    inputs = put_rows(inputs.trimmed(prompt, source), sharding, batch)
    return dataclasses.replace(trimmed, cache=GenerationCache(output.cache.past, inputs))
