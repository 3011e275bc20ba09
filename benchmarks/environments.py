"""Virtual environments, which stay for the next time."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


#: For HF's Flax BART, which transformers 5 dropped.
FLAX_PACKAGES = (
    "transformers==4.57.6",
    "flax==0.12.8",
    "jax==0.10.2",
    "jaxlib==0.10.2",
    "numpy==2.4.6",
)


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
