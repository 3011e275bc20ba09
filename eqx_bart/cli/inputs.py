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
from typing import Any, BinaryIO

from .common import InputError


#: How many lines are sorted by length, and given to a process, together. What is drawn at
#: random depends on it.
WINDOW = 2048


@dataclasses.dataclass(frozen=True)
class Input:
    """A word of the command line, or a line that was read.

    **Fields:**

    - `name`: what reports call it.
    - `size`: its share of the total of `open_inputs`.
    - `names`: what its texts are called, one or more.
    - `fields`: where the texts are, if it is a JSON object.
    - `separator`: what is between them, if it is not.
    """

    name: str
    number: int
    size: int
    raw: bytes
    names: Sequence[str]
    fields: Sequence[str] | None = None
    separator: str = "\t"

    @property
    def window(self) -> int:
        """Which `WINDOW` lines it is one of."""
        return (self.number - 1) // WINDOW

    @property
    def text(self) -> str:
        """Its only text; raises as `texts` does."""
        (text,) = self.texts
        return text

    @property
    def texts(self) -> tuple[str, ...]:
        """Raises `InputError` if they are not there."""
        texts = self._parts()
        if len(texts) != len(self.names):
            raise InputError(
                f"has {len(texts) - 1} tabulators: it must be a {self.names[0]}, a "
                f"tabulator and a {self.names[1]}; or a JSON object, with --fields"
            )
        for name, text in zip(self.names, texts, strict=True):
            if not text.strip():
                raise InputError("is empty" if len(texts) == 1 else f"has an empty {name}")
        return texts

    def _parts(self) -> tuple[str, ...]:
        text = self._decoded()
        if self.fields is not None:
            values = _object(text)
            option = "--field" if len(self.fields) == 1 else "--fields"
            return tuple([_field(values, name, option) for name in self.fields])
        return (text,) if len(self.names) == 1 else tuple(text.split(self.separator))

    def _decoded(self) -> str:
        try:
            return self.raw.decode()
        except UnicodeDecodeError as error:
            byte, place = self.raw[error.start], error.start + 1
            raise InputError(f"is not UTF-8: byte {place} of it is 0x{byte:02x}") from None


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"is not a JSON object, but a {type(values).__name__}")
    return values


def _field(values: dict[str, Any], name: str, option: str) -> str:
    if name not in values:
        names = ", ".join(map(repr, values)) or "none"
        raise InputError(
            f"has no field {name!r}: name one of its fields, {names}, by {option}"
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
    words: Sequence[str],
    file: str | None,
    names: Sequence[str],
    fields: Sequence[str] | None,
) -> Generator[tuple[Iterable[Input], int | None]]:
    """The words; or else the lines of a file, or of standard input, that are not blank.
    Lines are read when they are wanted. An input has a text for each of `names`: so many
    words, or a line with tabulators between them, or, if there are `fields`, a JSON object
    that has them there.

    **Returns** them and the total of their sizes, `None` if nothing tells it.

    **Raises** `InputError` if there is nothing to read, or if it is not clear what.
    """
    if words:
        if file is not None:
            raise InputError(f"there are words and --input {file}: give one of them")
        if fields is not None:
            raise InputError(f"words have no field {fields[0]!r}: give --input or a pipe")
        found = _words(words, names)
        yield found, len(found)
    elif file not in (None, "-"):
        with Path(file).open("rb") as stream:
            yield _lines(stream, names, fields), _size(stream)
    elif sys.stdin.isatty():
        raise InputError("there is nothing to read: give words, --input or a pipe")
    else:
        yield _lines(sys.stdin.buffer, names, fields), _size(sys.stdin.buffer)


def _words(words: Sequence[str], names: Sequence[str]) -> list[Input]:
    count = len(names)
    if len(words) % count:
        raise InputError(
            f"the number of words is {len(words)}, and each input is {count} of them: "
            f"{' and '.join(names)}"
        )
    found = list[Input]()
    for number, first in enumerate(range(0, len(words), count), 1):
        # No word has the separator in it, as no argument of a process has.
        raw = b"\0".join(os.fsencode(word) for word in words[first : first + count])
        found.append(Input(f"input {number}", number, 1, raw, names, separator="\0"))
    return found


def _lines(
    stream: BinaryIO, names: Sequence[str], fields: Sequence[str] | None
) -> Iterator[Input]:
    for number, line in enumerate(stream, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip():
            raw = text.rstrip(b"\r\n")
            yield Input(f"line {number}", number, len(line), raw, names, fields)


def _size(stream: BinaryIO) -> int | None:
    """The size in bytes of what is read; `None` for a pipe."""
    status = os.fstat(stream.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
