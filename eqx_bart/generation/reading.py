"""Inputs without an end: read ahead to be sorted, and answered in their order."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar


InputT = TypeVar("InputT")
AnswerT = TypeVar("AnswerT")

#: How many batches of inputs are read ahead, to be sorted by their lengths.
BATCHES_AHEAD = 32


def read(inputs: Iterator[InputT], most: int) -> tuple[list[InputT], Exception | None]:
    """The next inputs, and what was raised after them."""
    found = list[InputT]()
    try:
        found.extend(itertools.islice(inputs, most))
    except Exception as error:  # noqa: BLE001 - it is raised later
        return found, error
    return found, None


def sorted_ahead(
    inputs: Iterator[InputT], batch_size: int, key: Callable[[InputT], Any]
) -> Iterator[list[InputT]]:
    """The inputs, some batches at a time, each time sorted by `key`. What reading raises is
    raised after those that came before."""
    while True:
        ahead, error = read(inputs, BATCHES_AHEAD * batch_size)
        if ahead:
            yield sorted(ahead, key=key)
        if error is not None:
            raise error
        if not ahead:
            return


def ordered(answers: Iterable[tuple[int, AnswerT]]) -> Iterator[tuple[int, AnswerT]]:
    """The answers in the order of their numbers, which count from 0."""
    waiting = dict[int, AnswerT]()
    due = 0
    for number, answer in answers:
        waiting[number] = answer
        while due in waiting:
            yield due, waiting.pop(due)
            due += 1


def with_bar(
    answers: Iterable[AnswerT], num_inputs: int | None, what: str
) -> Iterator[AnswerT]:
    """The answers, with a progress bar on the terminal that says what is being done."""
    from rich.progress import track

    return iter(track(answers, what, num_inputs))
