"""Checks on values, and what becomes of one that fails inside `jit`.

Outside `jit` values are known, and what is wrong raises before anything runs. Inside, only
the running program knows. An error is then a host callback: JAX exports no program with
callbacks, JAX 0.10 keeps none in its persistent cache, and if one device stops, the others
wait for it. NaN needs nothing of the kind.
"""

import contextlib
import os
import typing
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractDtype, Array, Bool, Float, Integer

from .processes import on_host


#: What the public functions take where HF takes a tensor.
ArrayLike = Array | np.ndarray

if TYPE_CHECKING:
    Mask = typing.Annotated
else:

    class Mask(AbstractDtype):
        """An attention mask as users give it: booleans, or integers where 0 is padding."""

        dtypes = (*Bool.dtypes, *Integer.dtypes)


#: An array of either kind.
ArrayT = TypeVar("ArrayT", bound=ArrayLike)

# As Equinox does, at import; it refuses a value that it does not know.
_ENVIRONMENT = os.environ.get("EQX_ON_ERROR")
# JAX traces a function again where this has another value.
_CHOSEN = jax.make_user_context(None)


@contextlib.contextmanager
def checks(on_error: str) -> Generator[None]:
    """Says what a check on values does that fails inside `jit`: of ids, positions, labels,
    masks, and the room in a cache. Outside `jit`, one that fails raises `ValueError`.

    This is decided when a function is traced. One that was traced in this context is traced
    anew outside it, and the reverse. Without a context the environment variable
    `EQX_ON_ERROR` decides, which is Equinox's own and is read once.

    **Arguments:**

    - `on_error`: `"raise"` raises `RuntimeError` when the program runs, which is then not
        kept in the persistent cache of JAX 0.10, and cannot be exported; the default where
        there is one device. `"nan"` makes whatever a wrong value reaches NaN, and a
        generated token -1; the default where there are more. `"off"` checks nothing.

    **Raises** `ValueError` if `on_error` is none of these.
    """
    if on_error not in ("raise", "nan", "off"):
        raise ValueError(f"on_error must be 'raise', 'nan' or 'off', not {on_error!r}.")
    with _CHOSEN(on_error):
        yield


def error_if(x: ArrayT, wrong: Bool[ArrayLike, "..."], message: str) -> ArrayT | Array:
    """`x`, unless `wrong` holds anywhere.

    **Arguments:**

    - `x`: what goes on only if nothing is wrong. Floats become NaN, and so do their
        gradients; integers become the largest of their dtype, of which a lookup makes NaN.
    - `wrong`: for each entry of the first axes of `x`.

    **Raises** `ValueError(message)` where `wrong` is a concrete value; under `jit`, what
    `checks` says happens.
    """
    if not isinstance(wrong, jax.core.Tracer):
        if on_host(wrong).any():
            raise ValueError(message)
        return x
    on_error = _CHOSEN.value or _ENVIRONMENT
    if on_error == "off":
        return x
    if on_error == "breakpoint":
        return eqx.error_if(x, wrong, message)
    if _num_devices(x) == 1:
        if on_error != "nan":
            return eqx.error_if(x, wrong, message, on_error="raise")
    elif on_error == "raise":
        _raise_on_all_devices(wrong, message)
    return _poisoned(x, wrong)


def _num_devices(x: ArrayLike) -> int:
    """How many devices a program may be for: those of the mesh that is set, or of the mesh
    in the type of `x`; all that there are, where neither says anything."""
    meshes = (jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh)
    sizes = (mesh.size for mesh in meshes if not mesh.empty)
    return max(sizes, default=jax.device_count())


def _raise_on_all_devices(wrong: Bool[Array, "..."], message: str) -> None:
    """Raises when the program runs, on each device: if one alone stopped, those that wait
    for it would wait until XLA kills the process."""

    def stop(is_wrong: Bool[ArrayLike, ""]) -> None:
        if is_wrong:
            raise RuntimeError(message)

    jax.debug.callback(stop, jnp.any(wrong), partitioned=True)


def _poisoned(x: ArrayLike, wrong: Bool[Array, "..."]) -> Array:
    """`x`, where it is not wrong."""
    x = jnp.asarray(x)
    wrong = jnp.expand_dims(wrong, range(wrong.ndim, x.ndim))
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.where(wrong, jnp.asarray(jnp.iinfo(x.dtype).max, x.dtype), x)
    # A product, so that gradients are NaN as well.
    return x * jnp.where(wrong, jnp.nan, 1).astype(x.dtype)


def as_indices(ids: Integer[ArrayLike, "*shape"]) -> Integer[Array, "*shape"]:
    """`ids` as a JAX array of 32 bits or more, so that sums and limits do not wrap."""
    ids = widened(ids)
    # Otherwise JAX would compile a program for each shape.
    return jax.device_put(ids) if isinstance(ids, np.ndarray) else ids


def widened(ids: Integer[ArrayLike, "*shape"]) -> Integer[ArrayLike, "*shape"]:
    """`ids` in 32 bits, or in 64 where JAX has them."""
    dtype = jax.dtypes.canonicalize_dtype(np.promote_types(ids.dtype, np.int32))
    return ids.astype(dtype)


def check_range(
    ids: Integer[ArrayLike, "*shape"], size: int, name: str, table: str
) -> Integer[Array, "*shape"]:
    """`as_indices(ids)`, checked to lie in `[0, size)`; see `outside`.

    **Raises** as `error_if` does; outside `jit` the message names the first wrong value and
    its place.
    """
    return error_if(as_indices(ids), *outside(ids, size, name, table))


def outside(
    ids: Integer[ArrayLike, "*shape"], size: int, name: str, table: str
) -> tuple[Bool[ArrayLike, "*shape"], str]:
    """Which `ids` do not lie in `[0, size)`, and what the error says.

    JAX clamps an index past the end of an array, so a wrong id would silently read another
    row.

    **Arguments:**

    - `name`, `table`: what the message calls the ids, and the table that they index.
    """
    message = f"{name} must lie in [0, {size}), the rows of {table}"
    if isinstance(ids, jax.core.Tracer):
        ids = as_indices(ids)
        return (ids < 0) | (ids >= size), f"{message}."
    values = on_host(ids)
    wrong = np.asarray((values < 0) | (values >= size))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        message = f"{message}; {name}{list(place)} is {int(values[place])}"
    return wrong, f"{message}."


def unknown_if_nan(
    tokens: Integer[Array, "*rows"], scores: Float[Array, "*rows"]
) -> Integer[Array, "*rows"]:
    """The tokens that were chosen for these scores, -1 where the score is NaN. A lookup of
    -1 is NaN again."""
    return jnp.where(jnp.isnan(scores), -1, tokens)
