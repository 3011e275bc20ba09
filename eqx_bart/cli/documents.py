"""Answers to many inputs in a file, begun by one run and finished by another.

The inputs are answered a window at a time. In a window batches are made by length; the
answers of each are appended to the progress file, which lies beside the output, and when
the window is done they are appended to the output, in the order of the inputs. The first
line of the progress file says which window is being answered and how long the output was
before it. It is replaced, together with the batches after it, when the next window begins.
So whenever a run is killed, what the output has after that length is in the batches too.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..files.json_files import write_at_once
from ..files.writing import sync
from .common import InputError
from .inputs import Input


@dataclasses.dataclass(frozen=True)
class Window:
    """Inputs that are answered together.

    `start` is the size of all inputs before them, `digest` that of all inputs up to the
    last of them.
    """

    index: int
    inputs: list[Input]
    start: int
    digest: str


def windows(inputs: Iterable[Input]) -> Iterator[Window]:
    """The windows of inputs, each read when it is wanted."""
    digest, start = hashlib.sha256(), 0
    for index, group in itertools.groupby(inputs, lambda source: source.window):
        window = list(group)
        for source in window:
            digest.update(b"%d %d " % (source.number, len(source.raw)) + source.raw)
        yield Window(index, window, start, digest.hexdigest())
        start += sum(source.size for source in window)


@dataclasses.dataclass(frozen=True)
class State:
    """How far an output has come.

    **Fields:**

    - `asked`: the options that decide what it says.
    - `seed`: what sampling starts from, whether or not it was asked for.
    - `window`: the index of the window that is being answered, or was the last.
    - `digest`: of all inputs up to the end of that window.
    - `size`: the length in bytes of the output before that window, or of the whole.
    - `num_wrong`: how many inputs before that window, or in all, could not be read.
    - `is_finished`: whether this is all.
    """

    asked: dict[str, Any]
    seed: int
    window: int = -1
    digest: str = ""
    size: int = 0
    num_wrong: int = 0
    is_finished: bool = False


class Output:
    """The output of a run, and the progress file beside it; see `open_output`.

    `answered` has what is known of the window that is being answered: the lines of each of
    its inputs, by number.
    """

    def __init__(self, path: Path, state: State, answered: dict[int, str]):
        self._path, self.state, self.answered = path, state, answered

    def unfinished(self, inputs: Iterable[Input]) -> Iterator[Window]:
        """The windows that are not finished, from the one that was being answered on.

        **Raises** `InputError` if the inputs before are not those of the last run.
        """
        begun = self.state
        is_same = begun.window < 0
        for window in windows(inputs):
            if window.index == begun.window:
                is_same = window.digest == begun.digest
            if window.index > begun.window and begun.is_finished:
                is_same = False
            if window.index >= begun.window:
                self._check_input(is_same=is_same)
                if not begun.is_finished:
                    yield window
        self._check_input(is_same=is_same)

    def _check_input(self, *, is_same: bool) -> None:
        if not is_same:
            raise InputError(
                f"{self._path} was begun with another input, or this one has changed: give "
                "that one, or another --output"
            )

    def begin(self, window: Window) -> None:
        """Notes that this window is being answered, unless it was already."""
        if window.index != self.state.window:
            self._note(window=window.index, digest=window.digest)
            self.answered = {}

    def record(self, lines: dict[int, str]) -> None:
        """Keeps the lines of a batch, by the numbers of its inputs."""
        append(_beside(self._path), _json_line(list(lines.items())))
        self.answered |= lines

    def end(self, window: Window, wrong: dict[int, str]) -> None:
        """Writes the lines of a window, whose inputs are answered or `wrong`."""
        lines = self.answered | wrong
        append(self._path, "".join(lines[x.number] for x in window.inputs).encode())
        num_wrong = self.state.num_wrong + len(wrong)
        self.state = dataclasses.replace(self.state, num_wrong=num_wrong)

    def finish(self) -> None:
        """Notes that there are no more windows."""
        self._note(is_finished=True)

    def _note(self, **changes: Any) -> None:
        size = self._path.stat().st_size
        self.state = dataclasses.replace(self.state, size=size, **changes)
        write_at_once(_beside(self._path), _json_line(dataclasses.asdict(self.state)))
        sync(self._path.parent)


@contextlib.contextmanager
def open_output(
    path: Path, asked: dict[str, Any], seed: int
) -> Generator[Output, None, None]:
    """A new output, or one that an earlier run has begun with the same options, without
    what it had not noted. While it is open, no other run on this machine can open it.

    **Raises** `InputError` if it was begun with other options, if another run has it open,
    or if it was not begun by this command.
    """
    with path.open("ab") as file:
        _lock(file, path)
        state, answered = State(asked, seed), {}
        if _beside(path).exists():
            state, answered = _read_state(_beside(path))
            _check_options(path, state.asked, asked)
        is_all = state.is_finished or not _beside(path).exists()
        size = path.stat().st_size
        if size < state.size or (size > state.size and is_all):
            raise InputError(
                f"{path} is not what {_beside(path)} says of it: give another --output, "
                "or remove both to begin anew"
            )
        file.truncate(state.size)
        yield Output(path, state, answered)


def append(path: Path, data: bytes) -> None:
    """Appends to a file, on the disk."""
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".progress")


def _json_line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _lock(file: BinaryIO, path: Path) -> None:
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing {path}: wait for it, or give another --output"
            ) from None


def _read_state(file: Path) -> tuple[State, dict[int, str]]:
    """The state, and the lines of all batches up to one that was not written whole,
    which goes."""
    with file.open("r+b") as stream:
        try:
            state = State(**json.loads(stream.readline()))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{file} is not the progress of an output: remove both to begin anew"
            ) from error
        answered: dict[int, str] = {}
        end = stream.tell()
        with contextlib.suppress(ValueError):
            while (line := stream.readline()).endswith(b"\n"):
                answered |= dict(json.loads(line))
                end += len(line)
        stream.truncate(end)
    return state, answered


def _check_options(path: Path, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    for name, value in asked.items():
        if begun.get(name) != value:
            raise InputError(
                f"{path} was begun with {name} {json.dumps(begun.get(name))}, not with "
                f"{json.dumps(value)}: give the same, or another --output"
            )
