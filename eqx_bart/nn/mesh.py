"""Meshes of devices.

The type of an array says how it is split over the explicit axes of its mesh, and JAX
refuses an operation whose result it cannot tell, such as a lookup. Over automatic axes the
compiler decides, for any operation, and for weights that are split in any way. So the
public calls make all axes automatic inside, and say at their end how the results are split:
along their rows, as the batch is.
"""

import functools
from collections.abc import Callable
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.tree_util as jtu
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .tree import along


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_ROWS = "eqx_bart.rows"

#: The metadata of a field whose arrays have their rows along the second axis.
ROWS_SECOND = {_ROWS: 1}
#: The metadata of a field whose arrays have no rows.
NO_ROWS = {_ROWS: None}


def on_any_mesh(function: FunctionT) -> FunctionT:
    """`function`, which may then be called with arrays on a mesh with explicit axes too.

    A module that is the first of several arguments is a model, or a part of one. All other
    arguments have a row for each input along their first axis, and so have the results, or
    a multiple of that, unless the metadata of a field says otherwise.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        mesh = _explicit_mesh((kwargs, args))
        if mesh is None:
            return function(*args, **kwargs)
        is_method = isinstance(args[0], eqx.Module) and len(args) + len(kwargs) > 1
        axes, num_rows = _rows((args[is_method:], kwargs))
        with jax.sharding.use_abstract_mesh(_automatic(mesh.abstract_mesh)):
            args, kwargs = jax.tree.map(_as_automatic, (args, kwargs))
            result = function(*args, **kwargs)
        by_rows = _by_rows(result, mesh, axes, num_rows)

        def put(path: Any, x: Any) -> Any:
            return _put(x, by_rows(path, x)) if isinstance(x, jax.Array) else x

        return jtu.tree_map_with_path(put, result)

    return cast("FunctionT", call)


def rows_sharding(tree: Any) -> NamedSharding | None:
    """How rows are split over devices: those of the first array, outside `jit`, that is
    split along its first axis. `None` if there is no such array.
    """
    for x in jax.tree.leaves(tree):
        if is_spread(x) and x.ndim and isinstance(x.sharding, NamedSharding):
            axes = x.sharding.spec[:1]
            if axes not in ((), (None,)):
                return NamedSharding(x.sharding.mesh, PartitionSpec(*axes))
    return None


def is_spread(*values: Any) -> bool:
    """Whether any array in `values` has parts, or copies, on more than one device, as far
    as that is known: outside `jit`."""
    return any(
        isinstance(x, jax.Array)
        and not isinstance(x, jax.core.Tracer)
        and x.sharding.num_devices > 1
        for x in jax.tree.leaves(values)
    )


def put_rows(tree: Any, sharding: NamedSharding | None, num_rows: int) -> Any:
    """`tree`, with the arrays that have rows, `num_rows` or a multiple of that, split as
    `rows_sharding` says. Outside `jit`."""
    if sharding is None:
        return tree
    by_rows = _by_rows(tree, sharding.mesh, sharding.spec[0], num_rows)
    return jtu.tree_map_with_path(lambda path, x: jax.device_put(x, by_rows(path, x)), tree)


def _explicit_mesh(tree: Any) -> Mesh | AbstractMesh | None:
    """The mesh in force, or that of an array, if it has explicit axes. Its devices are
    known if those of any array are."""
    found = jax.sharding.get_abstract_mesh()
    if found.empty:
        for x in jax.tree.leaves(tree):
            if isinstance(x, jax.Array) and jax.typeof(x).sharding.mesh.explicit_axes:
                found = jax.typeof(x).sharding.mesh
                if not isinstance(x, jax.core.Tracer):
                    assert isinstance(x.sharding, NamedSharding)
                    return x.sharding.mesh
    return found if found.explicit_axes else None


def _as_automatic(x: Any) -> Any:
    """An array, with its explicit axes made automatic; anything else as it is."""
    if isinstance(x, jax.Array) and (mesh := jax.typeof(x).sharding.mesh).explicit_axes:
        return jax.sharding.reshard(x, NamedSharding(_automatic(mesh), PartitionSpec()))
    return x


def _automatic(mesh: AbstractMesh) -> AbstractMesh:
    """The mesh, with its explicit axes made automatic."""
    return mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))


def _rows(tree: Any) -> tuple[Any, int]:
    """The axes of the mesh over which the rows of the first array are split that has any
    such, and the number of rows."""
    for x in jax.tree.leaves(tree):
        if isinstance(x, jax.Array) and x.ndim:
            axes = jax.typeof(x).sharding.spec[0]
            if axes is not None:
                return axes, len(x)
    return None, 1


def _by_rows(
    tree: Any, mesh: Mesh | AbstractMesh, axes: Any, num_rows: int
) -> Callable[[Any, Any], NamedSharding]:
    """How each array of `tree` is split if its rows are split over these axes."""

    def by_rows(path: Any, x: Any) -> NamedSharding:
        axis = _axis(tree, path)
        if axis is None or x.ndim <= axis or x.shape[axis] % num_rows:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, axes))

    return by_rows


def _axis(tree: Any, path: tuple[Any, ...]) -> int | None:
    """The axis of the rows of the array at `path`."""
    for node, key in along(tree, path):
        if isinstance(key, jtu.GetAttrKey):
            metadata = getattr(node, "__dataclass_fields__", {})[key.name].metadata
            if _ROWS in metadata:
                return metadata[_ROWS]
    return 0


def _put(x: Any, sharding: NamedSharding) -> Any:
    """An array, split over the axes of a mesh."""
    is_outside = isinstance(sharding.mesh, Mesh) and not isinstance(x, jax.core.Tracer)
    if is_outside and not isinstance(x.sharding, NamedSharding):
        return jax.device_put(x, sharding)  # it is not on the mesh yet
    return jax.sharding.reshard(
        x, NamedSharding(sharding.mesh.abstract_mesh, sharding.spec)
    )
