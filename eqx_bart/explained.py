"""Errors that say what to do, for what users call."""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.core
import jaxtyping

from .hf_names import answer
from .settings import nearest


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_USE_FILTERS = (
    "a model holds arrays, which are arguments of a compiled program, and other things, "
    "which are not. Use equinox.filter_jit instead of jax.jit, and equinox.filter_shard "
    "instead of jax.device_put; they tell them apart."
)
#: A longer value in a message about shapes is cut.
_FEW_LINES = 4


def explained(function: FunctionT) -> FunctionT:
    """`function`, with errors that lead to the mistake: arguments by Hugging Face's names,
    lists and PyTorch's tensors in the place of arrays, arrays of wrong shapes, `jax.jit`.
    """
    explained = _Explained(function)
    is_method = next(iter(explained.parameters), None) == "self"
    return cast("FunctionT", explained if is_method else explained.call)


class _Explained:
    """A method, or a function, as `call`, with errors that lead to the mistake."""

    def __init__(self, function: Callable[..., Any]):
        self.parameters = inspect.signature(function).parameters
        kinds = {p.kind for p in self.parameters.values()}
        self.takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds
        self.arrays = {n for n, p in self.parameters.items() if _is_array(p.annotation)}

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.check(args, kwargs)
            try:
                return function(*args, **kwargs)
            except jaxtyping.TypeCheckError as error:
                error.args = (in_short(str(error)),)
                raise
            except jax.errors.TracerBoolConversionError as error:
                if any(map(_is_traced_flag, jax.tree.leaves((args, kwargs)))):
                    raise TypeError(f"The model is traced whole: {_USE_FILTERS}") from error
                raise

        self.call = call
        # Of this and an instance a method is made at each access.
        unbound = eqx.module_update_wrapper(BoundMethod(call, object()))
        self.structure = jax.tree.structure(unbound)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self.call
        return jax.tree.unflatten(self.structure, [instance])

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """**Raises** `TypeError` if an argument has no such name, or is no array where one
        is needed."""
        for name in kwargs.keys() - self.parameters.keys():
            if not self.takes_any_name:
                hint = answer(name) or nearest(name, self.parameters)
                raise TypeError(f"{self.call.__qualname__} has no argument {name!r}{hint}")
        for name, value in (*zip(self.parameters, args, strict=False), *kwargs.items()):
            if name in self.arrays and (remedy := _remedy(name, value)):
                raise TypeError(
                    f"{name} is a {type(value).__name__}, not an array: pass {remedy}."
                )


class BoundMethod(eqx.Module):
    """A method of a module, as a pytree: what Equinox makes of methods, except that its
    hash, which `jax.jit` asks for, is an error that says so."""

    function: Callable[..., Any] = eqx.field(static=True)
    module: Any

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return types.MethodType(self.function, self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.module, *args, **kwargs)

    def __hash__(self) -> int:
        return hash_of(self)


def hash_of(module: eqx.Module) -> int:
    """The hash of a module, as Equinox makes it.

    **Raises** `TypeError` if it holds arrays, saying which `jit` to use.
    """
    try:
        return hash(tuple(jax.tree.leaves(module)))
    except TypeError as error:
        raise TypeError(f"{error}: {_USE_FILTERS}") from error


def _is_array(annotation: Any) -> bool:
    """Whether arguments with this annotation are arrays."""
    return any(hasattr(x, "dim_str") for x in (annotation, *typing.get_args(annotation)))


def _is_traced_flag(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer) and leaf.dtype == bool


def _remedy(name: str, value: Any) -> str | None:
    """What to pass in place of a value that is no array."""
    if isinstance(value, list | tuple):
        return f"numpy.asarray({name}), of rows that are padded to one length"
    if isinstance(value, Mapping):
        return f"what is in it, as **{name}"
    if type(value).__module__.partition(".")[0] == "torch":
        return f"{name}.numpy(force=True)"
    return None


def in_short(message: str) -> str:
    """A message of jaxtyping, with what is wrong in its first line, and without
    the inside of modules."""
    head = re.match(
        r".* the parameters of (\S+)\.\n.*parameter '(\w+)'\.\n"
        r"Actual value: ((?s:.*?))\nExpected type: ((?s:.*?))\.\n",
        message,
    )
    message = "\n".join(_cut(message.splitlines()))
    if head is None:
        return message
    function, parameter, actual, expected = head.groups()
    actual = re.sub(r"\(.*\n.*\)", "(...)", actual, flags=re.DOTALL)
    shapes = dict.fromkeys(re.findall(r"(\w+)\[[^\[\]]*, '([^']*)'\]", expected))
    needed = " or ".join(f"{dtype}[{axes}]" for dtype, axes in shapes) or expected
    sizes = re.findall(r"^\w+=(?:\d+|\(.*\))$", message, re.MULTILINE)
    where = f", where {', '.join(sizes)}" if sizes else ""
    name = re.search(r"([A-Z]\w*\.)?\w+$", function)
    assert name is not None
    return f"{parameter} of {name[0]} is {actual}; it must be {needed}{where}.\n{message}"


def _cut(lines: list[str]) -> Iterator[str]:
    """The lines, without the inside of values that have more than a few."""
    starts = [i for i, line in enumerate(lines) if re.match(r"  '\w+':|\S", line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        if end - start <= _FEW_LINES:
            yield from lines[start:end]
        else:
            yield f"{lines[start]} {lines[start + 1].strip()}...)"
