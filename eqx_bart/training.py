"""What training wants of a model: what is trained, in which precision, at what memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .adapters import has_adapters, is_adapted
from .checkpoint.weight_map import canonical
from .decoder import BartDecoder
from .encoder import BartEncoder
from .layers import Checkpointing, with_static


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

    **Returns** a pytree of booleans with the structure of `model`. The names of the
    arguments are those of HF's examples for sequence-to-sequence models.
    """
    adapted = has_adapters(model)

    def is_trained(path: Any, leaf: Any) -> bool:
        name = canonical(jtu.keystr(path, simple=True, separator="."))
        is_embedding = name.startswith("shared.") or ".embed_" in name
        is_frozen = (freeze_embeds and is_embedding) or (
            freeze_encoder and name.startswith("encoder.")
        )
        is_frozen |= adapted and not is_adapted(name)
        return eqx.is_inexact_array(leaf) and not is_frozen

    return jtu.tree_map_with_path(is_trained, model)


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
        return with_static(part, checkpointing=setting) if is_stack(part) else part

    return jax.tree.map(changed, model, is_leaf=is_stack)
