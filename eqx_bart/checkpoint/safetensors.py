"""Reading and writing safetensors files.

Source: the safetensors format, https://huggingface.co/docs/safetensors.
"""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from .errors import CheckpointError
from .json_files import parse_json
from .tensors import StoredTensor


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
    header.pop("__metadata__", None)
    start = 8 + header_size
    return {name: _stored(file, start, name, entry) for name, entry in header.items()}


def _stored(file: Path, start: int, name: str, entry: Mapping) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{file}: {name} is stored as {entry['dtype']}, which is none of "
            f"{', '.join(_DTYPES)}."
        )
    begin, end = entry["data_offsets"]
    span = (start + begin, end - begin)
    return StoredTensor(file, (span,), _DTYPES[entry["dtype"]], tuple(entry["shape"]))


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `tensors` to `file`, with the metadata that HF's readers look for."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(contiguous, file, {"format": "pt"})
