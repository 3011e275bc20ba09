"""What the commands share."""

import sys

from rich.console import Console
from rich.progress import Progress


class InputError(Exception):
    """An error in the user's input, in one line."""


def progress_bar(*, is_long: bool) -> Progress:
    """A progress bar on standard error, if that is a terminal and there is much to do."""
    console = Console(stderr=True)
    return Progress(
        console=console,
        disable=not (is_long and console.is_terminal),
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
    )
