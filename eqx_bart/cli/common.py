"""What the commands share."""

import functools
import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class InputError(Exception):
    """An error in the user's input, in one line."""


def report(message: object) -> None:
    """Writes an error to standard error, in one line."""
    print(f"eqx-bart: error: {' '.join(str(message).split())}", file=sys.stderr)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A progress bar on standard error, if that is a terminal; with columns after its
    own."""
    return Progress(
        *Progress.get_default_columns(),
        *columns,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        redirect_stdout=False,  # it would break lines; see `line_writer`
        transient=True,
    )


def line_writer(progress: Progress) -> Callable[[str], None]:
    """What writes a line to standard output: above the bar, where both are on a
    terminal."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        return functools.partial(progress.console.out, highlight=False)
    return functools.partial(print, flush=True)
