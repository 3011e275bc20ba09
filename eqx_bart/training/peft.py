"""The files of HF's PEFT, for the adapters of `eqx_bart.training.lora`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ..checkpoint.loading import from_tensor, to_tensors, writing
from ..checkpoint.matching import laid_out
from ..checkpoint.names import (
    canonical,
    ends_with,
    Leaf,
    map_parts,
    name_of,
    named_leaves,
)
from ..files.errors import CheckpointError
from ..files.formats import FORMATS
from ..files.json_files import read_json, write_json
from ..files.safetensors import in_file_order, write_safetensors
from ..files.tensors import StoredTensor
from ..files.writing import Files, replacing
from ..nn.linear import AbstractLinear, Linear, LowRankLinear
from ..nn.processes import on_host
from ..nn.quantized import Int8Linear
from .lora import adaptable, has_adapters, linears


ModelT = TypeVar("ModelT", bound=eqx.Module)

_PREFIX = "base_model.model."
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model"
_FILES = Files(_CONFIG, re.compile(r"adapter_config\.json|adapter_model\.\w+"))
_OF_GRADIENTS = ".lora_velora_embed"  # a tensor that nothing but VeLoRA's gradient reads
_HEAD = re.compile(r"classification_head\..+|qa_outputs\..+")
_TASK_TYPES = {
    "BartForCausalLM": "CAUSAL_LM",
    "BartForConditionalGeneration": "SEQ_2_SEQ_LM",
    "BartForQuestionAnswering": "QUESTION_ANS",
    "BartForSequenceClassification": "SEQ_CLS",
    "BartModel": "FEATURE_EXTRACTION",
}
# PEFT's settings that are read here, or that say nothing about what an adapter computes:
# how it was made and trained, what it was made for, what plain linear maps ignore.
_UNDERSTOOD = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",  # these four are read for the init_lora_weights of their names alone
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
    "velora_config",  # another gradient
}
# Those that mean a plain adapter at these values alone.
_NEUTRAL = {"peft_type": ("LORA",), "bias": ("none",)}
# How PEFT draws adapters beside weights that stay as they are, and in place of a part of
# them, which can be computed again. Its others need the data, or draw at random.
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_RESIDUAL_INITS = ("pissa", "olora")


def save_lora(
    model: eqx.Module, directory: str | Path, *, base_model_name_or_path: str | None = None
) -> None:
    """Writes the adapters, and a classification or question-answering head, so that HF's
    PEFT can read them: `adapter_config.json` and `adapter_model.safetensors`.

    Older adapters are replaced as a whole, as in `save_pretrained`.

    **Arguments:**

    - `directory`: where the files go, which is made if needed.
    - `base_model_name_or_path`: where the model came from, for PEFT's readers.

    **Raises** `ValueError` if there are no adapters, `OSError` if they cannot be written.
    """
    adapters = {n: x for n, x in linears(model).items() if isinstance(x, LowRankLinear)}
    if not adapters:
        raise ValueError("The model has no adapters to save: make some with lora.")
    tensors = {n: x for n, x in to_tensors(model).items() if _is_saved(canonical(n))}
    heads = {name.split(".")[0] for name in tensors if _HEAD.fullmatch(name)}
    config = _scales(adapters) | {
        "base_model_name_or_path": base_model_name_or_path,
        "modules_to_save": sorted(heads) or None,
        "peft_type": "LORA",
        "target_modules": sorted(adapters),
        "task_type": _TASK_TYPES.get(type(model).__name__),
    }
    stored = {
        _PREFIX + re.sub(r"\.(lora_[AB])$", r".\1.weight", name): tensor
        for name, tensor in tensors.items()
    }
    in_order = [stored[name] for name in in_file_order(stored)]
    with writing(model, in_order) as is_writer:
        if not is_writer:
            return
        with replacing(Path(directory), _FILES) as new:
            write_safetensors(new / f"{_WEIGHTS}.safetensors", stored)
            write_json(new, _CONFIG, config)


def load_lora(model: ModelT, directory: str | Path) -> ModelT:
    """`model` with the adapters, and the head if there is one, that `save_lora` or HF's
    PEFT wrote to `directory`.

    PiSSA and OLoRA train a part of the weights, beside what is left of them. Here they
    become adapters of twice the rank beside the whole weights, which compute the same. A
    dropout that PEFT has before its adapters is left out.

    **Raises** `ValueError` if the model has adapters already, or a linear map of the user's
    own where one belongs; `FileNotFoundError` if there is no config; `CheckpointError` if a
    file is malformed, does not fit the model, or has a setting that is not known to be
    harmless.

    Source: HF's PEFT; Meng et al. 2024 (arXiv:2404.02948) for PiSSA, Büyükakyüz 2024
    (arXiv:2406.01775) for OLoRA.
    """
    if has_adapters(model):
        raise ValueError("The model has adapters already: merge them with merge_lora.")
    directory = Path(directory)
    config = read_json(directory, _CONFIG)
    _check_config(directory, config)
    tensors = _read(directory)
    adapters: dict[str, LowRankLinear] = {}
    for name, linear in linears(model).items():
        a, b = (tensors.pop(f"{name}.lora_{x}", None) for x in "AB")
        if a is not None and b is not None:
            adapters[name] = _adapter(config, name, adaptable(name, linear), a, b)
        elif a is not None or b is not None:
            raise CheckpointError(f"{directory}: {name} has half of an adapter.")
    model = map_parts(lambda name, x: adapters.get(name) or x, model, AbstractLinear)
    return _with_heads(model, tensors)


def _check_config(directory: Path, config: Mapping[str, Any]) -> None:
    odd = {name: x for name, x in config.items() if not _is_understood(name, x)}
    if odd:
        name = "peft_type" if "peft_type" in odd else min(odd)
        raise CheckpointError(
            f"{directory / _CONFIG} has {name}={odd[name]!r}, with which adapters may "
            "compute something else than they would here. If PEFT can merge them, with "
            "merge_and_unload, load the model that its save_pretrained then writes."
        )


def _is_understood(name: str, value: Any) -> bool:
    """Whether the adapters of a config with this setting are known to be computed here as
    in PEFT. A setting that is not set, or switched off, has no effect."""
    if name == "init_lora_weights":
        return value is None or value in (*_PLAIN_INITS, *_RESIDUAL_INITS)
    if name in _NEUTRAL:
        return value in _NEUTRAL[name]
    return name in _UNDERSTOOD or value is None or value is False or value in ([], {})


def _with_heads(model: ModelT, tensors: Mapping[str, StoredTensor]) -> ModelT:
    """`model` with the `tensors` of its head."""
    leaves = {leaf.name: leaf for leaf in named_leaves(model)}
    for name, tensor in tensors.items():
        if not _HEAD.fullmatch(name) or name not in leaves:
            raise CheckpointError(f"The model has no place for the adapter's {name}.")
        expected = laid_out(leaves[name].value.shape, leaves[name])
        if tensor.shape != expected:
            raise CheckpointError(
                f"The adapter's {name} has the shape {list(tensor.shape)}; the model's is "
                f"{list(expected)}."
            )

    def changed(path: Any, leaf: Any) -> Any:
        name = name_of(model, path)
        if name not in tensors:
            return leaf
        return from_tensor(name, tensors[name], leaves[name], leaf.dtype)

    return jtu.tree_map_with_path(changed, model)


def _read(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of the adapters in `directory`, by this library's names."""
    for format_ in FORMATS:
        for suffix in format_.suffixes:
            file = directory / (_WEIGHTS + suffix)
            if file.is_file():
                return {
                    re.sub(
                        r"\.(lora_[AB])\.weight$", r".\1", name.removeprefix(_PREFIX)
                    ): tensor
                    for name, tensor in format_.read(file).items()
                    if not name.endswith(_OF_GRADIENTS)
                }
    raise CheckpointError(f"{directory} has no {_WEIGHTS}.safetensors.")


