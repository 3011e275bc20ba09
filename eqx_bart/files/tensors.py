"""A tensor in a file of any format."""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from .errors import CheckpointError


# The alignment that a buffer needs for JAX to use it without copying, in bytes.
_ALIGNMENT = 64

# The limit on a shape's entries. NumPy refuses 2**63, even if there are no elements.
_MAX_SIZE = 2**48


class Tensor(Protocol):
    """A tensor that is fetched, as a whole, when it is wanted."""

    @property
    def dtype(self) -> np.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def load(self) -> np.ndarray:
        """The tensor, on the host."""
        ...


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `load` reads it; nothing of it is read before.

    **Fields:**

    - `file`: the file.
    - `spans`: offset and size in bytes of the pieces of the file that, joined, hold the
        elements; little-endian, not compressed, and inside the file.
    - `dtype`: the dtype of the elements.
    - `shape`: the shape of PyTorch's tensor of this name.
    - `strides`: in elements; `None` for row-major.

    **Raises** `CheckpointError` if the strides lead outside the spans, or if there are
    fewer elements than the shape has.
    """

    file: Path
    spans: tuple[tuple[int, int], ...]
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def __post_init__(self):
        num_stored, odd = divmod(sum(size for _, size in self.spans), self.dtype.itemsize)
        size = math.prod(self.shape)
        last = size - 1
        if self.strides is not None and size:
            steps = zip(self.shape, self.strides, strict=True)
            last = sum((length - 1) * stride for length, stride in steps)
        numbers = (0, *self.shape, *(self.strides or ()))
        if odd or min(numbers) < 0 or max(numbers) > _MAX_SIZE:
            raise CheckpointError("its shape, strides or size in bytes make no sense")
        if max(size, last + 1) > num_stored:
            raise CheckpointError(
                f"the shape {list(self.shape)} with strides {self.strides} is more than "
                f"the {num_stored} elements stored"
            )

    @property
    def nbytes(self) -> int:
        """The size in bytes of the array that `load` returns."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def has_parts(self) -> bool:
        """Whether a part can be read alone: the tensor is in one piece, and row-major."""
        return self.strides is None and len(self.spans) == 1

    def load(self) -> np.ndarray:
        """The tensor, in newly allocated memory.

        **Raises** `CheckpointError` if the file ends before the tensor does.
        """
        elements = self._read(self.spans).view(self.dtype)
        if self.strides is None:
            return elements[: math.prod(self.shape)].reshape(self.shape)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides)

    def load_part(self, place: tuple[slice, ...]) -> np.ndarray:
        """`load()[place]`, a slice of each axis without steps. If it `has_parts`, nothing
        else is read.

        **Raises** as `load` does.
        """
        if not self.has_parts:
            return np.ascontiguousarray(self.load()[place])
        ranges = [range(size)[own] for size, own in zip(self.shape, place, strict=True)]
        part = tuple(map(len, ranges))
        elements = self._read(tuple(self._runs(ranges))).view(self.dtype)
        return elements.reshape(part)

    def _runs(self, ranges: list[range]) -> Iterator[tuple[int, int]]:
        """The spans of the part with these ranges: a run of bytes for each place along the
        axes before the last one that is cut."""
        sizes = zip(ranges, self.shape, strict=True)
        last_cut = max((i for i, (r, n) in enumerate(sizes) if len(r) < n), default=0)
        steps = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        run = ranges[last_cut:]
        size = math.prod(map(len, run)) * self.dtype.itemsize
        for place in itertools.product(*ranges[:last_cut]):
            first = (*place, *(r.start for r in run))
            offset = sum(i * step for i, step in zip(first, steps, strict=True))
            yield self.spans[0][0] + offset * self.dtype.itemsize, size

    def _read(self, spans: tuple[tuple[int, int], ...]) -> np.ndarray:
        """The bytes of these spans, joined."""
        storage = _aligned_bytes(sum(size for _, size in spans))
        rest = storage.data
        with self.file.open("rb", buffering=0) as file:
            for offset, size in spans:
                if read_into(file, offset, rest[:size]) != size:
                    raise CheckpointError(f"{self.file} ends early: it has changed.")
                rest = rest[size:]
        return storage


def read_into(file: io.FileIO, offset: int, buffer: memoryview) -> int:
    """Fills `buffer` with what is in the file from `offset` on; returns how many bytes."""
    file.seek(offset)
    total = 0
    while total < len(buffer) and (count := file.readinto(buffer[total:])):
        total += count
    return total


def _aligned_bytes(size: int) -> np.ndarray:
    storage = np.empty(size + _ALIGNMENT, np.uint8)
    start = -storage.ctypes.data % _ALIGNMENT
    return storage[start : start + size]
