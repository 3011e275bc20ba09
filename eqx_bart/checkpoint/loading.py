"""From a model's arrays to the tensors of a checkpoint, and back."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, PRNGKeyArray

from ..files.errors import CheckpointError, listed
from ..files.tensors import StoredTensor
from ..nn.mesh import put
from ..nn.processes import is_shared, on_host, together
from ..nn.quantized import int8_rows
from ..nn.stored import AbstractStored
from ..sharding import Layout, NO_LAYOUT, shard
from .matching import laid_out, match
from .names import canonical, is_weight, Leaf, named_leaves, weights
from .quantization import is_quantized, quantize, quantized_as
from .resizing import fit_entries


Model = TypeVar("Model", bound=eqx.Module)


@dataclasses.dataclass(eq=False)
class ModelTensor:
    """An array of a model, as the tensor that HF would save, which is fetched from the
    devices when it is wanted.

    **Fields:**

    - `leaf`: where it is in a checkpoint, and the array.
    - `is_loaded`: whether it was wanted.
    """

    leaf: Leaf
    is_loaded: bool = False

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.leaf.value.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return laid_out(self.leaf.value.shape, self.leaf)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> np.ndarray:
        """The tensor, on the host. All processes that hold parts must call this."""
        self.is_loaded = True
        value = self.leaf.value
        array = on_host(value.value if isinstance(value, AbstractStored) else value)
        return array.T if self.leaf.is_transposed else array


def to_tensors(model: eqx.Module) -> dict[str, ModelTensor]:
    """The tensors that HF would save for `model`, by name."""
    return {x.name: ModelTensor(x) for x in named_leaves(model) if x.is_weight}


@contextlib.contextmanager
def writing(model: eqx.Module, tensors: Sequence[ModelTensor]) -> Generator[bool]:
    """A context that says whether this process is the one to write `model`, of which these
    are the tensors, in the order in which that will load them.

    Where other processes hold parts, all of them must come here. The first one writes, and
    the others give it their parts, to the end, whatever happens to it.

    **Raises** in all of them if it fails in one.
    """
    are_many = is_shared(model)
    with together("Saving", is_shared=are_many):
        try:
            yield not are_many or jax.process_index() == 0
        finally:
            for tensor in tensors if are_many else ():
                if not tensor.is_loaded:
                    tensor.load()


def load_weights(
    build: Callable[[PRNGKeyArray], Model],
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: Any,
    key: PRNGKeyArray | None,
    ignore_mismatched_sizes: bool = False,
    quantized: bool = False,
    mesh: Mesh | None = None,
    layout: Layout = NO_LAYOUT,
) -> Model:
    """The model that `build` makes from a key, with the weights of a checkpoint.

    `build` is only traced, so that only the weights that the checkpoint lacks are drawn.
    What the checkpoint has in 8 bits is in 8 bits in the model; if `quantized`, all that
    `quantize` changes is.
    For the other arguments, and what is raised, see `PretrainedModel.from_pretrained`.
    """
    names = {canonical(name) for name in tensors}
    try:
        template = eqx.filter_eval_shape(
            lambda key: quantized_as(build(key), names), jax.random.key(0)
        )
    except ValueError as error:  # the config has what this model cannot be made with
        raise CheckpointError(str(error)) from error
    quantized = quantized and not is_quantized(template)
    target = eqx.filter_eval_shape(quantize, template) if quantized else template
    if mesh is not None:
        target = shard(target, mesh, layout=layout)
    if not quantized:
        template = target
    found = match(template, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes)
    name = type(template).__name__
    if found.problems:
        raise CheckpointError(
            f"The checkpoint does not fit {name} with its config:\n  "
            + "\n  ".join(found.problems)
        )
    if found.unused:
        warnings.warn(
            f"{name} has no use for these tensors of the checkpoint: "
            f"{listed(found.unused)}.",
            stacklevel=2,
        )
    leaves, stored, wanted = found.leaves, found.stored, weights(target)
    dtype = _floating_dtype(dtype)
    drawn = _draw(build, found.lacking, dtype or _usual_dtype(stored), key)
    arrays = dict[str, Any]()

    def keep(name: str, array: Any) -> None:
        new = _as_wanted(name, array, leaves[name], wanted)
        arrays.update({x: _placed(new[x], wanted[x].value) for x in new})

    # The largest first, while there is least else in memory.
    for name in sorted(stored, key=lambda name: stored[name].nbytes, reverse=True):
        array = from_tensor(name, stored[name], leaves[name], dtype)
        shape = leaves[name].value.shape
        if array.shape != shape:
            array = fit_entries(name, array, shape, drawn.get(name))
        keep(name, array)
        del array
    for name in leaves.keys() - stored.keys():
        zeros = jnp.zeros(leaves[name].value.shape, dtype or _usual_dtype(stored))
        keep(name, drawn.get(name, _as_leaf(leaves[name].value, zeros)))
    values = [arrays.get(canonical(x.name), x.value) for x in named_leaves(target)]
    return jtu.tree_unflatten(jtu.tree_structure(target, is_leaf=is_weight), values)


def _as_wanted(name: str, array: Any, leaf: Leaf, wanted: Container[str]) -> dict[str, Any]:
    """The array of this name; or integers and their scales, if these are `wanted`."""
    part, _, field = name.rpartition(".")
    if field != "weight" or f"{part}.qweight" not in wanted:
        return {name: array}
    rows = array.T if leaf.is_transposed else array
    qweight, scales = int8_rows(rows)
    return {f"{part}.qweight": qweight, f"{part}.scales": scales}


def _usual_dtype(stored: Mapping[str, StoredTensor]) -> Any:
    dtypes = (tensor.dtype for tensor in stored.values())
    return next((x for x in dtypes if jnp.issubdtype(x, jnp.floating)), jnp.float32)


def _floating_dtype(dtype: Any) -> Any:
    if dtype is None:
        return None
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype, or None; it is {dtype}.")
    return dtype


def _draw(
    build: Callable[[PRNGKeyArray], Any],
    names: list[str],
    dtype: Any,
    key: PRNGKeyArray | None,
) -> dict[str, Any]:
    """New weights for the arrays `names` of the model, and for no others."""
    if not names:
        return {}
    lacks = f"The checkpoint lacks all or part of {listed(names)}"
    if key is None:
        raise CheckpointError(f"{lacks}: pass key=... to draw new weights at random.")
    warnings.warn(f"{lacks}: drawn at random from key.", stacklevel=2)

    @jax.jit
    def draw(key: PRNGKeyArray) -> dict[str, Any]:
        leaves = {canonical(x.name): x.value for x in named_leaves(build(key))}
        return {name: _cast(leaves[name], dtype) for name in names}

    return draw(key)


def from_tensor(name: str, tensor: StoredTensor, leaf: Leaf, dtype: Any) -> Any:
    """`tensor` as this leaf of a model; `name` is the canonical one.

    **Raises** `CheckpointError` if it is not of floats, or, where the model has these, of
    8-bit integers; or if it needs JAX's 64-bit mode.
    """
    is_int8 = getattr(leaf.value, "dtype", None) == jnp.int8
    expected = jnp.int8 if is_int8 else jnp.floating
    if not jnp.issubdtype(tensor.dtype, expected):
        what = "8-bit integers" if is_int8 else "floats"
        raise CheckpointError(f"{name} is stored as {tensor.dtype}, not as {what}.")
    dtype = tensor.dtype if is_int8 or dtype is None else dtype
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise CheckpointError(
            f"Weights of {dtype} need JAX's 64-bit mode: enable jax_enable_x64, or pass "
            "dtype=jax.numpy.float32."
        )
    sharding = _sharding(leaf.value)
    if sharding is not None and laid_out(tensor.shape, leaf) == leaf.value.shape:
        return _as_leaf(leaf.value, _from_parts(tensor, leaf, dtype, sharding))
    value = tensor.load().astype(dtype, copy=False)
    if name == "final_logits_bias":
        value = _fit_width(value, leaf.value.shape[-1])
    # On the CPU JAX uses this memory, unless it needs another layout.
    array = jax.device_put(value.T if leaf.is_transposed else value)
    return _as_leaf(leaf.value, array)


def _from_parts(tensor: StoredTensor, leaf: Leaf, dtype: Any, sharding: Any) -> Array:
    """The parts of a tensor that are this process's, each read once."""
    whole = None if tensor.has_parts else tensor.load()
    parts = dict[tuple[tuple[int | None, int | None], ...], np.ndarray]()

    def part(place: Any) -> np.ndarray:
        key = tuple((x.start, x.stop) for x in place)
        if key not in parts:
            stored = place[::-1] if leaf.is_transposed else place
            value = tensor.load_part(stored) if whole is None else whole[stored]
            value = value.astype(dtype, copy=False)
            parts[key] = value.T if leaf.is_transposed else value
        return parts[key]

    return jax.make_array_from_callback(leaf.value.shape, sharding, part)


