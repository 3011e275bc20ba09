"""Compiled programs, of which the ones used last are kept."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTreeDef


#: How many programs are kept. XLA needs some 20 MB and 400 memory maps for each on a CPU,
#: and a process has 65,530 maps.
MOST_PROGRAMS = 64


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Rest:
    """A pytree without its arrays, as a part of a program: its structure, and its leaves,
    with `None` in the places of arrays."""

    structure: PyTreeDef
    leaves: tuple[Any, ...]

    def with_arrays(self, arrays: list[Any]) -> Any:
        """The pytree with these arrays."""
        rest = iter(arrays)
        leaves = [next(rest) if x is None else x for x in self.leaves]
        return self.structure.unflatten(leaves)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, compiled as by `equinox.filter_jit`.

    Of all programs, the `MOST_PROGRAMS` that were used last are kept, and the others let
    go. `equinox.filter_jit` and `jax.jit` keep every program for as long as the process
    lives.

    **Raises** `TypeError` if something in `args` is neither an array nor hashable.
    """
    arrays, rest = _parted(args)
    key = _Key(arrays, rest)
    new_arrays, new_rest = _program(function, key)(arrays)
    return new_rest.with_arrays(new_arrays)


def _parted(tree: Any) -> tuple[list[Any], _Rest]:
    """The arrays of a pytree, and the rest of it."""
    leaves, structure = jax.tree.flatten(tree)
    is_array = [eqx.is_array(x) for x in leaves]
    rest = (None if y else x for x, y in zip(leaves, is_array, strict=True))
    return list(itertools.compress(leaves, is_array)), _Rest(structure, tuple(rest))


class _Key:
    """What tells programs apart, and what they are made from: `rest`, all that is not an
    array."""

    def __init__(self, arrays: list[Any], rest: _Rest):
        for value in rest.leaves:
            if not isinstance(value, Hashable):
                raise TypeError(
                    "A program is compiled for each value of what is not an array, which "
                    f"therefore must be hashable; it is not in {value!r}."
                )
        shapes = tuple([(x.shape, x.dtype) for x in arrays])
        types = tuple(map(type, rest.leaves))
        self.values, self.rest = (rest.structure, shapes, types, rest.leaves), rest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)


@functools.lru_cache(MOST_PROGRAMS)
def _program(function: Callable[..., Any], key: _Key) -> Callable[..., Any]:
    """A function of its own, so that what JAX keeps for it goes when it goes."""

    @jax.jit
    def program(arrays: list[Any]) -> Any:
        return _parted(function(*key.rest.with_arrays(arrays)))

    return program
