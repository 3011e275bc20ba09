"""Compiled programs, of which the ones used last are kept."""

import functools
import itertools
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax

from ..nn.tree import remembered


#: How many programs are kept. XLA needs some 20 MB and 400 memory maps for each on a CPU,
#: and a process has 65,530 maps.
MOST_PROGRAMS = 64


class _Static(eqx.Module):
    """A pytree without arrays, as a part of a program."""

    value: Any = eqx.field(static=True)


def run(function: Callable[..., Any], module: Any, *args: Any) -> Any:
    """`function(module, *args)`, compiled as by `equinox.filter_jit`.

    Of all programs, the `MOST_PROGRAMS` that were used last are kept, and the others let
    go. `equinox.filter_jit` and `jax.jit` keep every program for as long as the process
    lives.

    **Raises** `TypeError` if something in `args` is neither an array nor hashable.
    """
    return _call(*_prepared(function, module, (), args))


def run_over(function: Callable[..., Any], module: Any, state: Any, *args: Any) -> Any:
    """`function(module, state, *args)`, as `run` does it, written over `state`: the arrays
    in it are gone, where XLA could use their memory."""
    return _call(*_prepared(function, module, (state,), args))


def shapes(function: Callable[..., Any], module: Any, *args: Any) -> Any:
    """What `run` would return, with shapes and dtypes in place of arrays."""
    program, arrays = _prepared(function, module, (), args)
    return _joined(*jax.eval_shape(program, *arrays))


def _prepared(
    function: Callable[..., Any],
    module: Any,
    state: tuple[Any, ...],
    args: tuple[Any, ...],
) -> tuple[Callable[..., Any], tuple[list[Any], list[Any], list[Any]]]:
    """The program, and the arrays that it is called with."""
    arrays, module_kind = _parted(module)
    donated, state_kind = _in_parts(state)
    more, args_kind = _in_parts(args)
    program = _program(function, module_kind, state_kind, args_kind)
    return program, (arrays, donated, more)


def _call(program: Callable[..., Any], arrays: tuple[list[Any], ...]) -> Any:
    return _joined(*program(*arrays))


def _joined(arrays: Any, others: _Static) -> Any:
    return eqx.combine(arrays, others.value)


class _Kind:
    """All of a pytree but the values of its arrays: what a program is made from. It is
    equal to another if that makes the same program."""

    def __init__(self, structure: Any, arrays: list[Any], others: list[Any]):
        for value in others:
            if not isinstance(value, Hashable):
                raise TypeError(
                    "A program is compiled for each value of what is not an array, which "
                    f"therefore must be hashable; it is not in {value!r}."
                )
        shapes = tuple([(x.shape, x.dtype) for x in arrays])
        typed = tuple([(type(x), x) for x in others])
        self._key = (structure, shapes, typed)
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def with_arrays(self, arrays: list[Any]) -> Any:
        """A pytree of this kind."""
        structure, _, typed = self._key
        rest = iter(arrays)
        return structure.unflatten([next(rest) if x is None else x for _, x in typed])


def _in_parts(tree: Any) -> tuple[list[Any], _Kind]:
    """The arrays of a pytree, and its kind."""
    leaves, structure = jax.tree.flatten(tree)
    is_array = [eqx.is_array(x) for x in leaves]
    arrays = list(itertools.compress(leaves, is_array))
    others = [None if y else x for x, y in zip(leaves, is_array, strict=True)]
    return arrays, _Kind(structure, arrays, others)


_parted = remembered(_in_parts)


@functools.lru_cache(MOST_PROGRAMS)
def _program(
    function: Callable[..., Any], module: _Kind, state: _Kind, args: _Kind
) -> Callable[..., Any]:
    """A function of its own, so that what JAX keeps for it goes when it goes."""

    @functools.partial(jax.jit, donate_argnums=1)
    def program(arrays: list[Any], donated: list[Any], more: list[Any]) -> Any:
        result = function(
            module.with_arrays(arrays), *state.with_arrays(donated), *args.with_arrays(more)
        )
        new_arrays, others = eqx.partition(result, eqx.is_array)
        return new_arrays, _Static(others)

    return program
