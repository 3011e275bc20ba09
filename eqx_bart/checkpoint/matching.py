"""Which tensor of a checkpoint is which array of a model, and what does not fit."""

import collections
import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..files.errors import CheckpointError, listed, some
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
_BLOCK_BYTES = 2**24  # of a tensor are compared at a time
_MAX_DEPTH = 16  # of the names of a trunk's tensors, wrappers included


@dataclasses.dataclass(frozen=True)
class Match:
    """What `match` finds, by canonical names.

    **Fields:**

    - `leaves`: the model's arrays, or their shapes.
    - `stored`: the tensor of each array that has one.
    - `problems`: why the checkpoint does not fit, a line each, and of each kind a few.
    - `unused`: tensors that the model does not use, and that do no harm, by their names in
        the file.
    - `prefix`: what the names in the file have in common, which is no part of a BART's.
    """

    leaves: Mapping[str, Leaf]
    stored: Mapping[str, StoredTensor]
    problems: list[str]
    unused: list[str]
    prefix: str

    @property
    def lacking(self) -> list[str]:
        """The arrays of heads and of custom parts that are not stored, and those that are
        stored for fewer tokens or positions."""
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
    """Finds the tensor of each array of `template`, a model or its shapes.

    Names of tensors that have a prefix in common, such as the `module.` of a wrapper, are
    read without it.
    """
    leaves = weights(template)
    tied = template.config.tie_word_embeddings
    known = {s for name in leaves for s in sources(name, tied=tied)}
    prefix = _common_prefix(tensors, known)
    names: dict[str, str] = {}  # those in the file, by canonical ones
    problems = _Problems()
    for own in tensors:
        name = canonical(own.removeprefix(prefix))
        if name in names:
            problems.twice.append(f"{own}: present twice, as {names[name]} too")
        names[name] = own
    stored: dict[str, StoredTensor] = {}
    left = set(names)
    for name, leaf in leaves.items():
        candidates = [s for s in sources(name, tied=tied) if s in names]
        left.difference_update(candidates)
        if not candidates:
            if rule_for(name).absent is Absent.ERROR:
                problems.missing.append(f"{leaf.name}: missing")
            continue
        own = names[candidates[0]]
        tensor = tensors[own]
        if tied:
            copies = [names[s] for s in candidates]
            problems.untied.extend(_tying_problems(copies, tensors))
        if 0 in tensor.shape and 0 not in leaf.value.shape:
            problems.empty.append(f"{own}: empty, of the shape {list(tensor.shape)}")
        elif _fits(name, tensor, leaf, ignore_mismatched=ignore_mismatched_sizes):
            stored[name] = tensor
        elif not (ignore_mismatched_sizes and rule_for(name).absent is Absent.DRAWN):
            problems.mismatched.append(_mismatch(own, name, tensor, leaf))
    decoder_only = not any(name.startswith("encoder.") for name in leaves)
    left = {name for name in left if not is_ignorable(name, decoder_only=decoder_only)}
    trunk = {name for name in left if is_trunk(name)}
    problems.unexpected.extend(f"{names[name]}: unexpected" for name in sorted(trunk))
    unused = sorted(names[name] for name in left - trunk)
    return Match(leaves, stored, problems.lines(tensors), unused, prefix)


@dataclasses.dataclass(frozen=True)
class _Problems:
    """Why a checkpoint does not fit, a line for each tensor, by kinds."""

    twice: list[str] = dataclasses.field(default_factory=list[str])
    missing: list[str] = dataclasses.field(default_factory=list[str])
    untied: list[str] = dataclasses.field(default_factory=list[str])
    empty: list[str] = dataclasses.field(default_factory=list[str])
    mismatched: list[str] = dataclasses.field(default_factory=list[str])
    unexpected: list[str] = dataclasses.field(default_factory=list[str])

    def lines(self, tensors: Mapping[str, StoredTensor]) -> list[str]:
        """A few of each kind, with what helps to understand it."""
        lines = [
            *some(self.twice),
            *some(self.untied),
            *some(self.mismatched),
            *some(self.unexpected),
        ]
        if self.empty:
            lines += [
                *some(self.empty),
                "empty tensors are placeholders: the weights are elsewhere. Those of "
                "DeepSpeed's ZeRO-3 are gathered by its zero_to_fp32.py",
            ]
        if self.missing:
            lines += [
                *some(self.missing),
                f"the checkpoint has {len(tensors)} tensors: {listed(tensors)}",
            ]
        return lines


def _common_prefix(names: Iterable[str], known: Container[str]) -> str:
    """What stands before the `known` names of a trunk's tensors in a file, such as the
    `module.` of a wrapper; nothing if some of them stand as they are.

    **Raises** `CheckpointError` if they stand there more than once, each time after
    something else.
    """

    def is_known_trunk(name: str) -> bool:
        return name in known and rule_for(name).absent is Absent.ERROR

    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        if is_known_trunk(canonical(name)):
            return ""
        parts = name.split(".")
        for i in range(max(1, len(parts) - _MAX_DEPTH), len(parts)):
            if is_known_trunk(canonical(".".join(parts[i:]))):
                counts[".".join(parts[:i]) + "."] += 1
    if not counts:
        return ""
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))
    others = [x for x in counts if not (x.startswith(best) or best.startswith(x))]
    if others:
        raise CheckpointError(
            f"The checkpoint has more than one model: {counts[best]} tensors of a BART "
            f"have names that begin with {best!r}, {counts[others[0]]} with {others[0]!r}. "
            "Save one of them alone."
        )
    return best


def laid_out(shape: tuple[int, ...], leaf: Leaf) -> tuple[int, ...]:
    """The shape of an array from that of its tensor, or the reverse."""
    return shape[::-1] if leaf.is_transposed else shape


def _fits(name: str, tensor: StoredTensor, leaf: Leaf, *, ignore_mismatched: bool) -> bool:
    if name == _BIAS:  # its width is made to fit
        return True
    shape, expected = laid_out(tensor.shape, leaf), leaf.value.shape
    rule = rule_for(name)
    if not ignore_mismatched or rule.entries is None:
        return shape == expected
    return len(shape) == len(expected) and all(
        a == b
        for i, (a, b) in enumerate(zip(shape, expected, strict=True))
        if i != rule.axis
    )


def _mismatch(own: str, name: str, tensor: StoredTensor, leaf: Leaf) -> str:
    rule = rule_for(name)
    problem = (
        f"{own}: the checkpoint has the shape {list(tensor.shape)}, the config calls for "
        f"{list(laid_out(leaf.value.shape, leaf))}"
    )
    if rule.entries is None and rule.absent is not Absent.DRAWN:
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

    def is_same(rows: tuple[slice, ...]) -> bool:
        x, y = (tensor.load_part(rows).view(bits) for tensor in (a, b))
        return np.array_equal(x, y)

    if not (a.has_parts and b.has_parts):
        return is_same((slice(None),) * len(a.shape))
    return all(map(is_same, _blocks(a)))


def _blocks(tensor: StoredTensor) -> Iterator[tuple[slice, ...]]:
    """Parts of a tensor, by its first axis, that are small beside a model."""
    if not tensor.shape:
        yield ()
        return
    size, *rest = tensor.shape
    step = max(1, size * _BLOCK_BYTES // max(tensor.nbytes, 1))
    for start in range(0, size, step):
        yield (slice(start, start + step), *[slice(None)] * len(rest))
