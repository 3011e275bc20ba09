"""Many inputs, one after another: a place in the batch whose input has ended goes to the
next, while the others go on.

Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models", section 3.1, which calls it iteration-level scheduling.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..nn.matmul import power_of_two
from ..nn.mesh import on_any_mesh
from ..nn.processes import on_host
from .call import GenerationCall, LoopInputs
from .inputs import GenerationInputs, SMALLEST_LENGTH, usual_length
from .output import GenerationOutput
from .programs import run, run_over
from .reading import read, sorted_ahead
from .state import GenerationState


#: One part of a batch is started, and one answered, at a time: there are so many.
_PARTS = 8


class Input(NamedTuple):
    """One input: its number, its call, and how many inputs before it had its tokens."""

    number: int
    call: GenerationCall
    num_alike: int

    @property
    def source_length(self) -> int:
        """The number of tokens of the source, or of the prompt of a decoder alone."""
        ids = self.call.inputs.input_ids
        return 0 if ids is None else ids.shape[1]

    @property
    def prompt_length(self) -> int:
        """The number of tokens of the prompt."""
        return self.call.inputs.prompt.shape[1]


class Loop(NamedTuple):
    """What a model does for `generate_many`.

    **Fields:**

    - `start`: the state before the first step, in which each input has a pace of its own.
    - `shapes`: the same, with shapes in place of arrays.
    - `go_on`: the state once so many of the inputs that count have ended, and which of all
        have not. The old state is gone then.
    - `max_positions`: the longest sequence, in tokens.
    """

    start: Callable[[LoopInputs], GenerationState]
    shapes: Callable[[LoopInputs], Any]
    go_on: Callable[[GenerationState, np.ndarray, np.ndarray], tuple[Any, Array]]
    max_positions: int


def checked_inputs(
    inputs: Iterable[Any], prepare: Callable[[np.ndarray], GenerationCall]
) -> Iterator[Input]:
    """The inputs, each with its call, which `prepare` makes of a batch of one row.

    **Raises** `ValueError` or `TypeError`, with a note that says which input it is about.
    """
    seen, first = Counter[int](), None
    for number, token_ids in enumerate(inputs):
        try:
            call = prepare(_row(token_ids))
            first = first or call
            _check_alike(call, first)
        except (TypeError, ValueError) as error:
            error.add_note(f"It is input {number} of generate_many, counted from 0.")
            raise
        tokens = hash(np.asarray(call.inputs.input_ids, np.int32).tobytes())
        yield Input(number, call, seen[tokens])
        if call.key is not None:  # only samples want to know, and inputs may have no end
            seen[tokens] += 1


def _row(token_ids: Any) -> np.ndarray:
    """A batch of this input alone."""
    if isinstance(token_ids, str | Mapping):
        raise TypeError(
            "Each input of generate_many is one sequence of token ids, such as an entry of "
            f"tokenizer(texts)['input_ids'], and this one is {token_ids!r}."
        )
    array = np.asarray(token_ids)
    if array.ndim != 1:
        raise ValueError(
            "Each input of generate_many is one sequence of token ids, without an axis for "
            f"the batch, and this one has the shape {array.shape}."
        )
    return (array if array.size else array.astype(np.int32))[None]


def _check_alike(call: GenerationCall, first: GenerationCall) -> None:
    """Checks that the loop is the same for both, and starts from tokens alone."""
    if call.inputs.input_ids is None:
        raise ValueError(
            "generate_many starts from token ids, and the prepare_generation of this model "
            "makes inputs without input_ids of them."
        )
    if call.config.output_cache:
        raise ValueError(
            "generate_many gives no cache: rows that end make room for others. Pass "
            "output_cache=False, or call generate."
        )
    for processor, size in itertools.product(call.processors, (1, 2)):
        try:
            processor.for_batch(size, size)
        except ValueError as error:
            raise ValueError(
                "generate_many takes processors that are the same for all inputs, and this "
                f"one is not. {error}"
            ) from error
    for name in ("max_new_tokens", "min_new_tokens"):
        ours, theirs = getattr(call.config, name), getattr(first.config, name)
        if ours != theirs:
            raise ValueError(
                f"The lengths in the settings leave {name}={ours} for a prompt of "
                f"{call.inputs.prompt.shape[1]} tokens, and {theirs} for the "
                f"{first.inputs.prompt.shape[1]} of the first input. Pass {name}, which "
                "does not count the prompt."
            )


def longest_first(inputs: Iterator[Input], batch_size: int) -> Iterator[Input]:
    """The inputs, of which some batches are read ahead, and the longest come first."""
    windows = sorted_ahead(inputs, batch_size, lambda one: -one.source_length)
    return itertools.chain.from_iterable(windows)


def answers(
    loop: Loop, inputs: Iterator[Input], batch_size: int
) -> Iterator[tuple[int, GenerationOutput]]:
    """The number of each input, and what `generate` returns for it alone, as they end. What
    reading raises is raised after the answers to those that came before."""
    batch = _RunningBatch(loop, batch_size)
    part, error = read(inputs, batch.part_size)
    while part or not batch.is_empty:
        if part and batch.has_room_for(part):
            batch.add(part)
            part, error = ([], error) if error else read(inputs, batch.part_size)
        else:
            yield from batch.next_ended()
    if error is not None:
        raise error


class _RunningBatch:
    """The inputs that are being answered, each in a place of its own."""

    def __init__(self, loop: Loop, batch_size: int):
        self._loop = loop
        self._places: list[Input | None] = [None] * batch_size
        self._prompt_length = 1
        self._longest_source = 0
        self._axes: _Axes | None = None
        self._axes_of_answers: _Axes | None = None
        self._state: GenerationState | None = None

    @property
    def part_size(self) -> int:
        """How many inputs are started, and answered, at a time."""
        return max(len(self._places) // _PARTS, 1)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is being answered."""
        return not any(self._places)

    def has_room_for(self, part: list[Input]) -> bool:
        """Whether there are places for these, as wide as their prompts."""
        is_wide_enough = self._usual_prompt(part) <= self._prompt_length
        return self.is_empty or (is_wide_enough and self._places.count(None) >= len(part))

    def add(self, part: list[Input]) -> None:
        """Starts these."""
        sources = (one.source_length for one in part)
        self._longest_source = max(self._longest_source, *sources)
        if (longest := self._usual_prompt(part)) > self._prompt_length:
            self._prompt_length, self._state = longest, None
        free = [place for place, one in enumerate(self._places) if one is None]
        places = np.full(self.part_size, len(self._places), np.int32)
        places[: len(part)] = free[: len(part)]
        for place, one in zip(free, part, strict=False):
            self._places[place] = one
        part = part + part[-1:] * (self.part_size - len(part))
        new = self._loop.start(self._loop_inputs(part, self._usual_source(part)))
        axes, state = self._state_for(part, new)
        self._state = _put(axes, state, new, places)

    def next_ended(self) -> Iterator[tuple[int, GenerationOutput]]:
        """Goes on until some have ended, and answers these."""
        assert self._axes_of_answers is not None
        assert self._state is not None
        is_taken = np.asarray([one is not None for one in self._places])
        enough = np.asarray(min(self.part_size, is_taken.sum()), np.int32)
        state, goes_on = self._loop.go_on(self._state, is_taken, enough)
        self._state = state
        ended = np.flatnonzero(is_taken & ~on_host(goes_on))
        for first in range(0, len(ended), self.part_size):
            places = ended[first : first + self.part_size].astype(np.int32)
            missing = self.part_size - len(places)
            padded = np.pad(places, (0, missing), mode="edge")
            output = _output(self._axes_of_answers, _without_cache(state), padded)
            output = jax.tree.map(on_host, output)
            for i, place in enumerate(places):
                one = self._places[place]
                assert one is not None
                self._places[place] = None
                yield one.number, self._part(output, i, one)

    def _state_for(
        self, part: list[Input], new: GenerationState
    ) -> tuple["_Axes", GenerationState]:
        """The state, with as many places of the source as the longest that is answered."""
        if self._axes is None:
            shorter = self._loop_inputs(part * 2, self._usual_source(part) - 1)
            shapes = self._loop.shapes(shorter)
            self._axes = _Axes.between(new, shapes)
            self._axes_of_answers = _Axes.between(*map(_without_cache, (new, shapes)))
        if self._state is None:
            everywhere = np.zeros(len(self._places), np.int32)
            return self._axes, _take(self._axes, new, everywhere)
        length = self._usual_source([one for one in self._places if one is not None])
        if self._axes.source_length(self._state) not in (None, length):
            return self._axes, _resized(self._axes, self._state, length)
        return self._axes, self._state

    def _usual_source(self, inputs: list[Input]) -> int:
        length = max(one.source_length for one in inputs)
        return padded_length(length, self._longest_source, self._loop.max_positions)

    def _usual_prompt(self, inputs: list[Input]) -> int:
        longest = max(one.prompt_length for one in inputs)
        return 1 if longest == 1 else usual_length(longest, self._loop.max_positions)

    def _loop_inputs(self, part: list[Input], source_length: int) -> LoopInputs:
        """What the loop is given for these, with a source of this length."""
        call = part[0].call
        inputs = GenerationInputs(
            _stacked([one.call.inputs.prompt for one in part], self._prompt_length),
            _stacked([one.call.inputs.input_ids for one in part], source_length),
        )
        num_alike = np.asarray([one.num_alike for one in part], np.int32)
        loop_inputs = dataclasses.replace(call, inputs=inputs).exact()
        return dataclasses.replace(loop_inputs, num_alike=num_alike)

    def _part(self, output: GenerationOutput, i: int, one: Input) -> GenerationOutput:
        """What is about the input `i` of those in `output`."""
        config, num_answers = one.call.config, one.call.config.num_return_sequences
        num_rows = max(config.num_beams, num_answers)
        padding = self._prompt_length - one.prompt_length
        return output.part(
            slice(i * num_answers, (i + 1) * num_answers),
            slice(i * num_rows, (i + 1) * num_rows),
            slice(padding, None),
            slice(None),
            slice(one.source_length),
        )


