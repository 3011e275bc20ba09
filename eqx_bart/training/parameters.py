"""How a model is trained: which parameters, in which precision, with how much memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ..checkpoint.names import map_parts
from ..models.encoder import BartEncoder
from ..models.language_model import LanguageModel
from ..models.stack import BartStack
from ..nn.embedding import AbstractEmbedding, AbstractPositionalEmbedding
from ..nn.linear import LowRankLinear
from ..nn.stack import Checkpointing
from ..nn.tree import along
from .lora import has_adapters


ModuleT = TypeVar("ModuleT", bound=eqx.Module)


def trainable(
    model: eqx.Module, *, freeze_embeds: bool = False, freeze_encoder: bool = False
) -> Any:
    """Which leaves of `model` to train: a filter for `eqx.partition`, `eqx.filter` and
    `optax.masked`.

    These are all arrays of floats, which leaves out buffers such as `final_logits_bias`. In
    a model with adapters, they are only the adapters, and a classification or
    question-answering head; see `lora`.

    **Arguments:**

    - `freeze_embeds`: do not train the tables of tokens and positions, nor a head tied to
        them.
    - `freeze_encoder`: do not train the encoder. A table of tokens that it shares with the
        decoder is still trained.

    Encoders and embeddings are found by their types, wherever they are in `model`.

    **Returns** a pytree of booleans with the structure of `model`.

    **Raises** `ValueError` if `model` does not have what is to be frozen.

    Source: HF's examples for sequence-to-sequence models, for the arguments' names.
    """
    kinds: list[tuple[type, ...]] = []
    if freeze_embeds:
        kinds.append((AbstractEmbedding, AbstractPositionalEmbedding))
    if freeze_encoder:
        kinds.append((BartEncoder,))
    found = set[tuple[type, ...]]()
    adapted = has_adapters(model)

    def is_trained(path: Any, leaf: Any) -> bool:
        way = list(along(model, path))
        kinds_here = {
            kind for kind in kinds if any(isinstance(node, kind) for node, _ in way)
        }
        found.update(kinds_here)
        if adapted and not _is_beside_weights(way):
            return False
        return eqx.is_inexact_array(leaf) and not kinds_here

    spec = jtu.tree_map_with_path(is_trained, model)
    for kind in kinds:
        if kind not in found:
            names = " and no ".join(x.__name__ for x in kind)
            raise ValueError(f"There is nothing to freeze: the model has no {names}.")
    return spec


def _is_beside_weights(way: list[tuple[Any, Any]]) -> bool:
    """Whether, in a model with adapters, the array at the end of this path is trained: it
    belongs to an adapter, or to neither the trunk nor a language-modelling head."""
    if isinstance(way[-1][0], LowRankLinear):
        return True
    return not any(
        isinstance(node, BartStack | AbstractEmbedding)
        or (isinstance(node, LanguageModel) and key.name == "lm_head")
        for node, key in way
    )


def cast(model: ModuleT, dtype: Any) -> ModuleT:
    """`model` with its floats in another dtype.

    For mixed precision, cast inside the function that is differentiated. The gradients then
    have the dtype of the model before the cast, such as float32, which the optimiser
    updates. Sums of products, softmax, layer norm and the loss are computed in float32
    whatever the dtype. bfloat16 has float32's range and needs no loss scale. In half
    precision, derivatives are taken in reverse mode: `jax.grad`, not `jax.jvp`.

    **Raises** `ValueError` if `dtype` is not a floating dtype.
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype; it is {dtype}.")
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, model
    )


def gradient_checkpointing(
    model: ModuleT,
    value: bool = True,  # noqa: FBT001, FBT002, as in `inference_mode`
    *,
    policy: Callable[..., Any] | None = None,
) -> ModuleT:
    """`model`, keeping less in memory for the gradient: only the input of each layer.

    The rest is computed again when the gradient is taken, which takes about a third more
    time. On a CPU, XLA computes it again too early, for concurrency, and no memory is
    saved, unless the program is compiled with `compiler_options={"xla_cpu_scheduler_type":
    "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}`, which `jax.jit` and `eqx.filter_jit` take.

    **Arguments:**

    - `value`: whether to turn this on or off, as in `eqx.nn.inference_mode`.
    - `policy`: what else to keep; see `jax.checkpoint_policies`.

    Source: Chen et al. 2016 (arXiv:1604.06174); HF's `gradient_checkpointing_enable`.
    """
    setting = Checkpointing(policy) if value else None

    def changed(_: str, stack: BartStack) -> BartStack:
        return eqx.tree_at(
            lambda stack: stack.checkpointing, stack, setting, is_leaf=lambda x: x is None
        )

    return map_parts(changed, model, BartStack)
