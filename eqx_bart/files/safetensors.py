"""Reading and writing safetensors files.

Source: the safetensors format, https://huggingface.co/docs/safetensors.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from .errors import CheckpointError
from .flax import flax_name, transposed
from .json_files import parse_json
from .tensors import StoredTensor, Tensor


_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read_safetensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors in `file`, by name.

    **Raises** `CheckpointError` if it is malformed.
    """
    try:
        # Opening it checks that the tensors fill the file and do not overlap.
        with safetensors.safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as handle:
            header_size = int.from_bytes(handle.read(8), "little")
            header = parse_json(handle.read(header_size))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
    metadata = header.pop("__metadata__", None) or {}
    start = 8 + header_size
    tensors = {name: _stored(file, start, name, entry) for name, entry in header.items()}
    return _from_flax(tensors) if metadata.get("format") == "flax" else tensors


def _from_flax(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors that HF's Flax models saved, by PyTorch's names."""
    return {
        flax_name(name.replace(".", "/")): (
            transposed(tensor) if name.endswith(".kernel") else tensor
        )
        for name, tensor in tensors.items()
    }


def _stored(file: Path, start: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{file}: {name} is stored as {entry['dtype']}, which is none of "
            f"{', '.join(_DTYPES)}."
        )
    begin, end = entry["data_offsets"]
    span = (start + begin, end - begin)
    return StoredTensor(file, (span,), _DTYPES[entry["dtype"]], tuple(entry["shape"]))


def in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors in the order in which a file has them: the widest dtypes first,
    so that all are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors` to `file`, with the metadata that HF's readers look for.

    The format's own library needs a contiguous copy of all of them at once: a second model
    in memory. This loads and copies one tensor at a time, `in_file_order`.

    **Raises** `CheckpointError` if the format does not have a tensor's dtype.
    """
    names = in_file_order(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _dtype_name(name, tensor.dtype),
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            elements = np.ascontiguousarray(tensors[name].load()).reshape(-1)
            handle.write(elements.view(np.uint8).data)
        handle.flush()
        os.fsync(handle.fileno())


def _dtype_name(name: str, dtype: np.dtype) -> str:
    for stored, known in _DTYPES.items():
        if dtype == known:
            return stored
    raise CheckpointError(f"{name} is {dtype}, which is none of {', '.join(_DTYPES)}.")
