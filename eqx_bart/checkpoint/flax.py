"""Reading `flax_model.msgpack`, which HF's Flax BART wrote."""

from pathlib import Path

from .tensors import StoredTensor


def read_flax(file: Path) -> dict[str, StoredTensor]:
    raise NotImplementedError(file)


def flax_name(name: str) -> str:
    raise NotImplementedError(name)
