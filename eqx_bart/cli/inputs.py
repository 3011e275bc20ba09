"""The inputs of a command: words, or the lines of a file or a pipe."""

import codecs
import contextlib
import dataclasses
import os
import stat
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .common import InputError


@dataclasses.dataclass(frozen=True)
class Input:
    """A word of the command line, or a line that was read.

    `name` is what reports call it, `size` its share of the total of `open_inputs`.
    """

    name: str
    number: int
    size: int
    raw: bytes

    @property
    def text(self) -> str:
        """Raises `InputError` if there is none."""
        try:
            text = self.raw.decode()
        except UnicodeDecodeError as error:
            byte, place = self.raw[error.start], error.start + 1
            raise InputError(f"is not UTF-8: byte {place} of it is 0x{byte:02x}") from None
        if not text.strip():
            raise InputError("is empty")
        return text


@contextlib.contextmanager
def open_inputs(
    words: Sequence[str], file: str | None
) -> Generator[tuple[Iterable[Input], int | None]]:
    """The words; or else the lines of a file, or of standard input, that are not blank.
    Lines are read when they are wanted.

    **Returns** them and the total of their sizes, `None` if nothing tells it.

    **Raises** `InputError` if there is nothing to read, or if it is not clear what.
    """
    if words:
        if file is not None:
            raise InputError(f"there are words and --input {file}: give one of them")
        yield _words(words), len(words)
    elif file not in (None, "-"):
        with Path(file).open("rb") as stream:
            yield _lines(stream), _size(stream)
    elif sys.stdin.isatty():
        raise InputError("there is nothing to read: give words, --input or a pipe")
    else:
        yield _lines(sys.stdin.buffer), _size(sys.stdin.buffer)


def _words(words: Sequence[str]) -> list[Input]:
    return [Input(f"input {i}", i, 1, os.fsencode(w)) for i, w in enumerate(words, 1)]


def _lines(stream: BinaryIO) -> Iterator[Input]:
    for number, line in enumerate(stream, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip():
            yield Input(f"line {number}", number, len(line), text.rstrip(b"\r\n"))


def _size(stream: BinaryIO) -> int | None:
    """The size in bytes of what is read; `None` for a pipe."""
    status = os.fstat(stream.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
