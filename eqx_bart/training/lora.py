"""Low-rank adaptation: small products are added to the weights of a model and trained,
while the weights themselves stay as they are.

Source: Hu et al. 2021 (arXiv:2106.09685). Names are those of HF's PEFT, whose files
`eqx_bart.training.peft` reads and writes.
"""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..checkpoint.names import fitting, map_parts, named_parts
from ..nn.linear import AbstractLinear, Linear, LowRankLinear
from ..nn.quantized import Int8Linear


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

    **Raises** `ValueError` if the rank is less than 1, if a target fits nothing or a linear
    map of your own, or if there are adapters already.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1; HF's PEFT.
    """
    if rank < 1:
        raise ValueError(f"The rank must be 1 or more; it is {rank}.")
    if has_adapters(model):
        raise ValueError("The model has adapters already: merge them with merge_lora.")
    chosen = fitting(linears(model), targets, "linear map inside the layers")
    scaling = (rank if alpha is None else alpha) / rank

    def adapted(name: str, linear: AbstractLinear) -> AbstractLinear:
        if name not in chosen:
            return linear
        linear = adaptable(name, linear)
        d_in, d_out = linear.shape
        dtype = jnp.promote_types(linear.dtype, jnp.float32)
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        bound = d_in**-0.5
        lora_a = jax.random.uniform(own_key, (d_in, rank), dtype, -bound, bound)
        return LowRankLinear(linear, lora_a, jnp.zeros((rank, d_out), dtype), scaling)

    return map_parts(adapted, model, AbstractLinear)


def merge_lora(model: ModelT) -> ModelT:
    """`model` without adapters: they are added to the weights.

    **Raises** `ValueError` if it has none, or if they are beside weights in 8 bits.
    """
    if not has_adapters(model):
        raise ValueError("The model has no adapters to merge.")

    def merged(name: str, linear: AbstractLinear) -> AbstractLinear:
        if not isinstance(linear, LowRankLinear):
            return linear
        product = jnp.matmul(linear.lora_A, linear.lora_B, precision="highest")
        base = linear.base_layer
        if not isinstance(base, Linear):
            raise ValueError(
                f"{name} is a {type(base).__name__}, to whose weights nothing can be "
                "added: save the adapters alone with save_lora, and merge them into the "
                "model in float."
            )
        weight = base.weight.astype(product.dtype) + linear.scaling * product
        return eqx.tree_at(lambda x: x.weight, base, weight.astype(base.weight.dtype))

    return map_parts(merged, model, AbstractLinear)


def has_adapters(model: eqx.Module) -> bool:
    """Whether `model` has adapters."""
    return any(isinstance(linear, LowRankLinear) for linear in linears(model).values())


def adaptable(name: str, linear: AbstractLinear) -> Linear | Int8Linear:
    """`linear`, if an adapter can go beside it.

    **Raises** `ValueError` if it is one of the user's own.
    """
    if not isinstance(linear, Linear | Int8Linear):
        raise ValueError(
            f"{name} is a {type(linear).__name__}, whose sizes are not known: an adapter "
            "goes beside a Linear or an Int8Linear."
        )
    return linear


def linears(model: eqx.Module) -> dict[str, AbstractLinear]:
    """The linear maps inside the layers, by the names of HF's modules."""
    named = named_parts(model, AbstractLinear)
    return {name: x for name, x in named.items() if ".layers." in name}
