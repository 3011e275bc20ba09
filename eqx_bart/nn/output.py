"""The base of what models return."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx


class ModelOutput(eqx.Module, Mapping[str, Any]):
    """The base of all outputs: a dataclass, and a mapping from the names of its fields to
    their values, in order. Fields that are `None` are not in the mapping, as in HF.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not `None`, in order, as HF's `to_tuple` gives them."""
        return tuple(self.values())

    def __getitem__(self, item: Any) -> Any:
        """A field by its name, or an entry of `to_tuple`.

        **Raises** `KeyError` if there is no such field, or if it is `None`.
        """
        if not isinstance(item, str):
            return self.to_tuple()[item]
        if item not in [*self]:
            raise KeyError(f"{item}: this {type(self).__name__} has {', '.join(self)}.")
        return getattr(self, item)

    def __iter__(self) -> Iterator[str]:
        names = (field.name for field in dataclasses.fields(self))
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
