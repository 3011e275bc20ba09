"""Meshes by their names, for tests on many devices."""

import math

import jax
from jax.sharding import AxisType


TYPES = {
    "explicit": [AxisType.Explicit] * 3,
    "automatic": [AxisType.Auto] * 3,
    "mixed": [AxisType.Explicit, AxisType.Auto, AxisType.Explicit],
}


def mesh_of(text, types):
    """The mesh that a text such as `data=2,tensor=2` says, of some of the devices."""
    sizes = {name: int(size) for name, size in (x.split("=") for x in text.split(","))}
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        tuple(TYPES[types][: len(sizes)]),
        devices=jax.devices()[: math.prod(sizes.values())],
    )


def rows_of(mesh):
    """The axes of a mesh over which rows are split."""
    return tuple(name for name in mesh.axis_names if name != "tensor") or None
