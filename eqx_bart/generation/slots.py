"""Where in a cache the rows of an input keep their tokens."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ..nn.cache import FirstSlot
from ..nn.matmul import power_of_two
from .inputs import array_library, as_jax, SMALLEST_LENGTH
from .places import Places, places_from, take_at


class NewTokens(eqx.Module):
    """What a model is to decode.

    The new tokens of a row of the cache are those of a few beams of an input, at the same
    position; or tokens of its prompt; or the newest token, and drafts of those that come
    after it.

    **Fields:**

    - `ids`, `positions`: known to be inside their tables.
    - `mask`: the slots that each token attends to: any of those before, and its own.
    - `first_slot`: the tokens are written to this slot and to those after it: one number,
        or one for each row. What was there, a wrong draft, has no meaning any more.
    - `output_attentions`: whether to return cross-attentions.
    """

    ids: Integer[Array, "batch new"]
    positions: Integer[Array, "batch new"]
    mask: Bool[Array, "batch 1 new slots"]
    first_slot: FirstSlot
    output_attentions: bool = eqx.field(static=True, default=False)


#: Of each layer. In slots that rows share, the rows are the queries.
CrossAttentions = tuple[Float[Array, "batch heads queries source"] | None, ...]
#: The same, for the new tokens of each row.
RowAttentions = tuple[Float[Array, "batch rows heads new source"] | None, ...]

#: Decodes new tokens; see `GenerationMixin.generation_step`.
Decode = Callable[
    [NewTokens, Any], tuple[Float[Array, "batch new vocab"], CrossAttentions | None, Any]
]


class Newest(eqx.Module):
    """The newest token of each row and drafts of those after it, and what they come after.

    **Fields:**

    - `tokens`, `positions`: the tokens and their positions.
    - `ancestors`: for each row and each step before this one, the row whose token of that
        step it continues.
    - `step`: how many tokens have been generated.
    """

    tokens: Integer[Array, "batch rows new"]
    positions: Integer[Array, "batch rows new"]
    ancestors: Integer[Array, "batch rows steps"]
    step: Places


class Past(eqx.Module):
    """A cache, and the tokens in it.

    **Fields:**

    - `cache`: the model's.
    - `positions`: of the token in each slot; -1 where there is none to attend to.
    - `length`: how many slots have been written to.
    """

    cache: Any
    positions: Integer[Array, "batch slots"]
    length: Integer[Array, ""]

    def bucketed(self) -> "Past":
        """The past, with the positions of as many slots as many calls share: a power of
        two, in which all are that have been written to."""
        size = power_of_two(max(int(self.length), SMALLEST_LENGTH))
        positions = self.positions[:, :size]
        missing = ((0, 0), (0, size - positions.shape[1]))
        padded = array_library(positions).pad(positions, missing, constant_values=-1)
        return Past(self.cache, as_jax(padded), self.length)

    def written_into(self, empty: "Past") -> "Past":
        """The past, in an empty one with other numbers of rows and slots. All slots that
        have been written to must fit.

        **Raises** `ValueError` if that is of another model.
        """
        if jax.tree.structure(self) != jax.tree.structure(empty):
            raise ValueError(
                "This cache is of another model: pass what generate of the same model has "
                "returned."
            )

        def write(old: Array, new: Array) -> Array:
            part = old[tuple(slice(size) for size in new.shape)]
            return jax.lax.dynamic_update_slice(new, part, (0,) * new.ndim)

        return jax.tree.map(write, self, empty)

    def before(self, first: Integer[Array, " batch"]) -> "Past":
        """The past, of which nothing from these positions on is attended to."""
        is_before = self.positions < first[:, None]
        return Past(self.cache, jnp.where(is_before, self.positions, -1), self.length)

    def read(
        self,
        decode: Decode,
        tokens: Integer[Array, "batch new"],
        first: Integer[Array, " batch"],
    ) -> "Past":
        """The past, after these tokens.

        **Arguments:**

        - `decode`: of the model.
        - `tokens`: -1 where they are padding.
        - `first`: the position of the first token of each row.
        """
        num_new, num_slots = tokens.shape[1], self.positions.shape[1]
        if num_new == 0:
            return self
        place = jnp.arange(num_new, dtype=jnp.int32)
        new = first[:, None] + place[None]
        positions = jax.lax.dynamic_update_slice_in_dim(
            self.positions, jnp.where(tokens >= 0, new, -1), self.length, axis=1
        )
        slots = jnp.arange(num_slots, dtype=jnp.int32)[None]
        mask = (positions >= 0)[:, None] & (slots <= self.length + place[:, None])[None]
        tokens, new = jnp.maximum(tokens, 0), jnp.maximum(new, 0)
        read = NewTokens(tokens, new, mask[:, None], self.length)
        _, _, cache = decode(read, self.cache)
        return Past(cache, positions, self.length + num_new)


class AbstractSlots(eqx.Module):
    """A cache, and which of its slots are whose.

    The first slots hold the prompt, without its last token. Each step then writes the
    newest token of each row, and what is drafted after it.

    **Fields:**

    - `cache`: the model's.
    - `positions`: of the prompt's token in each slot, -1 where there is none.
    - `start`: the slot that the first step writes to.
    """

    cache: eqx.AbstractVar[Any]
    positions: eqx.AbstractVar[Integer[Array, "batch slots"]]
    start: eqx.AbstractVar[Integer[Array, ""]]

    @property
    def is_prompt(self) -> Bool[Array, "batch slots"]:
        """The slots that hold tokens of the prompt."""
        return self.positions >= 0

    @abc.abstractmethod
    def decode(
        self,
        decode: Decode,
        newest: Newest,
        *,
        output_attentions: bool,
    ) -> tuple[Float[Array, "batch rows new vocab"], RowAttentions | None, "AbstractSlots"]:
        """Decodes the newest tokens of each row.

        **Arguments:**

        - `decode`: of the model.
        - `newest`: the tokens, and what they come after.
        - `output_attentions`: whether to return cross-attentions.

        **Returns** the logits, the cross-attentions, and the slots with the newest tokens.
        """


class SharedSlots(AbstractSlots):
    """The rows of an input share a row of the cache, in which each step adds one slot for
    each row.

    Nothing in the cache ever moves: where beam search continues other rows, the ancestors
    change, and with them the mask. A step costs the square of the number of rows, and is
    the fastest for a few.
    """

    cache: Any
    positions: Integer[Array, "batch slots"]
    start: Integer[Array, ""]

    def decode(
        self,
        decode: Decode,
        newest: Newest,
        *,
        output_attentions: bool,
    ) -> tuple[Float[Array, "batch rows 1 vocab"], RowAttentions | None, "SharedSlots"]:
        batch, rows, _ = newest.tokens.shape
        new = NewTokens(
            newest.tokens[..., 0],
            newest.positions[..., 0],
            self._mask(newest)[:, None],
            _by_cache_row(self.start + newest.step * rows, (batch, 1)),
            output_attentions,
        )
        logits, attentions, cache = decode(new, self.cache)

        def by_row(weights: Array) -> Array:
            return weights.swapaxes(1, 2)[:, :, :, None]

        return (
            logits[:, :, None],
            jax.tree.map(by_row, attentions),
            SharedSlots(cache, self.positions, self.start),
        )

    def _mask(self, newest: Newest) -> Bool[Array, "batch rows slots"]:
        """The slots of the prompt, and those of each row's ancestors."""
        batch, rows, steps = newest.ancestors.shape
        row = jnp.arange(rows, dtype=jnp.int32)[None, :, None]
        steps = jnp.arange(steps, dtype=jnp.int32)[None, None]
        step = newest.step[..., None]
        ancestors = jnp.where(steps == step, row, newest.ancestors)
        is_own = jax.nn.one_hot(ancestors, rows, dtype=bool) & (steps <= step)[..., None]
        is_own = is_own.reshape(batch, rows, -1)
        is_new = jnp.zeros((batch, rows, self.positions.shape[1]), bool)
        is_new = jax.lax.dynamic_update_slice_in_dim(is_new, is_own, self.start, axis=2)
        return self.is_prompt[:, None] | is_new


