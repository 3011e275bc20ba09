"""Where a checkpoint comes from: this machine, or the Hugging Face hub."""

from pathlib import Path


def locate(
    path: str | Path,
    *,
    weights: bool,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The directory or file at `path`, or what the hub has under that name."""
    return Path(path)
