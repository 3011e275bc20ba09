"""How annotations are checked: by beartype, where an int is a float, as in PEP 484."""

import functools
from collections.abc import Callable
from typing import Any

from beartype import beartype, BeartypeConf


_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecker(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with its arguments and its result checked. The code that checks them is
    made at the first call: to make that of all functions takes most of an import."""
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = _checked(function)
        return checked(*args, **kwargs)

    return check