def padded_length(length: int, longest: int, limit: int) -> int:
    """What a source is padded to where the longest has so many tokens: one of twelve
    lengths, since each has programs of its own, of which not many are kept."""
    return usual_length(length, limit, max(power_of_two(longest) // 16, SMALLEST_LENGTH))


def _stacked(rows: list[Any], length: int) -> np.ndarray:
    """The rows, padded to this length, or cut."""
    rows = [row[0, :length] for row in rows]
    padded = [np.pad(x, (0, length - len(x)), constant_values=-1) for x in rows]
    return np.stack(padded)


class _Axes(eqx.Module):
    """Where the arrays of a `GenerationState` have what belongs to each input, and what
    belongs to each position of the source: an axis of each array, or `None`."""

    inputs: tuple[int | None, ...] = eqx.field(static=True)
    source: tuple[int | None, ...] = eqx.field(static=True)

    @classmethod
    def between(cls, state: GenerationState, other: Any) -> "_Axes":
        """The axes, found by the shapes of another state: of twice as many inputs, whose
        source has a position less.

        **Raises** `ValueError` if an array differs in another way.
        """
        inputs, source = list[int | None](), list[int | None]()
        for x, y in zip(_arrays(state), _arrays(other), strict=True):
            sizes = list(zip(x.shape, y.shape, strict=True))
            inputs.append(
                next((i for i, (n, m) in enumerate(sizes) if m == 2 * n > 0), None)
            )
            source.append(next((i for i, (n, m) in enumerate(sizes) if m == n - 1), None))
            known = (inputs[-1], source[-1])
            if any(n != m and i not in known for i, (n, m) in enumerate(sizes)):
                raise ValueError(
                    "generate_many cannot tell which axes of an array in the state are its "
                    f"rows and its source: it has the shape {x.shape}, and {y.shape} for "
                    "twice as many rows and a source that is one token shorter."
                )
        return cls(tuple(inputs), tuple(source))

    def source_length(self, state: GenerationState) -> int | None:
        """The number of positions of the source; `None` if no array has any."""
        pairs = zip(_arrays(state), self.source, strict=True)
        return next((x.shape[axis] for x, axis in pairs if axis is not None), None)


def _arrays(state: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(state) if hasattr(x, "shape")]


def _mapped(
    function: Callable[..., Any], axes: tuple[int | None, ...], *states: GenerationState
) -> GenerationState:
    """The first state, with `function(axis, ...)` of each array that has such an axis."""
    arrays, others = eqx.partition(states[0], eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    more = (_arrays(state) for state in states[1:])
    new = [
        x if axis is None else function(axis, x, *others)
        for axis, x, *others in zip(axes, leaves, *more, strict=True)
    ]
    return eqx.combine(structure.unflatten(new), others)


def _index(axis: int, x: Array, inputs: Array, batch_size: int) -> tuple[Any, ...]:
    """Where an array has what belongs to these inputs."""
    each = x.shape[axis] // batch_size
    index = inputs[:, None] * each + jnp.arange(each, dtype=jnp.int32)[None]
    return (*[slice(None)] * axis, index.reshape(-1))


def _taken(axes: _Axes, state: GenerationState, inputs: Array) -> GenerationState:
    """The state of these inputs."""
    inputs, batch_size = jnp.asarray(inputs), len(state.first)

    def take(axis: int, x: Array) -> Array:
        return x.at[_index(axis, x, inputs, batch_size)].get(mode="clip")

    return _mapped(take, axes.inputs, state)


def _written(
    axes: _Axes, state: GenerationState, new: GenerationState, inputs: Array
) -> GenerationState:
    """The state, with new ones in place of these inputs; those out of range are lost."""
    inputs, batch_size = jnp.asarray(inputs), len(state.first)
    length = axes.source_length(state)
    new = new if length is None else _with_source(axes, new, length)

    def put(axis: int, x: Array, y: Array) -> Array:
        return x.at[_index(axis, x, inputs, batch_size)].set(y, mode="drop")

    return _mapped(put, axes.inputs, state, new)


def _with_source(axes: _Axes, state: GenerationState, length: int) -> GenerationState:
    """The state, with a source of this length: padded, or without padding at its end."""

    def resize(axis: int, x: Array) -> Array:
        padding = -1 if jnp.issubdtype(x.dtype, jnp.integer) else 0
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, max(length - x.shape[axis], 0))
        x = jnp.pad(x, widths, constant_values=padding)
        return jax.lax.slice_in_dim(x, 0, length, axis=axis)

    return _mapped(resize, axes.source, state)


def _without_cache(state: GenerationState) -> GenerationState:
    """What the answers are made from, which has the same shapes for any source."""
    return eqx.tree_at(lambda state: state.slots, state, None)


def _answered(axes: _Axes, state: GenerationState, inputs: Array) -> GenerationOutput:
    return _taken(axes, state, inputs).output()


@on_any_mesh
def _take(axes: _Axes, state: GenerationState, inputs: np.ndarray) -> GenerationState:
    return run(_taken, axes, state, inputs)


@on_any_mesh
def _put(
    axes: _Axes, state: GenerationState, new: GenerationState, inputs: np.ndarray
) -> GenerationState:
    return run_over(_written, axes, state, new, inputs)


@on_any_mesh
def _resized(axes: _Axes, state: GenerationState, length: int) -> GenerationState:
    return run(_with_source, axes, state, length)


@on_any_mesh
def _output(axes: _Axes, state: GenerationState, inputs: np.ndarray) -> GenerationOutput:
    return run(_answered, axes, state, inputs)
