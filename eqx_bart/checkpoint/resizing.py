"""Changing the number of a model's tokens or positions."""

import zlib
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PRNGKeyArray

from ..config import BartConfig
from ..nn.embedding import (
    AbstractPositionalEmbedding,
    LearnedPositionalEmbedding,
    POSITION_OFFSET,
)
from ..nn.stored import AbstractStored
from .names import canonical, Entries, is_weight, map_parts, name_of, rule_for
from .quantization import is_quantized


Model = TypeVar("Model", bound=eqx.Module)


def resize_vocabulary(model: Model, config: BartConfig, key: PRNGKeyArray | None) -> Model:
    """`model` with as many tokens as `config` has. New ones are drawn from `key` or,
    without one, the mean of the others; see `PretrainedModel.resize_token_embeddings`.

    **Raises** `ValueError` if the model is in 8 bits.
    """
    if is_quantized(model):
        raise ValueError(
            "The vocabulary of a model in 8 bits has a fixed size: resize it, and then "
            "quantize."
        )

    def resized(path: Any, leaf: Any) -> Any:
        name = canonical(name_of(model, path))
        rule = rule_for(name)
        if not is_weight(leaf) or rule.entries is not Entries.TOKENS:
            return leaf
        shape = _with_size(leaf.shape, rule.axis, config.vocab_size)
        if isinstance(leaf, AbstractStored):
            value = leaf.value
            new = jnp.zeros(shape, value.dtype)
            return leaf.with_value(fit_entries(name, value, shape, new))
        if key is None:
            mean = jnp.mean(leaf, rule.axis, jnp.float32, keepdims=True).astype(leaf.dtype)
            new = jnp.broadcast_to(mean, shape)
        else:
            new = _drawn(name, shape, leaf.dtype, config, key)
        return fit_entries(name, leaf, shape, new)

    return jtu.tree_map_with_path(resized, model, is_leaf=is_weight)


def resize_positions(model: Model, config: BartConfig, key: PRNGKeyArray | None) -> Model:
    """`model` with as many positions as `config` has. New ones are drawn from `key` or,
    without one, copies; see `PretrainedModel.resize_position_embeddings`.

    **Raises** `ValueError` if the model has positions of another kind than BART's.
    """
    size = config.max_position_embeddings

    def resized(name: str, part: AbstractPositionalEmbedding) -> Any:
        if not isinstance(part, LearnedPositionalEmbedding):
            raise ValueError(
                f"{name} is a {type(part).__name__}, which has no table to resize: put "
                f"one for {size} positions in its place, with equinox.tree_at."
            )
        table = part.weight
        shape = _with_size(table.shape, 0, size + POSITION_OFFSET)
        if key is None:
            places = jnp.arange(size) % part.max_positions + POSITION_OFFSET
            new = jnp.concatenate([table[:POSITION_OFFSET], table[places]])
        else:
            new = _drawn(name, shape, table.dtype, config, key)
        table = fit_entries(canonical(f"{name}.weight"), table, shape, new)
        return eqx.tree_at(lambda part: part.weight, part, table)

    return map_parts(resized, model, AbstractPositionalEmbedding)


def fit_entries(
    name: str, array: Array, shape: tuple[int, ...], new: Array | None
) -> Array:
    """The array of this name, cut to a `shape` with fewer tokens or positions, or filled up
    from `new`, which has this shape, to one with more."""
    axis = rule_for(name).axis
    size = min(array.shape[axis], shape[axis])
    kept = jax.lax.slice_in_dim(array, 0, size, axis=axis)
    if size == shape[axis]:
        return kept
    assert new is not None
    added = jax.lax.slice_in_dim(new, size, shape[axis], axis=axis)
    return jnp.concatenate([kept, added], axis=axis)


def _with_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _drawn(
    name: str, shape: tuple[int, ...], dtype: Any, config: BartConfig, key: PRNGKeyArray
) -> Array:
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return config.init_std * jax.random.normal(own_key, shape, dtype)
