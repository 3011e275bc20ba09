"""How a module says what its arrays are in a file.

By default an array is stored as it is, under the path of its field. The metadata of a field
may say otherwise: `weight: Array = equinox.field(metadata=TRANSPOSED)`. A module that
stands for one array of floats, as a `Buffer` does, is an `AbstractStored`. A module that no
checkpoint can hold is an `AbstractUnstorable`.
"""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


_HOW = "eqx_bart.stored"

#: The metadata of a field whose array is stored as its transpose, as PyTorch stores the
#: weight of a linear map.
TRANSPOSED = {_HOW: "transposed"}
#: The metadata of a field whose module is stored as if its fields were those of the module
#: that holds it: HF has `layers.0.fc1`, not `layers.0.feed_forward.fc1`.
INLINED = {_HOW: "inlined"}


def is_transposed(module: Any, field: str) -> bool:
    """Whether this field of `module` is `TRANSPOSED`."""
    return _how(module, field) == TRANSPOSED[_HOW]


def is_inlined(module: Any, field: str) -> bool:
    """Whether this field of `module` is `INLINED`."""
    return _how(module, field) == INLINED[_HOW]


def _how(module: Any, field: str) -> str | None:
    fields = getattr(module, "__dataclass_fields__", {})
    return fields[field].metadata.get(_HOW) if field in fields else None


class AbstractStored(eqx.Module):
    """A module that is stored as one array, `value`, under its own path."""

    @property
    @abc.abstractmethod
    def value(self) -> Float[Array, "..."]:
        """The array."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""

    @abc.abstractmethod
    def with_value(self, value: Float[Array, "..."]) -> "AbstractStored":
        """The same module with another array."""


class AbstractUnstorable(eqx.Module):
    """A module that no checkpoint of its model can hold."""

    @property
    @abc.abstractmethod
    def remedy(self) -> str:
        """Why not, and what to do instead, for the error of `save_pretrained`."""
