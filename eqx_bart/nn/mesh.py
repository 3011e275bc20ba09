"""Meshes of devices.

The type of an array says how it is split over the explicit axes of its mesh, and JAX
refuses an operation whose result it cannot tell, such as a lookup. Over automatic axes the
compiler decides, for any operation, and for weights that are split in any way. So the
public calls make all axes automatic inside, and say at their end how the results are split.

The axes of a mesh have the names that the field gives them: over `data` and `fsdp` rows are
split, and over `fsdp` the parameters as well; over `tensor` heads, the inner features of
the feed-forward, and the vocabulary.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.tree_util as jtu
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from .tree import along, leaves


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

#: The axes over which rows are split.
ROWS = ("data", "fsdp")
#: The axis over which heads, inner features and the vocabulary are split.
TENSOR = "tensor"
#: All axes that have a meaning here.
AXES = (*ROWS, TENSOR)

_SPLIT = "eqx_bart.split"


def split(*axes: Any) -> dict[str, Any]:
    """The metadata of a field that says how the axes of its arrays are split: over `ROWS`,
    over `TENSOR`, or `None`. Without metadata, rows are the first axis."""
    return {_SPLIT: axes}


def on_any_mesh(function: FunctionT, *, axes: tuple[Any, ...] = (ROWS,)) -> FunctionT:
    """`function`, which may then be called with arrays on a mesh with explicit axes too.

    A module that is the first of several arguments is a model, or a part of one. All other
    arguments have a row for each input along their first axis. Results are split as `axes`
    says, or the metadata of a field: rows as those of the arguments are, or over `ROWS` if
    those are not split.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        mesh = _explicit_mesh(*args, kwargs)
        if mesh is None:
            return function(*args, **kwargs)
        is_method = isinstance(args[0], eqx.Module) and len(args) + len(kwargs) > 1
        rows, num_rows = _rows((args[is_method:], kwargs))
        with jax.sharding.use_abstract_mesh(_automatic(mesh.abstract_mesh)):
            args, kwargs = jax.tree.map(_as_automatic, (args, kwargs))
            result = function(*args, **kwargs)
        how = _how(result, mesh, rows, num_rows, axes)

        def split_over(path: Any, x: Any) -> Any:
            return put(x, how(path, x)) if isinstance(x, jax.Array) else x

        return jtu.tree_map_with_path(split_over, result)

    return cast("FunctionT", call)


def split_rows(x: Array, axes: tuple[str, ...] = ROWS) -> Array:
    """`x`, with its first axis split over the automatic ones of `axes`, as many of them as
    divide it. The compiler decides about its other axes."""
    mesh = _automatic_mesh(x)
    if mesh is None or x.ndim < 2 or not (chosen := _dividing(axes, mesh, len(x))):
        return x
    return _with_rows_over(x, mesh, chosen)


def split_lookup(x: Array) -> Array:
    """What was looked up in a table, with its rows split: first as a table is whose own
    rows are split over `fsdp`. XLA does not find that way by itself, nor back."""
    mesh = _automatic_mesh(x)
    if mesh is None or "fsdp" not in mesh.auto_axes or x.ndim < 2:
        return split_rows(x)
    rows = _dividing(("data",), mesh, len(x))
    width = _dividing(("fsdp",), mesh, x.shape[-1])
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)
    spec = PartitionSpec(rows or None, *rest, width or None)
    return split_rows(jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)))


def product(multiply: Callable[[Array, Array], Array], x: Array, weight: Array) -> Array:
    """`multiply(x, weight)`, with its rows split.

    Over `fsdp` both rows and weights are split, and one of them has to move: the weight, to
    all devices; or `x` and then what has come of it, if that is less, as in decoding.
    """
    mesh = _automatic_mesh(x)
    if mesh is None or "fsdp" not in mesh.auto_axes or x.ndim < 2:
        return split_rows(multiply(x, weight))
    axes = _dividing(("data",), mesh, len(x))
    num_rows = x.size // x.shape[-1] // _num_parts(mesh, axes)
    if num_rows * sum(weight.shape) >= weight.size:
        return split_rows(multiply(x, weight))
    y = multiply(_with_rows_over(x, mesh, axes), weight)
    return split_rows(_with_rows_over(y, mesh, axes))


def row_parts(x: Array) -> int:
    """In how many parts `split_rows` splits `x`."""
    mesh = _automatic_mesh(x)
    return 1 if mesh is None else _num_parts(mesh, _dividing(ROWS, mesh, len(x)))


