"""What the commands share."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any


_IN_A_LINE = str.maketrans("\t\r\n", "   ")


class InputError(Exception):
    """An error in the user's input, in one line."""


def report(message: object) -> None:
    """Writes an error to standard error, in one line."""
    print(f"eqx-bart: error: {' '.join(str(message).split())}", file=sys.stderr)


def in_a_line(text: str) -> str:
    """A text without what would end its line, or its column."""
    return text.translate(_IN_A_LINE)


def json_line(values: Mapping[str, Any]) -> str:
    """An object of JSON, which has no numbers but finite ones: `null` for others."""
    return json.dumps(_finite(values), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(x) for name, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, list | tuple) else value
