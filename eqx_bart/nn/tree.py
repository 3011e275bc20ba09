"""Ways through a model's tree, and what is remembered of it."""

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, no_type_check, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.tree_util as jtu


ResultT = TypeVar("ResultT")


def along(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """The nodes on a path of `jax.tree_util`, each with the key to the next one. What lies
    in a container other than a module, a tuple, a list or a dict is `None`.
    """
    for key in path:
        yield tree, key
        match key:
            case jtu.GetAttrKey():
                tree = getattr(tree, key.name)
            case jtu.SequenceKey():
                tree = tree[key.idx]
            case jtu.DictKey():
                tree = tree[key.key]
            case _:
                tree = None


def remembered(function: Callable[[Any], ResultT]) -> Callable[[Any], ResultT]:
    """A function of a module, with its result kept for as long as the module lives: a walk
    through a model takes as long as a small program. Nothing is kept of a module that is
    being traced, or that holds a list, a dict or another thing that may change.
    """
    results: dict[int, tuple[Callable[[], Any], ResultT]] = {}

    @no_type_check  # it is here to be quick
    @functools.wraps(function)
    def call(module: Any) -> ResultT:
        place = id(module)
        known = results.get(place)
        if known is not None and known[0]() is module:
            return known[1]
        result = function(module)
        if _stays(module):
            reference = weakref.ref(module, lambda _: results.pop(place, None))
            results[place] = (reference, result)
        return result

    return call


def _stays(module: Any) -> bool:
    """Whether it is a module in which nothing can change."""
    if not isinstance(module, eqx.Module):
        return False
    found, structure = jax.tree.flatten(module)
    if any(isinstance(x, jax.core.Tracer) for x in found):
        return False
    nodes = [structure]
    while nodes:
        node = nodes.pop()
        data = node.node_data()
        if data is not None and not _is_frozen(data[0]):
            return False
        nodes += node.children()
    return True


def _is_frozen(kind: type) -> bool:
    parameters = getattr(kind, "__dataclass_params__", None)
    is_frozen = getattr(parameters, "frozen", False)
    return is_frozen or issubclass(kind, eqx.Module | tuple | types.NoneType)


def leaves(module: Any, *others: Any) -> list[Any]:
    """The leaves of a module, through which this walks but once, and of others."""
    return [*_leaves(module), *jax.tree.leaves(others)]


@remembered
def _leaves(module: Any) -> tuple[Any, ...]:
    return tuple(jax.tree.leaves(module))
