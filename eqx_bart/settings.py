"""Settings: fields of a config, each declared once, with its check and its meaning."""

import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np


Config = TypeVar("Config")

_DOC_WIDTH = 88


def is_int(value: Any) -> bool:
    """Whether it is an integer. A bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether it is a finite number that a float can represent."""
    is_float = isinstance(value, float) and math.isfinite(value)
    return is_float or (is_int(value) and abs(value) < 2**53)


def as_id_tuple(ids: int | Iterable[int] | None) -> tuple[int, ...]:
    """No, one or more token ids, as a tuple."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is meant, if any."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; do you mean {close[0]!r}?" if close else ""


def plain_fields(config: Any) -> None:
    """Turns the fields of a frozen dataclass from NumPy's numbers into Python's, from lists
    into tuples, and where they are integers from 10.0 into 10."""
    for field in dataclasses.fields(config):
        value = _plain(getattr(config, field.name))
        declared = field.metadata.get(Setting)
        if declared is not None and declared.kind.is_integer and is_integral(value):
            value = int(value)
        object.__setattr__(config, field.name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value


def is_integral(value: Any) -> bool:
    """Whether it is a float that is an integer, as numbers of JSON files may be."""
    return isinstance(value, float) and value.is_integer()


def as_lists(value: Any) -> Any:
    """The value with lists in place of tuples, as in JSON."""
    return [as_lists(v) for v in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that a setting may have, which are never `None`.

    **Fields:**

    - `is_valid`: whether a value is one of them.
    - `words`: what a value must do or be; this follows "must" in a message.
    - `token_ids`: the token ids in a valid value.
    - `is_integer`: whether they are integers, so that 10.0 is 10, as in a JSON file.
    """

    is_valid: Callable[[Any], bool]
    words: str
    token_ids: Callable[[Any], Iterable[int]] = lambda _: ()
    is_integer: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is declared about a setting.

    **Fields:**

    - `group`: the heading of the settings that are documented together.
    - `kind`: the values that it may have.
    - `meaning`: what it does, in a sentence without its full stop.
    - `default`: its value if it is not set; `None` if that depends on other settings.
    - `is_used`: whether the settings are such that this one counts.
    """

    group: str
    kind: Kind
    meaning: str
    default: Any
    is_used: Callable[[Mapping[str, Any]], bool]


def setting(
    group: str,
    kind: Kind,
    meaning: str,
    *,
    default: Any = None,
    is_used: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> Any:
    """A dataclass field that is a setting; it is `None` while it is not set."""
    declared = Setting(group, kind, meaning, default, is_used)
    return dataclasses.field(default=None, metadata={Setting: declared})


@functools.cache
def settings_of(cls: Any) -> Mapping[str, Setting]:
    """The settings of a dataclass by their names, in the order of their declarations."""
    fields = dataclasses.fields(cls)
    return {f.name: f.metadata[Setting] for f in fields if Setting in f.metadata}


def check_setting(config: Any, name: str, declared: Setting, origin: str = "") -> None:
    """Checks a setting of a config; `origin` says where its value is from.

    **Raises** `ValueError` if it has a value that it may not have.
    """
    value, kind = getattr(config, name), declared.kind
    if value is not None and not kind.is_valid(value):
        raise ValueError(
            f"{type(config).__name__}: {name} must {kind.words}; it is {value!r}{origin}."
        )


def documented(cls: type[Config]) -> type[Config]:
    """Adds the settings of a dataclass to the end of its docstring."""
    blocks = [inspect.cleandoc(cls.__doc__ or "")]
    by_group = itertools.groupby(settings_of(cls).items(), lambda item: item[1].group)
    for group, members in by_group:
        blocks += [group, "\n".join(itertools.starmap(_documentation, members))]
    cls.__doc__ = "\n\n".join(blocks)
    return cls


def _documentation(name: str, declared: Setting) -> str:
    default = "" if declared.default is None else f" ({declared.default})"
    text = f"- `{name}`: {declared.meaning}.{default}"
    return textwrap.fill(
        text,
        _DOC_WIDTH,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _is_ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(is_int(i) and i >= 0 for i in value)


def _is_biases(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and _is_ids(pair[0])
        and len(pair[0]) > 0
        and isinstance(pair[1], int | float)
        and not math.isnan(pair[1])
        for pair in value
    )


FLAG = Kind(lambda v: isinstance(v, bool), "be true or false")
INTEGER = Kind(is_int, "be an integer", is_integer=True)
POSITIVE = Kind(lambda v: is_int(v) and v >= 1, "be an integer, 1 or more", is_integer=True)
COUNT = Kind(lambda v: is_int(v) and v >= 0, "be an integer, 0 or more", is_integer=True)
NUMBER = Kind(is_real, "be a number")
ABOVE_ZERO = Kind(lambda v: is_real(v) and v > 0, "be a number above 0")
FRACTION = Kind(lambda v: is_real(v) and 0 <= v <= 1, "lie in [0, 1]")
POSITIVE_FRACTION = Kind(lambda v: is_real(v) and 0 < v <= 1, "lie in (0, 1]")
CUTOFF = Kind(lambda v: is_real(v) and 0 <= v < 1, "lie in [0, 1)")
TOKEN_ID = Kind(
    lambda v: is_int(v) and v >= 0,
    "be a token id, an integer, 0 or more",
    as_id_tuple,
)
TOKEN_ID_OR_IDS = Kind(
    lambda v: _is_ids((v,)) or _is_ids(v),
    "be a token id, an integer, or several",
    as_id_tuple,
)
TOKEN_IDS = Kind(_is_ids, "be a list of token ids", as_id_tuple)
SEQUENCES = Kind(
    lambda v: isinstance(v, tuple) and all(_is_ids(ids) and ids for ids in v),
    "be a list of lists of token ids",
    itertools.chain.from_iterable,
)
BIASES = Kind(
    _is_biases,
    "be pairs of a list of token ids and a number",
    lambda v: (i for sequence, _ in v for i in sequence),
)
