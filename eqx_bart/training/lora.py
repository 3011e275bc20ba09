"""Low-rank adaptation: small products are added to the weights of a model and trained,
while the weights themselves stay as they are.

Source: Hu et al. 2021 (arXiv:2106.09685). Names are those of HF's PEFT, whose files
`eqx_bart.training.peft` reads and writes.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray

from ..checkpoint.names import name_of
from ..nn.linear import AbstractLinear, Linear, LowRankLinear
from ..nn.matmul import at_least_float32


ModelT = TypeVar("ModelT", bound=eqx.Module)


def lora(
    model: ModelT,
    rank: int,
    targets: str | Sequence[str] = ("q_proj", "v_proj"),
    *,
    alpha: float | None = None,
    key: PRNGKeyArray,
) -> ModelT:
    """`model` with an adapter in each target: `x @ weight + alpha / rank * x @ lora_A @
    lora_B`, where `lora_B` is 0 at first.

    `trainable` then picks only the adapters, and a classification or question-answering
    head. `merge_lora` adds the adapters to the weights; `save_lora` and `load_lora` store
    them. Adapters are float32 or wider, whatever the dtype of the model.

    **Arguments:**

    - `rank`: the inner dimension of the product.
    - `targets`: the ends of the names of linear maps inside the layers, such as `"q_proj"`
        or `"decoder.layers.0.fc1"`; or a regular expression for whole names.
    - `alpha`: the scale; `rank` by default.
    - `key`: to draw `lora_A`.

    **Raises** `ValueError` if the rank is less than 1, if a target fits nothing, or if
    there are adapters already.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1; HF's PEFT.
    """
    if rank < 1:
        raise ValueError(f"The rank must be 1 or more; it is {rank}.")
    if has_adapters(model):
        raise ValueError("The model has adapters already: merge them with merge_lora.")
    chosen = _chosen(list(linears(model)), targets)
    scaling = (rank if alpha is None else alpha) / rank

    def adapted(name: str, linear: AbstractLinear) -> AbstractLinear:
        if name not in chosen:
            return linear
        assert isinstance(linear, Linear)
        d_in, d_out = linear.weight.shape
        dtype = at_least_float32(linear.weight)
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        bound = d_in**-0.5
        lora_a = jax.random.uniform(own_key, (d_in, rank), dtype, -bound, bound)
        return LowRankLinear(linear, lora_a, jnp.zeros((rank, d_out), dtype), scaling)

    return map_linears(adapted, model)


def merge_lora(model: ModelT) -> ModelT:
    """`model` without adapters: they are added to the weights.

    **Raises** `ValueError` if it has none.
    """
    if not has_adapters(model):
        raise ValueError("The model has no adapters to merge.")

    def merged(_: str, linear: AbstractLinear) -> AbstractLinear:
        if not isinstance(linear, LowRankLinear):
            return linear
        product = jnp.matmul(linear.lora_A, linear.lora_B, precision="highest")
        base = linear.base_layer
        assert isinstance(base, Linear)
        weight = base.weight.astype(product.dtype) + linear.scaling * product
        return eqx.tree_at(lambda x: x.weight, base, weight.astype(base.weight.dtype))

    return map_linears(merged, model)


def has_adapters(model: eqx.Module) -> bool:
    """Whether `model` has adapters."""
    return any(isinstance(linear, LowRankLinear) for linear in linears(model).values())


def _chosen(names: Sequence[str], targets: str | Sequence[str]) -> set[str]:
    """The names that `targets` fit; see `lora`."""
    if isinstance(targets, str):
        fitting = {targets: {name for name in names if re.fullmatch(targets, name)}}
    else:
        fitting = {t: {name for name in names if ends_with(name, t)} for t in targets}
    unfit = [target for target, fit in fitting.items() if not fit]
    if unfit or not fitting:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(
            f"No linear map inside the layers fits the targets {unfit}; their names end in "
            f"{known}."
        )
    return set[str]().union(*fitting.values())


def ends_with(name: str, end: str) -> bool:
    """Whether `end` is the last part, or parts, of a dotted name."""
    return f".{name}".endswith(f".{end}")


def linears(model: eqx.Module) -> dict[str, AbstractLinear]:
    """The linear maps inside the layers, by the names of HF's modules."""
    leaves = jtu.tree_leaves_with_path(model, is_leaf=_is_linear)
    named = {name_of(model, path): x for path, x in leaves if _is_linear(x)}
    return {name: x for name, x in named.items() if ".layers." in name}


def map_linears(
    change: Callable[[str, AbstractLinear], AbstractLinear], model: ModelT
) -> ModelT:
    """`model` with each of its `linears` changed."""
    names = linears(model)

    def changed(path: Any, leaf: Any) -> Any:
        name = name_of(model, path)
        return change(name, leaf) if _is_linear(leaf) and name in names else leaf

    return jtu.tree_map_with_path(changed, model, is_leaf=_is_linear)


def _is_linear(leaf: Any) -> bool:
    return isinstance(leaf, AbstractLinear)
