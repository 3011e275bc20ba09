"""The weight map: which tensor of an HF checkpoint is which array of a model.

Attribute paths are HF's names already, so that the map has only to say, for each name,
how the tensor is laid out, what other names it goes by, and whether it may be absent.
Names are canonical here: without the `model.` that a checkpoint of a model with a head
puts before the names of its trunk.
"""

import dataclasses
import enum
import re
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np

from ..layers import Buffer


class Layout(enum.Enum):
    """How a tensor becomes an array: PyTorch's `nn.Linear` stores `[out, in]`."""

    SAME = "same"
    TRANSPOSED = "transposed"
    BUFFER = "buffer"


class Absent(enum.Enum):
    """What the lack of a tensor means."""

    ERROR = "error"
    NEW_HEAD = "new head"
    ZEROS = "zeros"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What holds for the names that `pattern` matches in full.

    `vocab_axis` is the axis of the array that has an entry for each token.
    """

    pattern: str
    layout: Layout = Layout.SAME
    absent: Absent = Absent.ERROR
    vocab_axis: int | None = None


_LAYER = r"(encoder|decoder)\.layers\.\d+"
_HEAD = r"(classification_head\.dense|classification_head\.out_proj|qa_outputs)"

WEIGHT_MAP = (
    Rule(r"shared\.weight", vocab_axis=0),
    Rule(r"(encoder|decoder)\.embed_tokens\.weight", vocab_axis=0),
    Rule(r"(encoder|decoder)\.embed_positions\.weight"),
    Rule(r"(encoder|decoder)\.layernorm_embedding\.(weight|bias)"),
    Rule(_LAYER + r"\.(self|encoder)_attn\.(q|k|v|out)_proj\.weight", Layout.TRANSPOSED),
    Rule(_LAYER + r"\.(self|encoder)_attn\.(q|k|v|out)_proj\.bias"),
    Rule(_LAYER + r"\.(self_attn|encoder_attn|final)_layer_norm\.(weight|bias)"),
    Rule(_LAYER + r"\.fc[12]\.weight", Layout.TRANSPOSED),
    Rule(_LAYER + r"\.fc[12]\.bias"),
    Rule(_LAYER + r"\..+\.adapter\.lora_[AB]", Layout.TRANSPOSED),
    Rule(r"lm_head\.weight", Layout.TRANSPOSED, Absent.NEW_HEAD, vocab_axis=1),
    Rule(r"final_logits_bias", Layout.BUFFER, Absent.ZEROS, vocab_axis=1),
    Rule(_HEAD + r"\.weight", Layout.TRANSPOSED, Absent.NEW_HEAD),
    Rule(_HEAD + r"\.bias", absent=Absent.NEW_HEAD),
)

# The table of token embeddings goes by all of these names where embeddings are tied.
TIED = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)

# Where they are not, the encoder's and the decoder's tables may still be one.
_UNTIED_FALLBACKS = {
    "shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    "encoder.embed_tokens.weight": ("shared.weight",),
    "decoder.embed_tokens.weight": ("shared.weight",),
}

# Tensors that a checkpoint may hold and a model not need: markers of old versions, and
# what belongs to other heads and, for a lone decoder, to the encoder.
_IGNORABLE = (
    r"(encoder|decoder)\.version",
    r"lm_head\.weight",
    r"final_logits_bias",
    r"classification_head\..+",
    r"qa_outputs\..+",
)
_IGNORABLE_BY_DECODER = (r"shared\.weight", r"encoder\..+")
_TRUNK = r"(shared|encoder|decoder)\..+"


def canonical(name: str) -> str:
    """`name` without the prefix of a model with a head."""
    return name.removeprefix("model.")


def rule_for(name: str) -> Rule:
    """The one rule for a canonical name.

    **Raises** `LookupError` unless there is exactly one.
    """
    rules = [rule for rule in WEIGHT_MAP if re.fullmatch(rule.pattern, name)]
    if len(rules) != 1:
        raise LookupError(f"The weight map has {len(rules)} rules for {name}.")
    return rules[0]


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


def named_leaves(model: Any) -> list[tuple[str, Any]]:
    """The leaves of `model`, buffers among them, by the names PyTorch would give them."""
    leaves = jtu.tree_leaves_with_path(model, is_leaf=is_weight)
    return [(jtu.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def is_weight(leaf: Any) -> bool:
    """Whether a leaf of a model is stored in checkpoints."""
    return isinstance(leaf, Buffer | jax.Array | np.ndarray | jax.ShapeDtypeStruct)
