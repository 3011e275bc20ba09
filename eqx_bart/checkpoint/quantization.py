"""A model in 8 bits, and which parts of a checkpoint are."""

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..nn.embedding import Embedding
from ..nn.linear import AbstractLinear, Linear, LowRankLinear
from ..nn.quantized import Int8Embedding, Int8Linear
from .names import canonical, ends_with, fitting, map_parts, named_parts


ModelT = TypeVar("ModelT", bound=eqx.Module)

_IN_FLOATS = (Linear, Embedding)
_IN_8_BITS = (Int8Linear, Int8Embedding)


def quantize(
    model: ModelT,
    *,
    keep: str | Sequence[str] = (),
    calibrate: Callable[[ModelT], Any] | None = None,
    migration_strength: float = 0.5,
) -> ModelT:
    """`model` in 8 bits: the linear maps of its layers, a language-modelling head, and the
    tables of token embeddings, which are three quarters to all of a model's memory.

    What is multiplied by these weights is rounded to 8 bits as it comes, with a scale for
    each row, and sums are exact; on CPUs these products take less time than in floats. All
    else, and other parts than `Linear` and `Embedding`, stays as it is. The weights are no
    longer parameters: for training, put adapters beside them with `lora`.

    **Arguments:**

    - `keep`: what stays in floats, by the ends of names, such as `"fc2"`, `"shared"` or
        `"decoder.layers.0.fc1"`; or a regular expression for whole names.
    - `calibrate`: calls the model with typical inputs, for SmoothQuant: entries of inputs
        that are large are made smaller, and the weights that multiply them larger.
    - `migration_strength`: how much of it, from 0 to 1.

    **Raises** `ValueError` if the model has adapters or is in 8 bits already, or if an
    entry of `keep` fits nothing.

    Sources: Dettmers et al. 2022 (arXiv:2208.07339), section 2.1; Xiao et al. 2022
    (arXiv:2211.10438), section 4, for `calibrate`.
    """
    if is_quantized(model):
        raise ValueError("The model is in 8 bits already.")
    if named_parts(model, LowRankLinear):
        raise ValueError(
            "The model has adapters: add them to the weights first, with merge_lora; or "
            "quantize first and then put them beside, with lora."
        )
    parts = named_parts(model, _IN_FLOATS)
    names = {name for name, part in parts.items() if _is_quantized(name, part)}
    if keep:
        names -= fitting(names, keep, "linear map or table of tokens")
    largest = {} if calibrate is None else _largest_inputs(model, names, calibrate)
    factors = {
        name: _smoothing(parts[name].weight, x, migration_strength)
        for name, x in largest.items()
    }

    def changed(name: str, part: Linear | Embedding) -> Any:
        return _in_8_bits(part, factors.get(name)) if name in names else part

    return map_parts(changed, model, _IN_FLOATS)


def is_quantized(model: eqx.Module) -> bool:
    """Whether some part of `model` is in 8 bits."""
    return bool(named_parts(model, _IN_8_BITS))


def quantized_as(model: ModelT, names: Collection[str]) -> ModelT:
    """`model` with those parts in 8 bits of which the canonical `names` of a checkpoint's
    tensors say so."""

    def changed(name: str, part: Linear | Embedding) -> Any:
        name = canonical(name)
        if f"{name}.qweight" not in names:
            return part
        is_smoothed = f"{name}.smoothing" in names
        return _in_8_bits(part, jnp.ones_like(part.weight[:, 0]) if is_smoothed else None)

    return map_parts(changed, model, _IN_FLOATS)


def _in_8_bits(part: Linear | Embedding, smoothing: Array | None = None) -> Any:
    if isinstance(part, Embedding):
        return Int8Embedding(part)
    return Int8Linear(part, smoothing)


def _is_quantized(name: str, part: Linear | Embedding) -> bool:
    """Whether `quantize` changes a part: not the head of a classifier, nor one's own."""
    is_table = isinstance(part, Embedding)
    return is_table or ".layers." in name or ends_with(name, "lm_head")


def _smoothing(weight: Array, largest: Array, strength: float) -> Array:
    """What the inputs of a linear map are multiplied by; `largest` are their largest
    entries. Xiao et al. 2022, equation 4."""
    weights = jnp.max(jnp.abs(weight), axis=1)
    factors = weights ** (1 - strength) / largest.astype(weights.dtype) ** strength
    return jnp.where((factors > 0) & jnp.isfinite(factors), factors, 1)


class _Observed(AbstractLinear):
    """A linear map that tells how large its inputs are."""

    linear: AbstractLinear
    tell: Callable[[Array], None] = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        jax.debug.callback(self.tell, jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - 1))))
        return self.linear(x)


def _largest_inputs(
    model: ModelT, names: Collection[str], calibrate: Callable[[ModelT], Any]
) -> Mapping[str, Array]:
    """The largest entries of the inputs of each linear map, while the model is called.

    **Raises** `ValueError` if none of them is used.
    """
    seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def observed(name: str, part: Linear) -> AbstractLinear:
        tell = functools.partial(_keep_maximum, seen[name])
        return _Observed(part, tell) if name in names else part

    calibrate(map_parts(observed, model, Linear))
    jax.effects_barrier()
    largest = {name: jnp.asarray(values[0]) for name, values in seen.items() if values}
    if not largest:
        raise ValueError("calibrate has not called the model that it was given.")
    return largest


def _keep_maximum(found: list[np.ndarray], new: Array) -> None:
    found[:] = [np.maximum(found[0], new) if found else np.asarray(new)]
