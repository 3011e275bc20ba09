"""The JSON files of a checkpoint: configs, and indices of shards."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError


# The largest known files, of thousands of tensors, are less than a tenth of this.
_MAX_BYTES = 16 * 2**20


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Reads the JSON object at `path`, or at `path / name` if `path` is a directory.

    **Raises** `FileNotFoundError` if there is no such file, and `CheckpointError` if it is
    not a JSON object, names a key twice, or is absurdly large.
    """
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {name} at {path}: give a checkpoint directory or the file."
        )
    if file.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{file} is larger than {_MAX_BYTES} bytes, for a {name}.")
    try:
        values = parse_json(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds a {type(values).__name__}, not a JSON object.")
    return values


def parse_json(text: bytes) -> Any:
    """The value of JSON in UTF-8.

    **Raises** `ValueError` if it is malformed or an object has a key twice, or
    `RecursionError` if it is nested too deeply.
    """
    return json.loads(text.decode(), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return values


def write_json(directory: Path, name: str, values: Mapping[str, Any]) -> None:
    """Writes `values` to `directory / name`, in one step; makes `directory` if needed."""
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    write_at_once(directory / name, text.encode())


def write_at_once(path: Path, data: bytes) -> None:
    """Writes a file, in one step: whoever reads `path` sees the old one or the new one."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
