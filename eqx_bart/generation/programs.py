"""Compiled programs, of which the ones used last are kept."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax


#: How many programs are kept. XLA needs some 20 MB and 400 memory maps for each on a CPU,
#: and a process has 65,530 maps.
MOST_PROGRAMS = 64


class _Static(eqx.Module):
    """A pytree without arrays, as a part of a program."""

    value: Any = eqx.field(static=True)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, compiled as by `equinox.filter_jit`.

    Of all programs, the `MOST_PROGRAMS` that were used last are kept, and the others let
    go. `equinox.filter_jit` and `jax.jit` keep every program for as long as the process
    lives.

    **Raises** `TypeError` if something in `args` is neither an array nor hashable.
    """
    arrays, others = eqx.partition(args, eqx.is_array)
    new_arrays, new_others = _program(function, _Key(arrays, others))(arrays)
    return eqx.combine(new_arrays, new_others.value)


class _Key:
    """What tells programs apart, and what they are made from: `others`, all that is not an
    array."""

    def __init__(self, arrays: Any, others: Any):
        leaves, structure = jax.tree.flatten(arrays)
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        values, places = jax.tree.flatten(others)
        for value in values:
            if not isinstance(value, Hashable):
                raise TypeError(
                    "A program is compiled for each value of what is not an array, which "
                    f"therefore must be hashable; it is not in {value!r}."
                )
        typed = tuple((type(x), x) for x in values)
        self.values, self.others = (structure, shapes, places, typed), others

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)


@functools.lru_cache(MOST_PROGRAMS)
def _program(function: Callable[..., Any], key: _Key) -> Callable[..., Any]:
    """A function of its own, so that what JAX keeps for it goes when it goes."""

    @jax.jit
    def program(arrays: Any) -> Any:
        result = function(*eqx.combine(arrays, key.others))
        arrays, others = eqx.partition(result, eqx.is_array)
        return arrays, _Static(others)

    return program