class OwnSlots(AbstractSlots):
    """Each row has a row of the cache to itself, so that a step costs as much for a row as
    it does alone. Where a row continues another one, its part of the cache is copied.

    **Fields:**

    - `cache`, `positions`, `start`: as in `AbstractSlots`.
    - `is_by_row`: which arrays of the cache have an entry for each row, along their first
        axis. The others are the same for all rows of an input, such as keys and values of
        the source.
    - `can_move`: whether rows may continue other rows.
    """

    cache: Any
    positions: Integer[Array, "batch slots"]
    start: Integer[Array, ""]
    is_by_row: tuple[bool, ...] = eqx.field(static=True)
    can_move: bool = eqx.field(static=True)

    def decode(
        self,
        decode: Decode,
        newest: Newest,
        *,
        output_attentions: bool,
    ) -> tuple[Float[Array, "batch rows new vocab"], RowAttentions | None, "OwnSlots"]:
        batch, rows, num_new = newest.tokens.shape
        cache = self._moved(newest) if self.can_move else self.cache
        mask = self._mask(newest.step, num_new)
        mask = jnp.broadcast_to(mask, (batch, rows, *mask.shape[2:]))
        new = NewTokens(
            newest.tokens.reshape(-1, num_new),
            newest.positions.reshape(-1, num_new),
            mask.reshape(batch * rows, 1, num_new, -1),
            _by_cache_row(self.start + newest.step, (batch, rows)),
            output_attentions,
        )
        logits, attentions, cache = decode(new, cache)

        def by_row(x: Array) -> Array:
            return x.reshape(batch, rows, *x.shape[1:])

        return (
            by_row(logits),
            jax.tree.map(by_row, attentions),
            dataclasses.replace(self, cache=cache),
        )

    def _mask(self, step: Places, num_new: int) -> Bool[Array, "#batch #rows new slots"]:
        """For each new token the slots of the prompt, and all after them up to its own."""
        place = jnp.arange(self.positions.shape[1], dtype=jnp.int32) - self.start
        place = place[None, None, None]
        is_new = (place >= 0) & (place <= places_from(step, num_new)[..., None])
        return self.is_prompt[:, None, None] | is_new

    def past(
        self, positions: Integer[Array, "batch steps"], num_new: Integer[Array, ""]
    ) -> Past:
        """All that is in the slots, where each input has one row.

        **Arguments:**

        - `positions`: of the token that each step has written, -1 where there is none.
        - `num_new`: how many steps there were.
        """
        positions = jax.lax.dynamic_update_slice_in_dim(
            self.positions, positions, self.start, axis=1
        )
        return Past(self.cache, positions, self.start + num_new)

    def _moved(self, newest: Newest) -> Any:
        """The cache, after each row has gone on from its ancestor in the last step."""
        batch, rows, _ = newest.ancestors.shape
        last = take_at(newest.ancestors, newest.step - 1)
        row = jnp.arange(rows, dtype=jnp.int32)
        last = jnp.where(newest.step > 0, last, row[None])

        def move(x: Array) -> Array:
            # Input by input, so that the inputs may be on different devices.
            by_input = x.reshape(batch, rows, *x.shape[1:])
            take = functools.partial(jnp.take, axis=0, mode="clip")
            return jax.vmap(take)(by_input, last).reshape(x.shape)

        leaves, structure = jax.tree.flatten(self.cache)
        moved = [
            move(x) if is_by_row else x
            for x, is_by_row in zip(leaves, self.is_by_row, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)


def _by_cache_row(
    first: Places, shape: tuple[int, int]
) -> Integer[Array, ""] | Integer[Array, " cache_rows"]:
    """The first slot of each row of a cache; one number if it is the same for all."""
    if first.size == 1:
        return first.reshape(())
    return jnp.broadcast_to(first, shape).reshape(-1)


def by_row(one: Any, many: Any, num_rows: int) -> tuple[bool, ...]:
    """Which arrays of a cache have an entry for each row, along their first axis.

    **Arguments:**

    - `one`, `many`: the shapes of a cache of one row for each input, and of `num_rows`.

    **Raises** `ValueError` if an array differs in another way.
    """
    found = list[bool]()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        found.append(a.shape != b.shape)
        if found[-1] and b.shape != (num_rows * a.shape[0], *a.shape[1:]):
            raise ValueError(
                f"An array of the cache has the shape {a.shape} for one row of each input, "
                f"and {b.shape} for {num_rows}. The rows must be its first axis."
            )
    return tuple(found)


def repeated(cache: Any, many: Any, num_rows: int) -> Any:
    """A cache of one row for each input, as one of `num_rows`, whose shapes are `many`."""
    leaves, structure = jax.tree.flatten(many)
    pairs = zip(jax.tree.leaves(cache), leaves, strict=True)
    return jax.tree.unflatten(
        structure,
        [x if x.shape == y.shape else jnp.repeat(x, num_rows, axis=0) for x, y in pairs],
    )
