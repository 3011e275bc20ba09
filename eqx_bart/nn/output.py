"""The base of what models return."""

import dataclasses
from typing import Any

import equinox as eqx


class ModelOutput(eqx.Module):
    """The base of all outputs."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not `None`, in order, as HF's `to_tuple` gives them."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(value for value in values if value is not None)

    def __getitem__(self, item: int | str) -> Any:
        """A field by its name, or an entry of `to_tuple`, as in HF."""
        return getattr(self, item) if isinstance(item, str) else self.to_tuple()[item]
