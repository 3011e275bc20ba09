"""Reading and writing `model.safetensors`, whole or in shards.

Source: the safetensors format, and HF's `model.safetensors.index.json`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from ..config import read_json
from .errors import CheckpointError


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that `load` reads from its file."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of the checkpoint in `directory`, by name.

    **Raises** `CheckpointError` if there is none, or if its files do not fit together.
    """
    if (directory / WEIGHTS).is_file():
        return _read_file(directory / WEIGHTS)
    if (directory / INDEX).is_file():
        return _read_shards(directory)
    raise CheckpointError(f"{directory} holds neither {WEIGHTS} nor {INDEX}.")


def _read_shards(directory: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(directory, INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{directory / INDEX} has no weight_map.")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if shard != Path(shard).name or not (directory / shard).is_file():
            raise CheckpointError(
                f"{directory / INDEX} names the shard {shard!r}, which is not beside it."
            )
        in_shard = _read_file(directory / shard)
        listed = {name for name, file in weight_map.items() if file == shard}
        if listed != in_shard.keys():
            raise CheckpointError(
                f"{directory / shard} and {INDEX} disagree about "
                f"{', '.join(sorted(listed ^ in_shard.keys()))}."
            )
        tensors |= in_shard
    return tensors


def _read_file(file: Path) -> dict[str, StoredTensor]:
    try:
        handle = safetensors.safe_open(file, framework="numpy")
        return {
            name: StoredTensor(
                tuple(handle.get_slice(name).get_shape()),
                lambda name=name: handle.get_tensor(name),
            )
            for name in handle.keys()  # noqa: SIM118, it cannot be iterated itself
        }
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error


def write_tensors(directory: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `tensors` as the checkpoint in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(contiguous, directory / WEIGHTS, {"format": "pt"})
