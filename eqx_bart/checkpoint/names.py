"""Which tensor of a checkpoint is which array of a module.

A module type declares how its arrays are stored (see `eqx_bart.nn.stored`), and attribute
paths are HF's names already. The table here has what does not follow from that: which names
HF has for a BART, so that they may not be absent; which other names they may have; and
which arrays have an entry for each token or position. Names are canonical here: without
the `model.` that a checkpoint of a model with a head puts before the names of its trunk,
and without what PyTorch's wrappers put into the middle of names.
"""

import dataclasses
import enum
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.tree_util as jtu
import numpy as np

from ..nn.stored import AbstractStored, is_inlined, is_transposed
from ..nn.tree import along


ModelT = TypeVar("ModelT")
PartT = TypeVar("PartT")


class Absent(enum.Enum):
    """What happens if a tensor is absent."""

    ERROR = "error"
    DRAWN = "drawn at random"
    ZEROS = "zeros"


class Entries(enum.Enum):
    """What an axis of an array has an entry for, so that it may be cut or lengthened."""

    TOKENS = "tokens"
    POSITIONS = "positions"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What applies to the names that `pattern` matches in full.

    `absent` says what happens without the tensor. `axis` is the axis of the array that has
    `entries`, if there is one.
    """

    pattern: str
    absent: Absent = Absent.ERROR
    entries: Entries | None = None
    axis: int = 0


_STACK = r"(encoder|decoder)\."
_LINEAR = r"(weight|bias|qweight|scales|smoothing)"

WEIGHT_MAP = (
    Rule(r"shared\.weight", entries=Entries.TOKENS),
    Rule(_STACK + r"embed_tokens\.weight", entries=Entries.TOKENS),
    Rule(rf"(shared|{_STACK}embed_tokens)\.(qweight|scales)"),
    Rule(_STACK + r"embed_positions\.weight", entries=Entries.POSITIONS),
    Rule(_STACK + r"layernorm_embedding\.(weight|bias)"),
    Rule(_STACK + r"layers\.\d+\.(self|encoder)_attn\.(q|k|v|out)_proj\." + _LINEAR),
    Rule(_STACK + r"layers\.\d+\.(self_attn|encoder_attn|final)_layer_norm\.(weight|bias)"),
    Rule(_STACK + r"layers\.\d+\.fc[12]\." + _LINEAR),
    Rule(r"lm_head\.weight", Absent.DRAWN, Entries.TOKENS, axis=1),
    Rule(r"final_logits_bias", Absent.ZEROS, Entries.TOKENS, axis=1),
)
#: For what is not in a BART: heads, and custom parts.
OTHER = Rule(r".*", Absent.DRAWN)

# Where embeddings are tied, the table of token embeddings has all of these names.
TIED = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)

# Where they are not tied, the encoder and the decoder may still have one table.
_UNTIED_FALLBACKS = {
    "shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    "encoder.embed_tokens.weight": ("shared.weight",),
    "decoder.embed_tokens.weight": ("shared.weight",),
}

# Tensors that a checkpoint may hold though the model does not need them: markers of old
# versions, what belongs to other heads and, for a decoder alone, to the encoder.
_IGNORABLE = (
    r"(encoder|decoder)\.version",
    r"lm_head\.weight",
    r"final_logits_bias",
    r"classification_head\..+",
    r"qa_outputs\..+",
)
_IGNORABLE_BY_DECODER = (r"shared\.weight", r"encoder\..+")
# What the wrappers of PyTorch for compilation, sharding and gradient checkpointing put into
# a name, wherever they wrap a module.
_WRAPPER = re.compile(
    r"(?<![^.])_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module)\."
)
_TRUNK = r"(shared|encoder|decoder)\..+"
# The tensor of a head that has a row for each label.
_LABEL_HEAD = r"(.+\.)?classification_head\.out_proj\.weight"


def canonical(name: str) -> str:
    """`name` without the prefix of a model with a head, and without wrappers."""
    return _WRAPPER.sub("", name).removeprefix("model.")


def rule_for(name: str) -> Rule:
    """The rule for a canonical name."""
    fitting = (rule for rule in WEIGHT_MAP if re.fullmatch(rule.pattern, name))
    return next(fitting, OTHER)


def sources(name: str, *, tied: bool) -> tuple[str, ...]:
    """The names that an array's tensor may have in a checkpoint, the usual one first."""
    if not tied:
        return (name, *_UNTIED_FALLBACKS.get(name, ()))
    return (name, *(other for other in TIED if other != name)) if name in TIED else (name,)


