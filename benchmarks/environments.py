"""Virtual environments, which stay for the next time."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def environment(place: Path, python: str, *requirements: Sequence[str]) -> str:
    """The interpreter of the environment in `place`; it is made by `python`, unless it is
    there as a whole, and `requirements` are installed, one group after the other."""
    inside, complete = place / "bin" / "python", place / "is_complete"
    if not complete.exists():
        shutil.rmtree(place, ignore_errors=True)
        install = [str(inside), "-m", "pip", "install", "--quiet"]
        commands = [[*install, *group] for group in requirements]
        for command in ([python, "-m", "venv", str(place)], *commands):
            subprocess.run(command, check=True)  # noqa: S603, the command is our own
        complete.touch()
    return str(inside)
