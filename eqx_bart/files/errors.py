"""What goes wrong with checkpoints, and how to say it briefly."""

from collections.abc import Iterable, Sequence


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model. The message says why."""


# This many names are enough to recognise what they are the names of.
_MANY = 10


def some(lines: Sequence[str]) -> list[str]:
    """Not all of the lines if there are many, and then how many more there are."""
    if len(lines) <= _MANY:
        return list(lines)
    return [*lines[: _MANY - 1], f"and {len(lines) - _MANY + 1} more"]


def listed(names: Iterable[str]) -> str:
    """The names, one after the other; not all if there are many."""
    return ", ".join(some(list(names)))