def _sharding(leaf: Any) -> Sharding | None:
    """How an array lies on a mesh, or that of a module that stands for it; `None` if
    nothing says that."""
    arrays = jax.tree.leaves(leaf)
    if len(arrays) != 1 or arrays[0].shape != leaf.shape:
        return None
    return getattr(arrays[0], "sharding", None)


def _placed(array: Any, template: Any) -> Any:
    """An array, or a module that stands for one, where its template says it lies."""
    leaves, structure = jax.tree.flatten(array)
    shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(template)]
    placed = [
        x if sharding is None else put(x, sharding)
        for x, sharding in zip(leaves, shardings, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def _as_leaf(leaf: Any, array: Array) -> Any:
    """`array`, or a module that stands for it if `leaf` is such a module."""
    return leaf.with_value(array) if isinstance(leaf, AbstractStored) else array


def _cast(leaf: Any, dtype: Any) -> Any:
    if isinstance(leaf, AbstractStored):
        return _as_leaf(leaf, leaf.value.astype(dtype))
    return leaf.astype(dtype)


def _fit_width(bias: np.ndarray, width: int) -> np.ndarray:
    """`final_logits_bias` cut or padded to the vocabulary, as HF does when it resizes."""
    bias = bias.reshape(1, -1)
    if bias.shape[1] == width:
        return bias
    warnings.warn(
        f"final_logits_bias is {bias.shape[1]} wide and the vocabulary {width}: it is "
        "cut, or padded with zeros.",
        stacklevel=2,
    )
    fitted = np.zeros((1, width), bias.dtype)
    fitted[:, : bias.shape[1]] = bias[:, :width]
    return fitted
