"""How far a command has come, on a terminal."""

import functools
import sys
from collections.abc import Callable, Collection

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from .inputs import Input


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


class Rate(ProgressColumn):
    """How many inputs are answered in a second."""

    def render(self, task: Task) -> Text:
        rate = task.fields["num_done"] / task.elapsed if task.elapsed else 0
        return Text(f"{rate:.3g} inputs/s", style="progress.data.speed")


class Bar:
    """A bar over inputs, as long as the share of their total size that is done."""

    def __init__(self, progress: Progress, total: int | None, what: str):
        """`progress` has a `Rate`; `what` is being done."""
        self._progress, self._num_done = progress, 0
        self._task = progress.add_task(what, total=total, num_done=0)
        self.write_line = line_writer(progress)

    def advance(self, sources: Collection[Input]) -> None:
        """Shows that these inputs are done."""
        self._num_done += len(sources)
        size = sum(source.size for source in sources)
        self._progress.update(self._task, advance=size, num_done=self._num_done)

    def start_from(self, size: int) -> None:
        """Starts anew, after inputs that take no time."""
        self._num_done = 0
        self._progress.reset(self._task, completed=size, num_done=0)
