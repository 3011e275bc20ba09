"""Reading `flax_model.msgpack`, which HF's Flax BART wrote.

The file is a map of maps of arrays, in msgpack. An array is an extension, which holds its
shape, the name of its dtype and its elements. An array that is too long for that is a map
with its shape and its chunks.

Sources: the specification of msgpack, https://github.com/msgpack/msgpack; Flax's
`flax/serialization.py`, https://github.com/google/flax.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, no_type_check

import ml_dtypes
import numpy as np

from .errors import CheckpointError
from .tensors import StoredTensor


_DTYPES = {
    str(dtype): dtype
    for dtype in map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))
}
_ARRAY = 1  # the type of the extension
_CHUNKED = "__msgpack_chunked_array__"

# No BART reaches these limits on the memory and the stack that a hostile file can take.
_MAX_ENTRIES = 2**13
_MAX_DEPTH = 10

# The kinds of values, by first byte, and how many bytes their length, or value, takes.
_KINDS = {
    first + i: (kind, width)
    for kind, first, widths in (
        ("true", 0xC3, [0]),
        ("bytes", 0xC4, [1, 2, 4]),
        ("an extension", 0xC7, [1, 2, 4]),
        ("an integer", 0xCC, [1, 2, 4, 8]),
        ("a map", 0xDE, [2, 4]),
    )
    for i, width in enumerate(widths)
}


def read_flax(file: Path) -> dict[str, StoredTensor]:
    """The tensors in `file`, by PyTorch's names and with PyTorch's shapes.

    **Raises** `CheckpointError` if it is malformed.
    """
    with file.open("rb") as handle:
        reader = _Reader(file, handle)
        try:
            return reader.read()
        except CheckpointError as error:
            place = f"at {'/'.join(reader.path)}, " if reader.path else ""
            raise CheckpointError(
                f"{file} is not a Flax checkpoint: {place}{error}."
            ) from error


def flax_name(name: str) -> str:
    """PyTorch's name of a tensor, from its name in Flax or in the index of shards."""
    *path, leaf = name.split("/")
    is_weight = leaf in ("embedding", "kernel", "scale")
    return ".".join([*path, "weight" if is_weight else leaf])


