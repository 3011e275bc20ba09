"""Low-rank adaptation: small products beside the weights of a model are trained and saved,
and the weights themselves stay as they are.

Source: Hu et al. 2021 (arXiv:2106.09685). Names and files are those of HF's PEFT.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray

from .checkpoint.errors import CheckpointError
from .checkpoint.formats import FORMATS
from .checkpoint.json_files import read_json, write_json
from .checkpoint.matching import laid_out
from .checkpoint.safetensors import write_safetensors
from .checkpoint.tensors import StoredTensor
from .checkpoint.weight_map import canonical, named_leaves, rule_for
from .checkpoint.weights import from_tensor, to_tensors
from .checkpoint.writing import Files, replacing
from .layers import Linear, LowRank


ModelT = TypeVar("ModelT", bound=eqx.Module)

_PREFIX = "base_model.model."
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model"
_FILES = Files(_CONFIG, re.compile(r"adapter_config\.json|adapter_model\.\w+"))
_HEAD = re.compile(r"classification_head\..+|qa_outputs\..+")
_TASK_TYPES = {
    "BartForCausalLM": "CAUSAL_LM",
    "BartForConditionalGeneration": "SEQ_2_SEQ_LM",
    "BartForQuestionAnswering": "QUESTION_ANS",
    "BartForSequenceClassification": "SEQ_CLS",
    "BartModel": "FEATURE_EXTRACTION",
}
# Settings of PEFT under which its adapters compute something else, unless they are so.
_NEUTRAL = {"peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False}


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

    `trainable` then picks the adapters, and a classification or question-answering head,
    alone; `merge_lora` adds them to the weights, `save_lora` and `load_lora` keep them.

    **Arguments:**

    - `rank`: the inner dimension of the product.
    - `targets`: the ends of the names of linear maps inside the layers, such as `"q_proj"`
        or `"decoder.layers.0.fc1"`; or a regular expression for whole names.
    - `alpha`: the scale; `rank` by default.
    - `key`: to draw `lora_A`.

    Adapters are float32 at least, whatever the model is. **Raises** `ValueError` if the
    rank is less than 1, if a target fits nothing, or if there are adapters already.
    """
    if rank < 1:
        raise ValueError(f"The rank must be 1 or more; it is {rank}.")
    if has_adapters(model):
        raise ValueError("The model has adapters already: merge them with merge_lora.")
    chosen = _chosen(list(_linears(model)), targets)
    scaling = (rank if alpha is None else alpha) / rank

    def adapted(name: str, linear: Linear) -> Linear:
        if name not in chosen:
            return linear
        d_in, d_out = linear.weight.shape
        dtype = jnp.promote_types(linear.weight.dtype, jnp.float32)
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        bound = d_in**-0.5
        lora_a = jax.random.uniform(own_key, (d_in, rank), dtype, -bound, bound)
        adapter = LowRank(lora_a, jnp.zeros((rank, d_out), dtype), scaling)
        return _with(linear, adapter=adapter)

    return _map_linears(adapted, model)


def merge_lora(model: ModelT) -> ModelT:
    """`model` with its adapters added to the weights, and none left.

    **Raises** `ValueError` if it has none.
    """
    if not has_adapters(model):
        raise ValueError("The model has no adapters to merge.")

    def merged(_: str, linear: Linear) -> Linear:
        adapter = linear.adapter
        if adapter is None:
            return linear
        product = jnp.matmul(adapter.lora_A, adapter.lora_B, precision="highest")
        weight = linear.weight + adapter.scaling * product
        return _with(linear, weight=weight.astype(linear.weight.dtype), adapter=None)

    return _map_linears(merged, model)


def has_adapters(model: eqx.Module) -> bool:
    """Whether `model` has adapters."""
    return any(linear.adapter is not None for linear in _linears(model).values())


def is_adapted(name: str) -> bool:
    """Whether the array of this canonical name is trained in a model with adapters."""
    return ".adapter." in name or _HEAD.fullmatch(name) is not None


