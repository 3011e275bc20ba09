"""What training wants of a model: what is trained, in which precision, at what memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ..models.decoder import BartDecoder
from ..models.encoder import BartEncoder
from ..models.language_model import LanguageModel
from ..nn.embedding import AbstractPositionalEmbedding, Embedding
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

    All arrays of floats are, which leaves out buffers such as `final_logits_bias`. Of a
    model with adapters these alone, and a classification or question-answering head; see
    `lora`.

    **Arguments:**

    - `freeze_embeds`: not the tables of tokens and positions, nor a head tied to them.
    - `freeze_encoder`: not the encoder; a table of tokens that it shares with the decoder
        is trained.

    Encoders and embeddings are found by their types, wherever they are in `model`.

    **Returns** a pytree of booleans with the structure of `model`. The names of the
    arguments are those of HF's examples for sequence-to-sequence models.

    **Raises** `ValueError` if there is nothing of what is to be frozen.
    """
    kinds: list[tuple[type, ...]] = []
    if freeze_embeds:
        kinds.append((Embedding, AbstractPositionalEmbedding))
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
    """Whether the array at the end of this way, in a model with adapters, belongs to one of
    them, or to what is neither of the trunk nor a language-modelling head."""
    if isinstance(way[-1][0], LowRankLinear):
        return True
    return not any(
        isinstance(node, BartEncoder | BartDecoder | Embedding)
        or (isinstance(node, LanguageModel) and key.name == "lm_head")
        for node, key in way
    )


def cast(model: ModuleT, dtype: Any) -> ModuleT:
    """`model` with its floats in another dtype.

    For mixed precision, cast within the function that is differentiated: the gradients
    come out in the dtype of the model that is cast, float32 say, which the optimiser
    updates. Products are summed, and softmax, layer norm and the loss computed, in
    float32 whatever the dtype. bfloat16 has float32's range and needs no loss scale. In
    half precision, derivatives are taken in reverse mode: `jax.grad`, not `jax.jvp`.

    **Raises** `ValueError` if `dtype` is no floating dtype.
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
    """`model`, keeping less in memory for the gradient: of each layer its input alone.

    The rest is computed again when the gradient is taken, for about a third more time. On a
    CPU, XLA begins that at once, for the sake of concurrency, and nothing is saved, unless
    the program is compiled with `compiler_options={"xla_cpu_scheduler_type":
    "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}`, which `jax.jit` and `eqx.filter_jit` take.

    **Arguments:**

    - `value`: whether to do so, as in `eqx.nn.inference_mode`.
    - `policy`: what else to keep; see `jax.checkpoint_policies`.

    Source: Chen et al. 2016 (arXiv:1604.06174); HF's `gradient_checkpointing_enable`.
    """
    setting = Checkpointing(policy) if value else None

    def is_stack(part: Any) -> bool:
        return isinstance(part, BartEncoder | BartDecoder)

    def changed(part: Any) -> Any:
        if not is_stack(part):
            return part
        return eqx.tree_at(
            lambda stack: stack.checkpointing, part, setting, is_leaf=lambda x: x is None
        )

    return jax.tree.map(changed, model, is_leaf=is_stack)