@no_type_check  # at run time, when it would take most of the time
class _Reader:
    """Reads a file, except the elements of its arrays. `path` has the current keys."""

    def __init__(self, file: Path, handle: BinaryIO):
        self.path: list[str] = []
        self._file = file
        self._handle = handle
        self._size = file.stat().st_size
        self._num_entries = 0

    def read(self) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for path, tensor in self._arrays(self._expect("a map")):
            name = flax_name("/".join(path))
            if name in tensors:
                raise CheckpointError(f"there is a second {name}")
            tensors[name] = transposed(tensor) if path[-1:] == ["kernel"] else tensor
        if self._handle.tell() != self._size:
            raise CheckpointError("there is more after the arrays")
        return tensors

    def _arrays(self, count: int) -> Iterator[tuple[list[str], StoredTensor]]:
        """The arrays of a map, with their paths."""
        keys = self._keys(count)
        for key in keys:
            kind, number = self._head()
            if kind == "a map":
                yield from self._arrays(number)
            elif kind == "an extension":
                yield self.path, self._array(number)
            elif (key, kind) == (_CHUNKED, "true"):
                yield self.path[:-1], self._chunked(keys)
            else:
                raise CheckpointError(f"there is {kind} where an array should be")

    def _keys(self, count: int) -> Iterator[str]:
        """The keys of a map, each before its value."""
        self._num_entries += count
        if self._num_entries > _MAX_ENTRIES or len(self.path) == _MAX_DEPTH:
            raise CheckpointError(
                f"there are more than {_MAX_ENTRIES} entries, or {_MAX_DEPTH} levels"
            )
        keys: set[str] = set()
        for _ in range(count):
            key = self._string()
            if key in keys:
                raise CheckpointError(f"there is a second {key!r}")
            keys.add(key)
            self.path.append(key)
            yield key
            self.path.pop()

    def _chunked(self, keys: Iterator[str]) -> StoredTensor:
        """An array in chunks, which are flat, from the rest of its map."""
        shape = tuple(self._numbered(keys, "shape", "an integer"))
        numbers = self._numbered(keys, "chunks", "an extension")
        chunks = [self._array(number) for number in numbers]
        dtypes = {chunk.dtype for chunk in chunks}
        if len(dtypes) != 1 or next(keys, None) is not None:
            raise CheckpointError("the chunks make no array of one dtype")
        return self._stored([chunk.spans[0] for chunk in chunks], dtypes.pop(), shape)

    def _numbered(self, keys: Iterator[str], key: str, kind: str) -> Iterator[int]:
        """The heads of the entries of a tuple, which Flax stores as a map."""
        if next(keys, None) != key:
            raise CheckpointError(f"there is no {key} where it should be")
        for i, index in enumerate(self._keys(self._expect("a map"))):
            if index != str(i):
                raise CheckpointError(f"this is not number {i}")
            yield self._expect(kind)

    def _array(self, size: int) -> StoredTensor:
        if (extension := self._integer(1)) != _ARRAY:
            raise CheckpointError(f"there is the extension {extension}, not an array")
        end = self._handle.tell() + size
        if self._expect("a list") != 3:
            raise CheckpointError("the array is not shape, dtype and elements")
        shape = tuple(self._expect("an integer") for _ in range(self._expect("a list")))
        dtype = self._string()
        if dtype not in _DTYPES:
            raise CheckpointError(f"the dtype {dtype!r} is none of {', '.join(_DTYPES)}")
        length = self._expect("bytes")
        start = self._handle.tell()
        if start + length != end:
            raise CheckpointError("the array does not end where its elements do")
        if end > self._size:
            raise CheckpointError("the file ends early")
        self._handle.seek(end)
        return self._stored([(start, length)], _DTYPES[dtype], shape)

    def _stored(
        self, spans: list[tuple[int, int]], dtype: np.dtype, shape: tuple[int, ...]
    ) -> StoredTensor:
        found = sum(size for _, size in spans)
        expected = math.prod(shape) * dtype.itemsize
        if not found == expected > 0:
            raise CheckpointError(
                f"there are {found} bytes for the {expected} of {dtype}{list(shape)}"
            )
        return StoredTensor(self._file, tuple(spans), dtype, shape)

    def _string(self) -> str:
        text = self._bytes(self._expect("a string"))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"the string {text!r} is not UTF-8") from error

    def _expect(self, expected: str) -> int:
        """The number in the head of the next value, which must be of this kind."""
        kind, number = self._head()
        if kind != expected:
            raise CheckpointError(f"there is {kind} where {expected} should be")
        return number

    def _head(self) -> tuple[str, int]:
        """The kind of the next value; and its length, or its value if it is an integer.

        Only for what Flax writes for a BART, where strings and lists are short.
        """
        first = self._integer(1)
        if first < 0x80:
            return "an integer", first
        if first < 0x90:
            return "a map", first - 0x80
        if first < 0xA0:
            return "a list", first - 0x90
        if first < 0xC0:
            return "a string", first - 0xA0
        if first == 0xD8:
            return "an extension", 16
        if first not in _KINDS:
            raise CheckpointError(f"the byte {first:#04x} starts nothing that Flax writes")
        kind, width = _KINDS[first]
        return kind, self._integer(width)

    def _integer(self, width: int) -> int:
        return int.from_bytes(self._bytes(width), "big")

    def _bytes(self, size: int) -> bytes:
        found = self._handle.read(size)
        if len(found) != size:
            raise CheckpointError("the file ends early")
        return found


def transposed(kernel: StoredTensor) -> StoredTensor:
    """A kernel, `[in, out]`, as PyTorch's weight, `[out, in]`.

    **Raises** `CheckpointError` if it is not a matrix.
    """
    if len(kernel.shape) != 2:
        raise CheckpointError(f"the kernel has the shape {list(kernel.shape)}")
    num_in, num_out = kernel.shape
    return dataclasses.replace(kernel, shape=(num_out, num_in), strides=(1, num_out))
