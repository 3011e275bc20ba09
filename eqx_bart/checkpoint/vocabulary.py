"""Changing the size of a model's vocabulary."""

import zlib
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PRNGKeyArray

from ..config import BartConfig
from ..nn.stored import AbstractStored
from .names import canonical, is_weight, name_of, rule_for


Model = TypeVar("Model", bound=eqx.Module)


def resize_vocabulary(model: Model, config: BartConfig, key: PRNGKeyArray | None) -> Model:
    """`model` with as many tokens as `config` has. New ones are drawn from `key` or,
    without one, the mean of the others; see `PretrainedModel.resize_token_embeddings`."""

    def resized(path: Any, leaf: Any) -> Any:
        name = canonical(name_of(model, path))
        axis = rule_for(name).vocab_axis if is_weight(leaf) else None
        if axis is None:
            return leaf
        shape = (*leaf.shape[:axis], config.vocab_size, *leaf.shape[axis + 1 :])
        if isinstance(leaf, AbstractStored):
            value = leaf.value
            new = jnp.zeros(shape, value.dtype)
            return leaf.with_value(fit_vocabulary(name, value, shape, new))
        if key is None:
            mean = jnp.mean(leaf, axis, jnp.float32, keepdims=True).astype(leaf.dtype)
            new = jnp.broadcast_to(mean, shape)
        else:
            own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            new = config.init_std * jax.random.normal(own_key, shape, leaf.dtype)
        return fit_vocabulary(name, leaf, shape, new)

    return jtu.tree_map_with_path(resized, model, is_leaf=is_weight)


def fit_vocabulary(
    name: str, array: Array, shape: tuple[int, ...], new: Array | None
) -> Array:
    """The array of this name, cut to a `shape` with fewer tokens, or filled up from `new`,
    which has this shape, to one with more tokens."""
    axis = rule_for(name).vocab_axis
    assert axis is not None
    size = min(array.shape[axis], shape[axis])
    kept = jax.lax.slice_in_dim(array, 0, size, axis=axis)
    if size == shape[axis]:
        return kept
    assert new is not None
    added = jax.lax.slice_in_dim(new, size, shape[axis], axis=axis)
    return jnp.concatenate([kept, added], axis=axis)
