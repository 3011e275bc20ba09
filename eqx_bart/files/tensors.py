"""A tensor in a file of any format."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from .errors import CheckpointError


# The alignment that a buffer needs for JAX to use it without copying, in bytes.
_ALIGNMENT = 64

# The limit on a shape's entries. NumPy refuses 2**63, even if there are no elements.
_MAX_SIZE = 2**48


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

    def load(self) -> np.ndarray:
        """The tensor, in newly allocated memory.

        **Raises** `CheckpointError` if the file ends before the tensor does.
        """
        storage = _aligned_bytes(sum(size for _, size in self.spans))
        rest = storage.data
        with self.file.open("rb") as file:
            for offset, size in self.spans:
                file.seek(offset)
                if file.readinto(rest[:size]) != size:
                    raise CheckpointError(f"{self.file} ends early: it has changed.")
                rest = rest[size:]
        elements = storage.view(self.dtype)
        if self.strides is None:
            return elements[: math.prod(self.shape)].reshape(self.shape)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides)


def _aligned_bytes(size: int) -> np.ndarray:
    storage = np.empty(size + _ALIGNMENT, np.uint8)
    start = -storage.ctypes.data % _ALIGNMENT
    return storage[start : start + size]