def save_lora(
    model: eqx.Module, directory: str | Path, *, base_model_name_or_path: str | None = None
) -> None:
    """Writes the adapters, and a classification or question-answering head, as HF's PEFT
    does, which reads them: `adapter_config.json` and `adapter_model.safetensors`.

    They take the place of older ones as a whole, as in `save_pretrained`.

    **Arguments:**

    - `base_model_name_or_path`: where the model came from, for PEFT's readers.

    **Raises** `ValueError` if there are no adapters, `OSError` if they cannot be written.
    """
    adapters = {n: x.adapter for n, x in _linears(model).items() if x.adapter is not None}
    if not adapters:
        raise ValueError("The model has no adapters to save: make some with lora.")
    tensors = {n: x for n, x in to_tensors(model).items() if is_adapted(canonical(n))}
    heads = {name.split(".")[0] for name in tensors if _HEAD.fullmatch(name)}
    config = _scales(adapters) | {
        "base_model_name_or_path": base_model_name_or_path,
        "modules_to_save": sorted(heads) or None,
        "peft_type": "LORA",
        "target_modules": sorted(adapters),
        "task_type": _TASK_TYPES.get(type(model).__name__),
    }
    with replacing(Path(directory), _FILES) as new:
        stored = {
            _PREFIX + re.sub(r"\.adapter\.(lora_[AB])$", r".\1.weight", name): tensor
            for name, tensor in tensors.items()
        }
        write_safetensors(new / f"{_WEIGHTS}.safetensors", stored)
        write_json(new, _CONFIG, config)


def load_lora(model: ModelT, directory: str | Path) -> ModelT:
    """`model`, without adapters so far, with those that `save_lora` or HF's PEFT wrote to
    a directory, and with the heads that are there.

    **Raises** `ValueError` if the model has adapters already, `FileNotFoundError` if there
    is no config, `CheckpointError` if a file is malformed, does not fit the model, or has
    a kind of adapter that is not supported.
    """
    if has_adapters(model):
        raise ValueError("The model has adapters already: merge them with merge_lora.")
    directory = Path(directory)
    config = read_json(directory, _CONFIG)
    for name, value in _NEUTRAL.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"{directory / _CONFIG} has {name}={config[name]!r}; only {value!r} is "
                "supported."
            )
    tensors = _read(directory)
    adapters: dict[str, LowRank] = {}
    for name, linear in _linears(model).items():
        a, b = (tensors.pop(f"{name}.adapter.lora_{x}", None) for x in "AB")
        if a is not None and b is not None:
            adapters[name] = _adapter(config, name, linear, a, b)
        elif a is not None or b is not None:
            raise CheckpointError(f"{directory}: {name} has half of an adapter.")
    model = _map_linears(lambda name, x: _with(x, adapter=adapters.get(name)), model)
    return _with_heads(model, tensors)


def _with_heads(model: ModelT, tensors: Mapping[str, StoredTensor]) -> ModelT:
    """`model` with the `tensors` of its head."""
    leaves = dict(named_leaves(model))
    for name, tensor in tensors.items():
        if not _HEAD.fullmatch(name) or name not in leaves:
            raise CheckpointError(f"The model has no place for the adapter's {name}.")
        expected = laid_out(leaves[name].shape, rule_for(name).layout)
        if tensor.shape != expected:
            raise CheckpointError(
                f"The adapter's {name} has the shape {list(tensor.shape)}; the model's is "
                f"{list(expected)}."
            )

    def changed(path: Any, leaf: Any) -> Any:
        name = jtu.keystr(path, simple=True, separator=".")
        if name not in tensors:
            return leaf
        return from_tensor(name, tensors[name], leaf, leaf.dtype)

    return jtu.tree_map_with_path(changed, model)


