"""How a model is laid out over a mesh of devices.

Sources: Shoeybi et al. 2019 (arXiv:1909.08053), section 3, for `tensor`; Rajbhandari et
al. 2019 (arXiv:1910.02054), section 5, for `fsdp`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .nn.mesh import AXES, put, TENSOR
from .nn.tree import along


TreeT = TypeVar("TreeT")

#: How arrays are split, by the ends of their paths.
Layout = Mapping[str, PartitionSpec]
#: A layout without entries.
NO_LAYOUT: Layout = MappingProxyType({})

_BASE = r"(\.base_layer)?"
_COLUMNS = r"(q_proj|k_proj|v_proj|fc1)"
_ROWS = r"((self|encoder)_attn\.out_proj|fc2)"

#: How each parameter is split: the first entry that fits the end of its path. What fits
#: none has a copy on each device: biases of what is split by rows, and norms. Weights are
#: `[in, out]`, and in 8 bits `[out, in]`.
LAYOUT: Layout = MappingProxyType(
    {
        _COLUMNS + _BASE + r"\.weight": PartitionSpec("fsdp", "tensor"),
        _COLUMNS + _BASE + r"\.qweight": PartitionSpec("tensor", "fsdp"),
        _COLUMNS + _BASE + r"\.(bias|scales)": PartitionSpec("tensor"),
        _COLUMNS + r"\.lora_A": PartitionSpec("fsdp", None),
        _COLUMNS + r"\.lora_B": PartitionSpec(None, "tensor"),
        _ROWS + _BASE + r"\.weight": PartitionSpec("tensor", "fsdp"),
        _ROWS + _BASE + r"\.qweight": PartitionSpec("fsdp", "tensor"),
        _ROWS + _BASE + r"\.smoothing": PartitionSpec("tensor"),
        _ROWS + r"\.lora_A": PartitionSpec("tensor", None),
        _ROWS + r"\.lora_B": PartitionSpec(None, "fsdp"),
        r"(shared|embed_tokens)\.q?weight": PartitionSpec("tensor", "fsdp"),
        r"(shared|embed_tokens|lm_head)\.scales": PartitionSpec("tensor"),
        r"embed_positions\.weight": PartitionSpec(None, "fsdp"),
        r"lm_head\.weight": PartitionSpec("fsdp", "tensor"),
        r"lm_head\.qweight": PartitionSpec("tensor", "fsdp"),
        r"final_logits_bias\.bits": PartitionSpec(None, "tensor"),
        r"(classification_head\.(dense|out_proj)|qa_outputs)\.weight": PartitionSpec(
            "fsdp", None
        ),
    }
)


def shard(
    tree: TreeT,
    mesh: Mesh | AbstractMesh,
    *,
    layout: Layout = NO_LAYOUT,
    strict: bool = False,
) -> TreeT:
    r"""`tree`, laid out over a mesh: a model, or what has the paths of one in it, such as
    its gradients and the state of an optimiser.

    Axes of the mesh count by their names, and none needs to be there. Over `data` and
    `fsdp` the rows of a batch are split; over `fsdp` parameters are as well, and each is
    gathered where it is used; over `tensor` attention is split by heads, the feed-forward
    by its inner features, and the vocabulary by tokens. Inside `jit` a mesh may be an
    abstract one, and this is how gradients and updated parameters stay split.

    **Arguments:**

    - `mesh`: of any of the axes `data`, `fsdp` and `tensor`, explicit or automatic.
    - `layout`: entries that come before those of `LAYOUT`, for parts of your own: from a
        regular expression for the end of a path, such as `r"experts\.weight"`, to how the
        axes of that array are split.
    - `strict`: whether an axis that the mesh does not divide is an error. If not, it is not
        split. Heads count, where an attention says how many it has.

    **Raises** `ValueError` if an axis of the mesh has another name, or if an entry of
    `layout` fits no array, or one of fewer axes, or names an axis that the mesh does not
    have and that is none of the three.
    """
    _check_axes(mesh, layout)
    entries = {**layout, **LAYOUT}
    unused, undivided = set(layout), list[str]()

    def laid_out(path: Any, x: Any) -> Any:
        if not eqx.is_array(x) and not isinstance(x, jax.ShapeDtypeStruct):
            return x
        name = jtu.keystr(path, simple=True, separator=".")
        fitting = (e for e in entries if re.search(rf"(^|\.)({e})$", name))
        entry = next(fitting, None)
        unused.discard(entry or "")
        spec = PartitionSpec() if entry is None else entries[entry]
        if len(spec) > x.ndim:
            raise ValueError(
                f"{entry} is to be split as {spec}, and {name} has the shape {x.shape}: "
                "an entry has as many axes as its array, or fewer."
            )
        heads, axes = _num_heads(tree, path), list[Any]()
        for axis, names in enumerate(_over(names, mesh) for names in spec):
            size = heads if TENSOR in names and heads else x.shape[axis]
            parts = math.prod(mesh.shape[n] for n in names)
            if size % parts:
                what = "heads" if size == heads else "entries"
                over = ", ".join(f"{n}={mesh.shape[n]}" for n in names)
                undivided.append(f"{name} (axis {axis}: {size} {what}) by {over}")
                names = ()
            axes.append(names or None)
        return put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    placed = jtu.tree_map_with_path(laid_out, tree)
    if unused:
        raise ValueError(f"These entries of the layout fit no array: {sorted(unused)}.")
    if strict and undivided:
        raise ValueError(f"The mesh does not divide {'; '.join(undivided)}.")
    return placed


def _check_axes(mesh: Mesh | AbstractMesh, layout: Layout) -> None:
    """**Raises** `ValueError` if an axis has no meaning, of the mesh or of the layout."""
    named = {name for spec in layout.values() for name in _flat(spec)}
    unknown = [name for name in mesh.axis_names if name not in named | set(AXES)]
    if unknown:
        raise ValueError(
            f"The mesh has the axes {list(mesh.axis_names)}, and {unknown} have no meaning "
            f"here: call them one of {list(AXES)}, or name them in layout."
        )
    missing = sorted(named - set(mesh.axis_names) - set(AXES))
    if missing:
        raise ValueError(
            f"The layout names the axes {missing}; the mesh has {list(mesh.axis_names)}."
        )


def _flat(spec: PartitionSpec) -> Iterator[str]:
    """The names of axes in `spec`."""
    for names in spec:
        yield from (names,) if isinstance(names, str) else names or ()


def _over(names: Any, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Those of the axes that an entry names for one axis of an array that the mesh has."""
    return tuple(name for name in _flat(PartitionSpec(names)) if name in mesh.axis_names)


def _num_heads(tree: Any, path: tuple[Any, ...]) -> int | None:
    """How many heads the attention has that the array at `path` belongs to."""
    heads = None
    for node, _ in along(tree, path):
        heads = getattr(node, "num_heads", heads)
    return heads
