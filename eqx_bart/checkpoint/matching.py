"""Which tensor of a checkpoint is which array of a model, and what does not fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..files.tensors import StoredTensor
from .names import (
    Absent,
    canonical,
    is_ignorable,
    is_trunk,
    Leaf,
    rule_for,
    sources,
    weights,
)


_BIAS = "final_logits_bias"


@dataclasses.dataclass(frozen=True)
class Match:
    """What `match` finds, by canonical names.

    **Fields:**

    - `leaves`: the model's arrays, or their shapes.
    - `stored`: the tensor of each array that has one.
    - `problems`: why the checkpoint does not fit, a line each.
    - `unused`: tensors that the model does not use, and that do no harm.
    """

    leaves: Mapping[str, Leaf]
    stored: Mapping[str, StoredTensor]
    problems: list[str]
    unused: list[str]

    @property
    def lacking(self) -> list[str]:
        """The arrays of heads and of custom parts that are not stored, and those that are
        stored for fewer tokens."""
        return [name for name in self.leaves if self._is_lacking(name)]

    def _is_lacking(self, name: str) -> bool:
        leaf, tensor = self.leaves[name], self.stored.get(name)
        if tensor is None:
            return rule_for(name).absent is Absent.DRAWN
        if name == _BIAS:
            return False
        return laid_out(tensor.shape, leaf) < leaf.value.shape


def match(
    template: Any,
    tensors: Mapping[str, StoredTensor],
    *,
    ignore_mismatched_sizes: bool = False,
) -> Match:
    """Finds the tensor of each array of `template`, a model or its shapes."""
    leaves = weights(template)
    by_name = {canonical(name): tensor for name, tensor in tensors.items()}
    problems = [
        f"{name}: present twice, with and without `model.`"
        for name in tensors
        if canonical(name) != name and canonical(name) in tensors
    ]
    tied = template.config.tie_word_embeddings
    stored: dict[str, StoredTensor] = {}
    left = set(by_name)
    for name, leaf in leaves.items():
        candidates = [s for s in sources(name, tied=tied) if s in by_name]
        left.difference_update(candidates)
        if not candidates:
            if rule_for(name).absent is Absent.ERROR:
                problems.append(f"{name}: missing")
            continue
        tensor = by_name[candidates[0]]
        if tied:
            problems += _tying_problems(candidates, by_name)
        if _fits(name, tensor, leaf, ignore_mismatched=ignore_mismatched_sizes):
            stored[name] = tensor
        elif not (ignore_mismatched_sizes and rule_for(name).absent is Absent.DRAWN):
            problems.append(_mismatch(name, tensor, leaf))
    decoder_only = not any(name.startswith("encoder.") for name in leaves)
    left = {name for name in left if not is_ignorable(name, decoder_only=decoder_only)}
    problems += [f"{name}: unexpected" for name in sorted(left) if is_trunk(name)]
    unused = sorted(name for name in left if not is_trunk(name))
    return Match(leaves, stored, problems, unused)


def laid_out(shape: tuple[int, ...], leaf: Leaf) -> tuple[int, ...]:
    """The shape of an array from that of its tensor, or the reverse."""
    return shape[::-1] if leaf.is_transposed else shape


def _fits(name: str, tensor: StoredTensor, leaf: Leaf, *, ignore_mismatched: bool) -> bool:
    if name == _BIAS:  # its width is made to fit
        return True
    shape, expected = laid_out(tensor.shape, leaf), leaf.value.shape
    axis = rule_for(name).vocab_axis
    if not ignore_mismatched or axis is None:
        return shape == expected
    return len(shape) == len(expected) and all(
        a == b for i, (a, b) in enumerate(zip(shape, expected, strict=True)) if i != axis
    )


def _mismatch(name: str, tensor: StoredTensor, leaf: Leaf) -> str:
    rule = rule_for(name)
    problem = (
        f"{name}: the checkpoint has the shape {list(tensor.shape)}, the config calls for "
        f"{list(laid_out(leaf.value.shape, leaf))}"
    )
    if rule.vocab_axis is None and rule.absent is not Absent.DRAWN:
        return problem
    return problem + "; ignore_mismatched_sizes=True follows the config"


def _tying_problems(names: list[str], tensors: Mapping[str, StoredTensor]) -> list[str]:
    """A message for each copy of one tied tensor that differs from the first."""
    if len(names) == 1:
        return []
    first = tensors[names[0]]
    return [
        f"{name}: differs from {names[0]}, though the config ties them; if they are meant "
        "to differ, set tie_word_embeddings to false"
        for name in names[1:]
        if not _is_same(tensors[name], first)
    ]


def _is_same(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors agree bit for bit, NaNs included."""
    if a == b:
        return True
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    bits = f"u{a.dtype.itemsize}"
    return np.array_equal(a.load().view(bits), b.load().view(bits))
