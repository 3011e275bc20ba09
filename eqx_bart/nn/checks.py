"""Checks on values: a plain exception outside `jit`, `equinox.error_if` inside it."""

import typing
from typing import TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractDtype, Array, Bool, Integer


#: What the public functions take where HF takes a tensor.
ArrayLike = Array | np.ndarray

if TYPE_CHECKING:
    Mask = typing.Annotated
else:

    class Mask(AbstractDtype):
        """An attention mask as users give it: booleans, or integers where 0 is padding."""

        dtypes = (*Bool.dtypes, *Integer.dtypes)


_T = TypeVar("_T")


def error_if(x: _T, pred: Bool[ArrayLike, "..."], message: str) -> _T:
    """`x`, unless `pred` holds anywhere.

    **Raises** `ValueError(message)` where `pred` is a concrete value; under `jit` the
    compiled program raises when it runs, as `equinox.error_if` does.
    """
    if isinstance(pred, jax.core.Tracer):
        return eqx.error_if(x, pred, message)
    if np.any(pred):
        raise ValueError(message)
    return x


def as_indices(ids: Integer[ArrayLike, "*shape"]) -> Integer[Array, "*shape"]:
    """`ids` as a JAX array of 32 bits or more, so that sums and limits do not wrap."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(ids.dtype, jnp.int32))
    if isinstance(ids, np.ndarray):  # else JAX would compile a program for each shape
        return jax.device_put(ids.astype(dtype))
    return ids.astype(dtype)


def check_range(
    ids: Integer[ArrayLike, "*shape"], size: int, name: str, table: str
) -> Integer[Array, "*shape"]:
    """`as_indices(ids)`, checked to lie in `[0, size)`.

    JAX clamps an index past the end of an array, so a wrong id would silently read another
    row.

    **Arguments:**

    - `name`, `table`: what the message calls the ids, and the table that they index.

    **Raises** as `error_if` does; outside `jit` the message names the first wrong value and
    its place.
    """
    message = f"{name} must lie in [0, {size}), the rows of {table}"
    if isinstance(ids, jax.core.Tracer):
        ids = as_indices(ids)
        return eqx.error_if(ids, (ids < 0) | (ids >= size), f"{message}.")
    values = np.asarray(ids)
    places = np.argwhere((values < 0) | (values >= size))
    if len(places):
        place = tuple(int(i) for i in places[0])
        raise ValueError(f"{message}; {name}{list(place)} is {int(values[place])}.")
    return as_indices(ids)
