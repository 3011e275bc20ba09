"""What a model's tree really is, as opposed to what its config says about it."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import equinox as eqx

from ..nn.stack import Checkpointing
from ..nn.stored import AbstractStored, AbstractUnstorable
from .names import weights


_PACKAGE = __name__.partition(".")[0] + "."
# This many differences are enough to say what is wrong.
_MAX_DIFFERENCES = 3


def library_class(cls: type) -> type | None:
    """The library's model that `cls` is, or is a subclass of; `None` if `cls` is a model of
    the user's own."""
    return next((c for c in cls.__mro__ if _is_ours(c) and not _is_abstract(c)), None)


def overrides(cls: type, base: type) -> list[str]:
    """The methods of `base`, except `__init__`, that `cls` or a class between them defines
    again."""
    own = itertools.takewhile(lambda c: c is not base, cls.__mro__)
    return [
        name
        for c in own
        for name, value in vars(c).items()
        if callable(value)
        and getattr(value, "__qualname__", "").startswith(c.__qualname__)
        and name != "__init__"
        and hasattr(base, name)
    ]


def differences(model: eqx.Module, template: Any) -> list[str]:
    """How the tree of `model` differs from that of `template`, a model or its shapes: in
    the types of its modules, in their static fields, or in their arrays. A few lines at
    most; none if the trees are equal."""
    found = itertools.chain(_of_parts("", model, template), _of_arrays(model, template))
    return list(itertools.islice(found, _MAX_DIFFERENCES))


def unstorable(model: eqx.Module) -> str | None:
    """Why `model` cannot have a checkpoint, and what to do; `None` if it can."""
    parts = (part for _, part in _modules("", model))
    return next((x.remedy for x in parts if isinstance(x, AbstractUnstorable)), None)


def _of_arrays(model: eqx.Module, template: Any) -> Iterator[str]:
    ours, theirs = weights(model), weights(template)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            yield f"{name}: the model has it, and the class has not"
        elif name not in ours:
            yield f"{name}: the class has it, and the model has not"
        elif (a := ours[name].value.shape) != (b := theirs[name].value.shape):
            yield f"{name}: {list(a)} in the model, {list(b)} by the class"


def _of_parts(path: str, model: Any, template: Any) -> Iterator[str]:
    ours, theirs = dict(_modules(path, model)), dict(_modules(path, template))
    for name, part in ours.items():
        other = theirs.get(name)
        if name == "":
            continue
        if other is None:
            yield f"{name}: the model has a {type(part).__name__}, and the class has none"
            continue
        if type(part) is not type(other):
            yield f"{name}: {type(part).__name__} for {type(other).__name__}"
            continue
        for field in _static_fields(part):
            a, b = getattr(part, field), getattr(other, field)
            if a != b:
                yield f"{name}.{field}: {a!r} for {b!r}"


def _static_fields(module: eqx.Module) -> list[str]:
    return [f.name for f in dataclasses.fields(module) if f.metadata.get("static")]


def _modules(path: str, node: Any) -> Iterator[tuple[str, eqx.Module]]:
    """The modules in `node` that make its numbers, by their paths."""
    if isinstance(node, AbstractStored | Checkpointing):
        return
    if isinstance(node, eqx.Module):
        yield path, node
        children = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    elif isinstance(node, tuple | list):
        children = {str(i): x for i, x in enumerate(node)}
    elif isinstance(node, dict):
        children = node
    else:
        return
    for name, child in children.items():
        yield from _modules(f"{path}.{name}".lstrip("."), child)


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith(_PACKAGE)


def _is_abstract(cls: type) -> bool:
    return bool(getattr(cls, "__abstractmethods__", ()))