def is_ignorable(name: str, *, decoder_only: bool) -> bool:
    """Whether a model may leave this tensor of a checkpoint unread."""
    patterns = _IGNORABLE + (_IGNORABLE_BY_DECODER if decoder_only else ())
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def is_trunk(name: str) -> bool:
    """Whether a tensor belongs to the encoder-decoder itself, not to a head."""
    return re.fullmatch(_TRUNK, name) is not None


def is_label_head(name: str) -> bool:
    """Whether a tensor has a row for each label of a classifier."""
    return re.fullmatch(_LABEL_HEAD, name) is not None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of a model, and where it is in a checkpoint.

    **Fields:**

    - `name`: PyTorch's name for it.
    - `value`: an array, its shape, or a module that stands for one; or something that is
        not a weight.
    - `is_transposed`: whether it is stored as its transpose.
    """

    name: str
    value: Any
    is_transposed: bool

    @property
    def is_weight(self) -> bool:
        """Whether it is stored in checkpoints."""
        return is_weight(self.value)


def named_leaves(model: Any) -> list[Leaf]:
    """The leaves of `model`, in the order of its tree."""
    return [
        _named(model, path, leaf)
        for path, leaf in jtu.tree_leaves_with_path(model, is_leaf=is_weight)
    ]


def weights(model: Any) -> dict[str, Leaf]:
    """The leaves of `model` that are stored in checkpoints, by canonical names."""
    return {canonical(x.name): x for x in named_leaves(model) if x.is_weight}


def is_weight(leaf: Any) -> bool:
    """Whether a leaf of a model is stored in checkpoints."""
    return isinstance(leaf, AbstractStored | jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def name_of(model: Any, path: tuple[Any, ...]) -> str:
    """PyTorch's name for what is at `path` in `model`, a path of `jax.tree_util`."""
    return _named(model, path, None).name


def named_parts(
    model: Any, kind: type[PartT] | tuple[type[PartT], ...]
) -> dict[str, PartT]:
    """The outermost modules of a kind in `model`, by PyTorch's names for them."""
    parts = jtu.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, kind))
    return {name_of(model, path): x for path, x in parts if isinstance(x, kind)}


def map_parts(
    change: Callable[[str, Any], Any], model: ModelT, kind: type | tuple[type, ...]
) -> ModelT:
    """`model` with each of its `named_parts` changed."""

    def changed(path: Any, leaf: Any) -> Any:
        return change(name_of(model, path), leaf) if isinstance(leaf, kind) else leaf

    return jtu.tree_map_with_path(changed, model, is_leaf=lambda x: isinstance(x, kind))


def fitting(names: Iterable[str], targets: str | Sequence[str], what: str) -> set[str]:
    """The names that a regular expression matches in full; or those that end in one of
    several targets, such as `"q_proj"` or `"layers.0.fc1"`.

    **Raises** `ValueError` if a target fits none: `what` they are names of.
    """
    names = set(names)
    if isinstance(targets, str):
        found = {targets: {name for name in names if re.fullmatch(targets, name)}}
    else:
        found = {t: {name for name in names if ends_with(name, t)} for t in targets}
    unfit = [target for target, fit in found.items() if not fit]
    if unfit or not found:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(f"No {what} fits the targets {unfit}; their names end in {known}.")
    return set[str]().union(*found.values())


def ends_with(name: str, end: str) -> bool:
    """Whether `end` is the last part, or parts, of a dotted name."""
    return f".{name}".endswith(f".{end}")


def _named(model: Any, path: tuple[Any, ...], leaf: Any) -> Leaf:
    """The leaf at `path`, by what the modules on the path declare about their fields."""
    names, transposed = list[str](), False
    for node, key in along(model, path):
        name = jtu.keystr((key,), simple=True)
        transposed = is_transposed(node, name)
        if not is_inlined(node, name):
            names.append(name)
    return Leaf(".".join(names), leaf, transposed)
