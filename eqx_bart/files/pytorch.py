"""Reading `pytorch_model.bin`, which PyTorch pickled, without PyTorch and `pickle`.

Source: `torch.save`. Since PyTorch 1.6 it writes a zip file; before that, it wrote pickles
followed by the bytes of all storages.
"""

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import ml_dtypes
import numpy as np

from .errors import CheckpointError
from .pickles import unpickle
from .tensors import StoredTensor


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

# The limit on what describes the tensors: ten times as much as the largest BART has.
_MAX_BYTES = 2**20

# Where training frameworks put a model's tensors: Lightning, many loops of people's own,
# fairseq, DeepSpeed.
_WEIGHTS_OF_A_RUN = ("state_dict", "model_state_dict", "model", "module")

_MAX_DIMS, _MAX_SIZE = 64, 2**48  # within NumPy's limits

# What a malformed file may raise here, in zipfile, or where the pickle calls a function.
_MALFORMED = (
    ValueError,
    TypeError,
    OSError,
    NotImplementedError,
    zipfile.BadZipFile,
)


def read_pytorch(file: Path) -> dict[str, StoredTensor]:
    """The tensors in `file`, by name.

    What a training framework keeps of a run will do, if a dict in it has the tensors.

    **Raises** `CheckpointError` if it is malformed, does not hold a dict of tensors, or its
    pickle calls for more than such a dict needs.
    """
    try:
        with _Reader(file.open("rb", buffering=0)) as reader:
            return _read(file, reader)
    except _MALFORMED as error:
        raise CheckpointError(
            f"{file} cannot be read as a PyTorch checkpoint: {error}"
        ) from error


class _Reader(io.BufferedReader):
    """A file that refuses to read absurdly much at once, which `zipfile` may ask for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes describe the tensors")
        return super().read(size)


def _read(file: Path, reader: _Reader) -> dict[str, StoredTensor]:
    start = reader.read(262)
    reader.seek(0)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer; `git lfs pull` gets the file itself")
    if start.endswith(b"ustar"):
        raise ValueError("it is a tar file of PyTorch 0.1; save it again with a later one")
    is_zip = start.startswith(b"PK\3\4")
    state, offsets = _read_zip(reader) if is_zip else _read_legacy(reader)
    if not isinstance(state, dict):
        raise ValueError(f"it holds no dict of tensors, but a {type(state).__name__}")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _weights(state).items():
        if not isinstance(name, str):
            raise ValueError(f"{name}: it is no name, but an integer")
        try:
            tensors[name] = _stored(file, tensor, offsets)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return tensors


def _weights(state: dict[Any, Any]) -> dict[Any, Any]:
    """The dict of a model's tensors: `state` itself or, if that is what a training
    framework keeps of a run, the one in it."""
    inside = (state.get(name) for name in _WEIGHTS_OF_A_RUN)
    return next((x for x in inside if isinstance(x, dict)), state)


def _stored(file: Path, tensor: Any, offsets: dict[str, int]) -> StoredTensor:
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"it is no tensor, but of type {type(tensor).__name__}")
    storage, shape = tensor.storage, tensor.shape
    if storage.key not in offsets:
        raise ValueError(f"there is no storage {storage.key!r}")
    if 0 in shape:
        return StoredTensor(file, (), storage.dtype, shape)
    # The stride of a dimension of one element has no meaning, and may be anything.
    steps = [(n - 1, s if n > 1 else 0) for n, s in zip(shape, tensor.strides, strict=True)]
    extent = 1 + sum(count * stride for count, stride in steps)
    if tensor.first + extent > storage.length:
        raise ValueError(
            f"it has {extent} elements from the one at {tensor.first} on, of a storage of "
            f"{storage.length}"
        )
    itemsize = storage.dtype.itemsize
    span = (offsets[storage.key] + tensor.first * itemsize, extent * itemsize)
    strides = tuple(stride for _, stride in steps)
    return StoredTensor(file, (span,), storage.dtype, shape, strides)


# --- The formats: what is pickled, and at which offset each storage begins.


def _read_zip(reader: _Reader) -> tuple[Any, dict[str, int]]:
    with zipfile.ZipFile(reader) as archive:
        entries = archive.infolist()
    root = entries[0].filename.split("/")[0] if entries else ""
    places = {entry.filename: _place(reader, entry) for entry in entries}

    def find(name: str) -> tuple[int, int]:
        if f"{root}/{name}" not in places:
            raise ValueError(f"it has no {root}/{name}")
        return places[f"{root}/{name}"]

    def read(name: str) -> bytes:
        offset, size = find(name)
        reader.seek(offset)
        return reader.read(size)

    if f"{root}/byteorder" in places and read("byteorder") != b"little":
        raise ValueError("it is not little-endian")
    if f"{root}/.data/serialization_id" in places:
        read(".data/serialization_id").decode()  # PyTorch refuses what is not UTF-8
    state, storages = _unpickle(io.BytesIO(read("data.pkl")))
    offsets: dict[str, int] = {}
    for key, storage in storages.items():
        offsets[key], size = find(f"data/{key}")
        _check_size(storage, size)
    return state, offsets


def _place(reader: _Reader, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """The offset and the size of an entry's contents, in bytes."""
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    if not is_stored or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} is compressed, which torch.save never does")
    reader.seek(entry.header_offset)
    header = reader.read(30)
    if len(header) < 30 or not header.startswith(b"PK\3\4"):
        raise ValueError(f"{entry.filename} is not where the table of contents says")
    offset = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if offset + entry.file_size > reader.seek(0, io.SEEK_END):
        raise ValueError(f"it ends before {entry.filename} does")
    return offset, entry.file_size