def _num_parts(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def _with_rows_over(x: Array, mesh: AbstractMesh, axes: tuple[str, ...]) -> Array:
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    spec = PartitionSpec(axes or None, *rest)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def on_each_device(
    function: Callable[..., Any], x: Array, *others: Array, last: tuple[str, ...] = ()
) -> Any:
    """`function(axes, x, *others)`, where each device computes what becomes of its own part
    of `x`: its rows and, with `last`, its part of the last axis, which is split over
    `axes`. The others, and all results, have rows, and are the same along those axes.
    """
    mesh = _automatic_mesh(x)
    if mesh is None:
        return function((), x, *others)
    rows = _dividing(ROWS, mesh, len(x))
    columns = _dividing(last, mesh, x.shape[-1])
    if not rows and not columns:
        return function((), x, *others)
    spec = PartitionSpec(rows or None, *[None] * (x.ndim - 2), columns or None)
    return jax.shard_map(
        functools.partial(function, columns),
        mesh=mesh,
        in_specs=(spec, *[PartitionSpec(rows or None)] * len(others)),
        out_specs=PartitionSpec(rows or None),
        axis_names={*rows, *columns},
        check_vma=False,
    )(x, *others)


def put(x: Any, sharding: NamedSharding) -> Any:
    """An array, split over the axes of a mesh, of either type. Inside `jit`, and outside
    it, on other devices, and on those of other processes."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    is_outside = not isinstance(x, jax.core.Tracer)
    if is_outside and isinstance(sharding.mesh, Mesh):
        return _put_outside(x, sharding)
    mesh = sharding.mesh.abstract_mesh
    if not mesh.explicit_axes:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, sharding.spec))
    automatic = _only(sharding.spec, mesh.auto_axes)
    if any(automatic):
        anyhow = PartitionSpec(*(axes or PartitionSpec.UNCONSTRAINED for axes in automatic))
        x = jax.lax.with_sharding_constraint(
            _as_automatic(x), NamedSharding(_automatic(mesh), anyhow)
        )
    explicit = _only(sharding.spec, mesh.explicit_axes)
    return jax.sharding.reshard(x, NamedSharding(mesh, explicit))


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
    how = _how(tree, sharding.mesh, sharding.spec[0], num_rows, (ROWS,))
    return jtu.tree_map_with_path(lambda path, x: put(x, how(path, x)), tree)


def dividing(
    axes: tuple[str, ...], mesh: Mesh | AbstractMesh, size: int
) -> tuple[str, ...]:
    """Those of `axes` that the mesh has, as many as divide `size`, together; none that
    `jax.shard_map` maps over."""
    found = tuple[str, ...]()
    for name in axes:
        longer = (*found, name)
        if name not in mesh.shape or name in mesh.manual_axes:
            continue
        if size % _num_parts(mesh, longer) == 0:
            found = longer
    return found


def _dividing(axes: tuple[str, ...], mesh: AbstractMesh, size: int) -> tuple[str, ...]:
    """`dividing`, for the automatic axes alone."""
    return dividing(tuple(x for x in axes if x in mesh.auto_axes), mesh, size)


def _explicit_mesh(*trees: Any) -> Mesh | AbstractMesh | None:
    """The mesh in force, or that of an array, if it has explicit axes. Its devices are
    known if those of any array are."""
    found = jax.sharding.get_abstract_mesh()
    if found.empty:
        for x in leaves(*trees):
            if isinstance(x, jax.core.Tracer):
                mesh = jax.typeof(x).sharding.mesh
                found = mesh if mesh.explicit_axes else found
            elif isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding):
                mesh = x.sharding.mesh
                if mesh.abstract_mesh.explicit_axes:
                    return mesh
    return found if found.explicit_axes else None


def _automatic_mesh(x: Array) -> AbstractMesh | None:
    """The mesh in force, or that of the type of `x`, if it has automatic axes and `x` is
    being traced."""
    if not isinstance(x, jax.core.Tracer):
        return None
    meshes = (jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh)
    return next((mesh for mesh in meshes if not mesh.empty and mesh.auto_axes), None)


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


def _how(
    tree: Any, mesh: Mesh | AbstractMesh, rows: Any, num_rows: int, default: tuple[Any, ...]
) -> Callable[[Any, Any], NamedSharding]:
    """How each array of `tree` is split if `num_rows` rows are split over these axes."""

    def one(x: Any, axis: int, over: Any) -> Any:
        if over == ROWS and rows is not None:
            return rows if x.shape[axis] % num_rows == 0 else None
        names = (over,) if isinstance(over, str) else over or ()
        return dividing(names, mesh, x.shape[axis]) or None

    def how(path: Any, x: Any) -> NamedSharding:
        axes = _axes(tree, path, default)
        if x.ndim < len(axes):
            return NamedSharding(mesh, PartitionSpec())
        spec = [one(x, axis, over) for axis, over in enumerate(axes)]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return how


def _axes(tree: Any, path: tuple[Any, ...], default: tuple[Any, ...]) -> tuple[Any, ...]:
    """How the axes of the array at `path` are split; see `split`."""
    for node, key in along(tree, path):
        if isinstance(key, jtu.GetAttrKey):
            metadata = getattr(node, "__dataclass_fields__", {})[key.name].metadata
            default = metadata.get(_SPLIT, default)
    return default


def _put_outside(x: Any, sharding: NamedSharding) -> Array:
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, sharding)
    # Each process puts the parts that are its own, without a word to the others.
    host = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda place: host[place])


def _only(spec: PartitionSpec, axes: tuple[str, ...]) -> PartitionSpec:
    """A spec, without the axes of a mesh that are not among these."""

    def only(over: Any) -> Any:
        names = (over,) if isinstance(over, str) else over or ()
        return tuple(name for name in names if name in axes) or None

    return PartitionSpec(*map(only, spec))
