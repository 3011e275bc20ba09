"""The inputs of a command: words, or the lines of a file or a pipe."""

import codecs
import contextlib
import dataclasses
import json
import os
import stat
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .common import InputError


#: How many lines are sorted by length, and given to a process, together. What is drawn at
#: random depends on it.
WINDOW = 2048


@dataclasses.dataclass(frozen=True)
class Input:
    """A word of the command line, or a line that was read.

    `name` is what reports call it, `size` its share of the total of `open_inputs`; `field`
    is where its text is if it is a JSON object.
    """

    name: str
    number: int
    size: int
    raw: bytes
    field: str | None = None

    @property
    def window(self) -> int:
        """Which `WINDOW` lines it is one of."""
        return (self.number - 1) // WINDOW

    @property
    def text(self) -> str:
        """Raises `InputError` if there is none."""
        text = self._decoded()
        if self.field is not None:
            text = _field(text, self.field)
        if not text.strip():
            raise InputError("is empty")
        return text

    def _decoded(self) -> str:
        try:
            return self.raw.decode()
        except UnicodeDecodeError as error:
            byte, place = self.raw[error.start], error.start + 1
            raise InputError(f"is not UTF-8: byte {place} of it is 0x{byte:02x}") from None


def _field(text: str, name: str) -> str:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"is not a JSON object, but a {type(values).__name__}")
    if name not in values:
        names = ", ".join(map(repr, values)) or "none"
        raise InputError(
            f"has no field {name!r}: name one of its fields, {names}, by --field"
        )
    value = values[name]
    if not isinstance(value, str):
        raise InputError(f"has no text in its field {name!r}, but {json.dumps(value):.50}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise InputError(f"is not Unicode: it has the lone surrogate {code:#06x}") from None
    return value


@contextlib.contextmanager
def open_inputs(
    words: Sequence[str], file: str | None, field: str | None
) -> Generator[tuple[Iterable[Input], int | None]]:
    """The words; or else the lines of a file, or of standard input, that are not blank.
    Lines are read when they are wanted. They are JSON objects if there is a `field`,
    in which their text is.

    **Returns** them and the total of their sizes, `None` if nothing tells it.

    **Raises** `InputError` if there is nothing to read, or if it is not clear what.
    """
    if words:
        if file is not None:
            raise InputError(f"there are words and --input {file}: give one of them")
        if field is not None:
            raise InputError(f"words have no field {field!r}: give --input or a pipe")
        yield _words(words), len(words)
    elif file not in (None, "-"):
        with Path(file).open("rb") as stream:
            yield _lines(stream, field), _size(stream)
    elif sys.stdin.isatty():
        raise InputError("there is nothing to read: give words, --input or a pipe")
    else:
        yield _lines(sys.stdin.buffer, field), _size(sys.stdin.buffer)


def _words(words: Sequence[str]) -> list[Input]:
    return [Input(f"input {i}", i, 1, os.fsencode(w)) for i, w in enumerate(words, 1)]


def _lines(stream: BinaryIO, field: str | None) -> Iterator[Input]:
    for number, line in enumerate(stream, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip():
            raw = text.rstrip(b"\r\n")
            yield Input(f"line {number}", number, len(line), raw, field)


def _size(stream: BinaryIO) -> int | None:
    """The size in bytes of what is read; `None` for a pipe."""
    status = os.fstat(stream.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