def _read_legacy(reader: _Reader) -> tuple[Any, dict[str, int]]:
    stream = io.BytesIO(reader.read(_MAX_BYTES))
    magic, protocol, system = (_unpickle(stream)[0] for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL or not isinstance(system, dict):
        raise ValueError("it does not begin as torch.save does")
    if system.get("little_endian") is not True:
        raise ValueError("it is not little-endian")
    state, storages = _unpickle(stream)
    keys, _ = _unpickle(stream)
    offset, end = stream.tell(), reader.seek(0, io.SEEK_END)
    offsets: dict[str, int] = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise ValueError("it lists a storage that no tensor has")
        reader.seek(offset)
        length = int.from_bytes(reader.read(8), "little")
        _check_size(storages[key], length * storages[key].dtype.itemsize)
        offsets[key] = offset + 8
        offset += 8 + storages[key].nbytes
        if offset > end:
            raise ValueError("it ends before its storages do")
    return state, offsets


def _check_size(storage: "_Storage", size: int) -> None:
    if size != storage.nbytes:
        raise ValueError(
            f"the storage {storage.key!r} has {size} bytes, and {storage.nbytes} by the "
            "pickle"
        )


# --- What a pickle may call for.


class _Storage(NamedTuple):
    """A storage, or a view of it from the element `first` on."""

    key: str
    dtype: np.dtype
    length: int
    first: int

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize


class _Tensor(NamedTuple):
    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """What is pickled, and the storages that it refers to, by key."""
    storages: dict[str, _Storage] = {}

    @no_type_check
    def persistent(identity: Any) -> _Storage:
        storage = _storage(*identity)
        whole = storage._replace(first=0)
        if storages.setdefault(storage.key, whole) != whole:
            raise ValueError(f"the pickle has two descriptions of storage {storage.key!r}")
        return storage

    return unpickle(stream, _NAMES, persistent), storages


@no_type_check
def _storage(
    kind: Any, dtype: Any, key: Any, _location: Any, length: Any, view: Any = None
) -> _Storage:
    is_one = kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str)
    _, first, _ = (None, 0, None) if view is None else view
    if not is_one or not _are_sizes((length, first)):
        raise ValueError("the pickle describes a storage as torch.save never does")
    return _Storage(key, dtype, length, first)


@no_type_check
def _tensor(
    storage: Any,
    first: Any,
    shape: Any,
    strides: Any,
    _requires_grad: Any,
    _hooks: Any,
    metadata: Any = None,
) -> _Tensor:
    if metadata:
        raise ValueError("the pickle has a tensor that is yet to be conjugated or negated")
    if (
        not isinstance(storage, _Storage)
        or not (_are_sizes((first,)) and _are_sizes(shape) and _are_sizes(strides))
        or len(shape) != len(strides)
        or math.prod(length or 1 for length in shape) > _MAX_SIZE
    ):
        raise ValueError("the pickle describes a tensor as torch.save never does")
    return _Tensor(storage, storage.first + first, shape, strides)


@no_type_check
def _are_sizes(values: Any) -> bool:
    return (
        type(values) is tuple
        and len(values) <= _MAX_DIMS
        and all(type(value) is int and value >= 0 for value in values)
    )


_NAMES = {
    "collections.OrderedDict": lambda: {},  # noqa: PIE807 - `dict` would hash what it is given
    "torch._utils._rebuild_tensor": (
        lambda storage, first, shape, strides: _tensor(
            storage, first, shape, strides, None, None
        )
    ),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, _requires_grad, _hooks: tensor,
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
