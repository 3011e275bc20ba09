"""Between a model's arrays and the tensors of a checkpoint, by the weight map."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..layers import Buffer
from .errors import CheckpointError
from .tensors import StoredTensor
from .weight_map import (
    Absent,
    canonical,
    is_ignorable,
    is_trunk,
    Layout,
    rule_for,
    sources,
)


Model = TypeVar("Model", bound=eqx.Module)


def to_tensors(model: eqx.Module) -> dict[str, np.ndarray]:
    """The tensors that HF would save for `model`, by name."""
    return {
        name: _to_tensor(leaf, rule_for(canonical(name)).layout)
        for name, leaf in _named_leaves(model)
        if _is_weight(leaf)
    }


def load_weights(
    build: Callable[[PRNGKeyArray], Model],
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: Any,
    key: PRNGKeyArray | None,
) -> Model:
    """The model that `build` makes from a key, with the weights of a checkpoint.

    `build` is only traced, so that no weights are drawn but those of a head that the
    checkpoint lacks. See `PretrainedModel.from_pretrained`.
    """
    template = eqx.filter_eval_shape(build, jax.random.key(0))
    shapes = {canonical(n): x for n, x in _named_leaves(template) if _is_weight(x)}
    stored = _match(template, shapes, tensors, key)
    dtype = _floating_dtype(dtype)
    # The largest first, when there is least beside them in memory.
    by_size = sorted(stored, key=lambda name: stored[name].nbytes, reverse=True)
    arrays = {
        name: _from_tensor(name, stored[name], shapes[name], dtype) for name in by_size
    }
    dtype = dtype or next((x.dtype for x in arrays.values()), jnp.float32)
    absent = {name: rule_for(name).absent for name in shapes if name not in arrays}
    heads = [name for name, meaning in absent.items() if meaning is Absent.NEW_HEAD]
    arrays |= _draw_heads(build, heads, dtype, key)
    for name, meaning in absent.items():
        if meaning is Absent.ZEROS:
            arrays[name] = Buffer(jnp.zeros(shapes[name].bits.shape, dtype))
    leaves = [arrays.get(canonical(n), x) for n, x in _named_leaves(template)]
    return jtu.tree_unflatten(jtu.tree_structure(template, is_leaf=_is_weight), leaves)


def _match(
    template: Any,
    shapes: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    key: PRNGKeyArray | None,
) -> dict[str, StoredTensor]:
    """The tensor of each array, where there is one.

    **Raises** `CheckpointError` with all that does not match.
    """
    problems: list[str] = []
    by_name: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if canonical(name) in by_name:
            problems.append(f"{name}: present twice, with and without `model.`")
        by_name[canonical(name)] = tensor
    tied = template.config.tie_word_embeddings
    decoder_only = "encoder.embed_positions.weight" not in shapes
    matched: dict[str, StoredTensor] = {}
    used: set[str] = set()
    for name, leaf in shapes.items():
        candidates = [s for s in sources(name, tied=tied) if s in by_name]
        used.update(candidates)
        rule = rule_for(name)
        if candidates:
            matched[name] = by_name[candidates[0]]
            problems += _shape_problems(name, matched[name], leaf, rule.layout)
            if tied:
                problems += _tying_problems(candidates, by_name)
        elif rule.absent is Absent.ERROR:
            problems.append(f"{name}: missing")
        elif rule.absent is Absent.NEW_HEAD and key is None:
            problems.append(f"{name}: missing; pass key= to start with a new head")
    left = [
        name
        for name in by_name
        if name not in used and not is_ignorable(name, decoder_only=decoder_only)
    ]
    problems += [f"{name}: unexpected" for name in left if is_trunk(name)]
    if problems:
        raise CheckpointError(
            f"The checkpoint does not fit {type(template).__name__} with its config:\n  "
            + "\n  ".join(problems)
        )
    if others := [name for name in left if not is_trunk(name)]:
        warnings.warn(
            f"{type(template).__name__} has no use for these tensors of the checkpoint: "
            f"{', '.join(others)}.",
            stacklevel=2,
        )
    return matched


def _shape_problems(
    name: str, tensor: StoredTensor, leaf: Any, layout: Layout
) -> list[str]:
    if layout is Layout.BUFFER:
        return []
    expected = leaf.shape[::-1] if layout is Layout.TRANSPOSED else leaf.shape
    if tensor.shape == expected:
        return []
    return [
        f"{name}: the checkpoint has the shape {list(tensor.shape)}, the config calls for "
        f"{list(expected)}"
    ]


def _tying_problems(names: list[str], tensors: Mapping[str, StoredTensor]) -> list[str]:
    """What is wrong with several copies of one tied tensor: they may differ."""
    if len(names) == 1:
        return []
    first = tensors[names[0]]
    return [
        f"{name}: differs from {names[0]}, though the config ties them; if they are meant "
        "to differ, set tie_word_embeddings to false"
        for name in names[1:]
        if not _is_same(tensors[name], first)
    ]


def _is_same(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors agree bit for bit, NaNs included."""
    if a == b:
        return True
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    bits = f"u{a.dtype.itemsize}"
    return np.array_equal(a.load().view(bits), b.load().view(bits))


def _floating_dtype(dtype: Any) -> Any:
    if dtype is None:
        return None
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype, or None; it is {dtype}.")
    return dtype


def _draw_heads(
    build: Callable[[PRNGKeyArray], Any],
    names: list[str],
    dtype: Any,
    key: PRNGKeyArray | None,
) -> dict[str, Array]:
    """New weights for the arrays `names` of the model, and for no others."""
    if not names or key is None:
        return {}
    warnings.warn(
        f"The checkpoint has no {', '.join(names)}: drawn at random from key.",
        stacklevel=2,
    )

    @jax.jit
    def draw(key: PRNGKeyArray) -> dict[str, Array]:
        leaves = {canonical(n): x for n, x in _named_leaves(build(key))}
        return {name: leaves[name].astype(dtype) for name in names}

    return draw(key)


def _from_tensor(name: str, tensor: StoredTensor, leaf: Any, dtype: Any) -> Any:
    layout, dtype = rule_for(name).layout, dtype or tensor.dtype
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise CheckpointError(f"{name} is stored as {tensor.dtype}, not as floats.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise CheckpointError(
            f"Weights of {dtype} need JAX's 64-bit mode: enable jax_enable_x64, or pass "
            "dtype=jax.numpy.float32."
        )
    value = tensor.load().astype(dtype, copy=False)
    if layout is Layout.BUFFER:
        return Buffer(_fit_width(value, leaf.bits.shape[-1]))
    # On the CPU JAX takes over the memory, unless it has to lay it out anew.
    return jax.device_put(value.T if layout is Layout.TRANSPOSED else value)


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


def _to_tensor(leaf: Any, layout: Layout) -> np.ndarray:
    if layout is Layout.BUFFER:
        return np.asarray(leaf.value)
    return np.asarray(leaf).T if layout is Layout.TRANSPOSED else np.asarray(leaf)


def _named_leaves(model: Any) -> list[tuple[str, Any]]:
    """The leaves of `model`, buffers among them, by the names PyTorch would give them."""
    leaves = jtu.tree_leaves_with_path(model, is_leaf=_is_weight)
    return [(jtu.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, Buffer | jax.Array | np.ndarray | jax.ShapeDtypeStruct)