def _adapter(
    config: Mapping[str, Any],
    name: str,
    linear: Linear | Int8Linear,
    a: StoredTensor,
    b: StoredTensor,
) -> LowRankLinear:
    """The adapter of the linear map of this name."""
    d_in, d_out = linear.shape
    rank = a.shape[0] if a.shape else 0
    if rank < 1 or a.shape != (rank, d_in) or b.shape != (d_out, rank):
        raise CheckpointError(
            f"The adapter of {name} has the shapes {list(a.shape)} and {list(b.shape)}; "
            f"the model calls for [rank, {d_in}] and [{d_out}, rank]."
        )
    alpha = _alpha(config, name)
    lora_a, lora_b = (
        from_tensor(name, x, Leaf(name, None, is_transposed=True), None) for x in (a, b)
    )
    scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    init = config.get("init_lora_weights")
    if init in _RESIDUAL_INITS:
        if not isinstance(linear, Linear):
            raise CheckpointError(
                f"An adapter that began as {init!r} calls for the weights of {name} in "
                "floats, and the model has them in 8 bits."
            )
        first_a, first_b = _first_adapter(init, linear, rank, scaling)
        lora_a = _joined(lora_a, first_a, axis=1)
        lora_b = _joined(lora_b, -first_b, axis=0)
    return LowRankLinear(linear, lora_a, lora_b, scaling)


def _first_adapter(
    init: str, linear: Linear, rank: int, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """The adapter that PEFT has first, and whose product it takes from the weight: the
    largest singular values (PiSSA), or the first columns of Q and rows of R (OLoRA)."""
    weight = on_host(linear.weight).astype(np.float32)
    if init == "olora":
        q, r = np.linalg.qr(weight.T)
        return r[:rank].T, q[:, :rank].T
    if scaling <= 0:
        raise CheckpointError(f"PiSSA calls for a lora_alpha above 0; scaled by {scaling}.")
    u, values, v = np.linalg.svd(weight, full_matrices=False)
    roots = np.sqrt(values[:rank] / np.float32(scaling))
    return u[:, :rank] * roots, roots[:, None] * v[:rank]


def _joined(a: Array, b: np.ndarray, *, axis: int) -> Array:
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return jnp.concatenate([a.astype(dtype), jnp.asarray(b, dtype)], axis)


def _alpha(config: Mapping[str, Any], name: str) -> float:
    """The scale of an adapter. PEFT's patterns are regular expressions, which are not safe
    to take from a file: those that are not names, or ends of names, are refused."""
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    is_dict = isinstance(patterns, dict)
    if not is_dict or not all(re.fullmatch(r"[\w.]+", name) for name in patterns):
        raise CheckpointError(f"alpha_pattern={patterns!r} does not go by names.")
    alpha = next((a for p, a in patterns.items() if ends_with(name, p)), alpha)
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"The adapter of {name} has lora_alpha={alpha!r}, no number.")
    return float(alpha)


def _scales(adapters: Mapping[str, LowRankLinear]) -> dict[str, Any]:
    """The ranks and alphas of adapters, as in PEFT's config."""
    ranks = {name: adapter.lora_A.shape[1] for name, adapter in adapters.items()}
    alphas = {name: x.scaling * ranks[name] for name, x in adapters.items()}
    (rank, *_), (alpha, *_) = ranks.values(), alphas.values()
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
    }


def _is_saved(name: str) -> bool:
    """Whether the array of this canonical name belongs to an adapter, or to a head."""
    return re.search(r"\.lora_[AB]$", name) is not None or _HEAD.fullmatch(name) is not None