def _read(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of the adapters in `directory`, by the names that arrays have here."""
    for format_ in FORMATS:
        for suffix in format_.suffixes:
            file = directory / (_WEIGHTS + suffix)
            if file.is_file():
                return {
                    re.sub(
                        r"\.(lora_[AB])\.weight$",
                        r".adapter.\1",
                        name.removeprefix(_PREFIX),
                    ): tensor
                    for name, tensor in format_.read(file).items()
                }
    raise CheckpointError(f"{directory} has no {_WEIGHTS}.safetensors.")


def _adapter(
    config: Mapping[str, Any], name: str, linear: Linear, a: StoredTensor, b: StoredTensor
) -> LowRank:
    """The adapter of the linear map of this name."""
    d_in, d_out = linear.weight.shape
    rank = a.shape[0] if a.shape else 0
    if rank < 1 or a.shape != (rank, d_in) or b.shape != (d_out, rank):
        raise CheckpointError(
            f"The adapter of {name} has the shapes {list(a.shape)} and {list(b.shape)}; "
            f"the model calls for [rank, {d_in}] and [{d_out}, rank]."
        )
    alpha = _alpha(config, name)
    lora_a, lora_b = (
        from_tensor(f"{canonical(name)}.adapter.lora_A", x, None, None) for x in (a, b)
    )
    return LowRank(
        lora_a, lora_b, alpha / (rank**0.5 if config.get("use_rslora") else rank)
    )


def _alpha(config: Mapping[str, Any], name: str) -> float:
    """The scale of an adapter. PEFT's patterns are regular expressions, which a file had
    better not bring: those that are no names, or their ends, are refused."""
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    is_dict = isinstance(patterns, dict)
    if not is_dict or not all(re.fullmatch(r"[\w.]+", name) for name in patterns):
        raise CheckpointError(f"alpha_pattern={patterns!r} does not go by names.")
    alpha = next((a for p, a in patterns.items() if _ends_with(name, p)), alpha)
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"The adapter of {name} has lora_alpha={alpha!r}, no number.")
    return float(alpha)


def _scales(adapters: Mapping[str, LowRank]) -> dict[str, Any]:
    """The ranks and alphas of adapters, as PEFT's config has them."""
    ranks = {name: adapter.lora_A.shape[1] for name, adapter in adapters.items()}
    alphas = {name: x.scaling * ranks[name] for name, x in adapters.items()}
    (rank, *_), (alpha, *_) = ranks.values(), alphas.values()
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
    }


def _chosen(names: Sequence[str], targets: str | Sequence[str]) -> set[str]:
    """The names that `targets` fit; see `lora`."""
    if isinstance(targets, str):
        fitting = {targets: {name for name in names if re.fullmatch(targets, name)}}
    else:
        fitting = {t: {name for name in names if _ends_with(name, t)} for t in targets}
    unfit = [target for target, fit in fitting.items() if not fit]
    if unfit or not fitting:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(
            f"No linear map inside the layers fits the targets {unfit}; their names end in "
            f"{known}."
        )
    return set[str]().union(*fitting.values())


def _ends_with(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _linears(model: eqx.Module) -> dict[str, Linear]:
    """The linear maps inside the layers, by the names of HF's modules."""
    leaves = jtu.tree_leaves_with_path(model, is_leaf=_is_linear)
    named = {jtu.keystr(path, simple=True, separator="."): x for path, x in leaves}
    return {name: x for name, x in named.items() if _is_linear(x) and ".layers." in name}


def _map_linears(change: Callable[[str, Linear], Linear], model: ModelT) -> ModelT:
    """`model` with each of its `_linears` changed."""
    linears = _linears(model)

    def changed(path: Any, leaf: Any) -> Any:
        name = jtu.keystr(path, simple=True, separator=".")
        return change(name, leaf) if name in linears else leaf

    return jtu.tree_map_with_path(changed, model, is_leaf=_is_linear)


def _is_linear(leaf: Any) -> bool:
    return isinstance(leaf, Linear)


def _with(linear: Linear, **arrays: Any) -> Linear:
    """`linear` with other arrays in these fields."""
    return eqx.tree_at(
        lambda linear: [getattr(linear, name) for name in arrays],
        linear,
        list(arrays.values()),
        is_leaf=lambda leaf: leaf is None,
    )
