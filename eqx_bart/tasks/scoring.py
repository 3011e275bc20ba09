"""How likely a target is, given its source."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

from ..explained import explained
from ..models.conditional_generation import BartForConditionalGeneration
from ..models.inputs import (
    IGNORE_INDEX,
    refuse_overrides,
    shift_tokens_right,
    source_of,
)
from ..models.language_model import Projection
from ..models.outputs import BaseModelOutputWithCrossAttentions
from ..nn.checks import ArrayLike, check_range, Mask
from ..nn.matmul import at_least_float32
from ..nn.mesh import on_any_mesh
from .prediction import Row
from .texts import AbstractTask, is_one, loaded, mapped, Named


#: The logits of about this many tokens are in memory at a time.
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a target is, given its source.

    Every token of the target counts, its `<s>` if the tokenizer begins with it and its
    `</s>` included, and nothing else: the decoder's start token is given, not scored.

    **Fields:**

    - `tokens`: the ids of the target.
    - `token_log_probs`: the logarithm of the probability of each, given the source and the
        tokens before it.
    """

    tokens: tuple[int, ...]
    token_log_probs: tuple[float, ...]

    @property
    def sum(self) -> float:
        """The log-likelihood of the target."""
        return math.fsum(self.token_log_probs)

    @property
    def mean(self) -> float:
        """The log-likelihood for each token: BARTScore, and the negative of the loss."""
        return self.normalised(1.0)

    def normalised(self, length_penalty: float) -> float:
        """The log-likelihood over the number of tokens to the power `length_penalty`: 0 for
        the sum, 1 for the mean, as in beam search."""
        return self.sum / len(self.tokens) ** length_penalty


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate of `rank`: which one it is, and its score."""

    index: int
    candidate: Any
    score: Score


@explained
def score(
    model: BartForConditionalGeneration | str | Path,
    sources: Any,
    targets: Any,
    *,
    tokenizer: Any = None,
    truncation: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Any:
    """How likely each target is, given its source, by one teacher-forced pass.

    Settings of generation, such as tokens that are forced, play no part.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `sources`, `targets`: a text each, a list of texts each, or another iterable each, of
        any length. A text may also be its token ids, of a tokenizer of your own.
    - `tokenizer`: the model's, one of transformers'.
    - `truncation`: whether sources that are longer than the model reads are cut. Otherwise,
        and for targets, that is an error.
    - `batch_size`: how many pairs are computed together. Pairs of about one length are.
    - `progress`: whether to show a progress bar on the terminal.

    **Returns** a `Score`; a list of them; or an iterator, which reads ahead no more than 32
    batches.

    **Raises** `TypeError` or `ValueError` if a text is empty, too long, or has nothing but
    special tokens, and says which: before anything is computed, except for iterators. Also
    if the tokenizer is another model's, or if there are not as many sources as targets.

    Source: Yuan et al. 2021 (arXiv:2106.11520), of which `mean` is equation 2.
    """
    model, reader = loaded(
        BartForConditionalGeneration, model, tokenizer, truncation=truncation
    )
    task = _Scores(model, reader, batch_size, progress)
    return mapped(task, ("sources", "targets"), (sources, targets))


@explained
def rank(
    model: BartForConditionalGeneration | str | Path,
    sources: Any,
    candidates: Any,
    *,
    length_penalty: float = 1.0,
    tokenizer: Any = None,
    truncation: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Any:
    """The candidates for a source, the likeliest first. The encoder reads the source once,
    and the keys and values of cross-attention are computed once for all of them.

    **Arguments:**

    - `sources`: a text, a list of texts, or another iterable of them.
    - `candidates`: a list of texts for each source.
    - `length_penalty`: by what the order goes, see `Score.normalised`: 1 for the mean, 0
        for the sum.
    - `batch_size`: how many candidates are computed together; those of one source are in
        any case.
    - `model`, `tokenizer`, `truncation`, `progress`: as in `score`.

    **Returns** a tuple of `Candidate`s for each source; of a list of sources a list, and
    of another iterable an iterator.

    **Raises** as `score` does.
    """
    model, reader = loaded(
        BartForConditionalGeneration, model, tokenizer, truncation=truncation
    )
    task = _Ranks(model, reader, batch_size, progress, length_penalty)
    return mapped(task, ("sources", "candidates"), (sources, candidates))


@explained
@on_any_mesh
def token_log_probs(
    model: BartForConditionalGeneration,
    input_ids: Integer[ArrayLike, "batch source"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    labels: Integer[ArrayLike, "batch *candidates target"],
) -> Float[Array, "batch *candidates target"]:
    """The log-probability of each label, given the source and the labels before it, in
    float32 or better; 0 where there is none. A pure function, for a `jit` of your own.

    **Arguments:**

    - `input_ids`, `attention_mask`: as in a call of the model.
    - `labels`: the targets, -100 where there is no token, of one target for each source or,
        with one axis more, of any number of them. The encoder runs once for each source.

    **Raises** as the model does; `ValueError` if a label is outside the vocabulary.
    """
    counts = labels != IGNORE_INDEX
    classes = labels * counts.astype(labels.dtype)
    classes = check_range(classes, model.vocab_size, "labels", "the vocabulary")
    counts = jnp.asarray(counts)
    rows = jnp.where(counts, classes, IGNORE_INDEX).reshape(-1, labels.shape[-1])
    decoded, source = teacher_forced(model, input_ids, attention_mask, rows)
    classes = classes.reshape(rows.shape)
    if model.head is not None:
        found = _chosen(model.logits(decoded, source), classes)
    else:
        found = _chosen_in_chunks(model.projection, decoded.last_hidden_state, classes)
    return jnp.where(counts, found.reshape(labels.shape), 0)


def teacher_forced(
    model: BartForConditionalGeneration,
    input_ids: Integer[ArrayLike, "batch source"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    labels: Integer[ArrayLike, "rows target"],
) -> tuple[BaseModelOutputWithCrossAttentions, Any]:
    """What the decoder makes of labels, shifted to the right, with as many rows for each
    source; and what it attends to.

    **Raises** `TypeError` if the model's class overrides what this does without.
    """
    refuse_overrides(model, "a task", "__call__", "decode")
    config = model.config
    encoded = model.encode(input_ids, attention_mask)
    source = source_of(encoded, attention_mask, input_ids)
    source = model.source_of_rows(source, len(labels) // len(input_ids))
    decoded = model.model.decode(
        shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id),
        encoder_outputs=source,
        output_attentions=model.head is not None and model.head.needs_attentions,
    )
    return decoded, source


def _chosen(
    logits: Float[Array, "rows length vocab"], classes: Integer[Array, "rows length"]
) -> Float[Array, "rows length"]:
    """The log-probability of one class at each place."""
    logits = logits.astype(at_least_float32(logits))
    chosen = jnp.take_along_axis(logits, classes[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _chosen_in_chunks(
    head: Projection,
    states: Float[Array, "rows length d_model"],
    classes: Integer[Array, "rows length"],
) -> Float[Array, "rows length"]:
    """`_chosen(head(states), classes)`, some places of all rows at a time."""
    rows, length, _ = states.shape
    size = max(_CHUNK // rows, 1)
    if size >= length:
        return _chosen(head(states), classes)
    chunked = jax.tree.map(lambda x: _chunks(x, size), (states, classes))
    found = jax.lax.map(lambda chunk: _chosen(head(chunk[0]), chunk[1]), chunked)
    return jnp.moveaxis(found, 0, 1).reshape(rows, -1)[:, :length]


def _chunks(
    x: Shaped[Array, "rows length *rest"], size: int
) -> Shaped[Array, "chunks rows {size} *rest"]:
    """The places of all rows in chunks of this size, of which the last is padded."""
    missing = -x.shape[1] % size
    x = jnp.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)


def _log_probs(
    model: BartForConditionalGeneration,
    input_ids: Integer[Array, "batch source"],
    attention_mask: Bool[Array, "batch source"],
    labels: Integer[Array, "batch *candidates target"],
    labels_mask: Bool[Array, "batch *candidates target"],
) -> Float[Array, "batch *candidates target"]:
    labels = jnp.where(labels_mask, labels, IGNORE_INDEX)
    return token_log_probs(model, input_ids, attention_mask, labels)


@dataclasses.dataclass(frozen=True)
class _Scores(AbstractTask[Row, Score]):
    """`score`."""

    def read(self, one: Named) -> Row:
        (source_name, target_name), (source, target) = one
        ids = self.reader.ids(target_name, target, may_cut=False)
        return self.row(one.names, (self.reader.ids(source_name, source), ids), ids)

    def answers(self, found: Iterable[Row]) -> Iterator[Score]:
        for ids, log_probs in self.predictions(_log_probs, found, "Scoring"):
            yield _score(ids, log_probs)


@dataclasses.dataclass(frozen=True)
class _Ranks(AbstractTask[Row, tuple[Candidate, ...]]):
    """`rank`."""

    length_penalty: float

    def read(self, one: Named) -> Row:
        (source_name, name), (source, candidates) = one
        if is_one(candidates) or not isinstance(candidates, Sequence) or not candidates:
            raise ValueError(
                f"{name} must be a list of texts, one at least; it is {candidates!r}."
            )
        ids = [
            self.reader.ids(f"{name}[{i}]", candidate, may_cut=False)
            for i, candidate in enumerate(candidates)
        ]
        columns = (self.reader.ids(source_name, source), ids)
        return self.row(one.names, columns, (candidates, ids))

    def answers(self, found: Iterable[Row]) -> Iterator[tuple[Candidate, ...]]:
        for (candidates, ids), log_probs in self.predictions(_log_probs, found, "Ranking"):
            scores = map(_score, ids, log_probs)
            ranked = itertools.starmap(
                Candidate, zip(itertools.count(), candidates, scores, strict=False)
            )
            yield tuple(sorted(ranked, key=self._order))

    def _order(self, candidate: Candidate) -> float:
        return -candidate.score.normalised(self.length_penalty)


def _score(ids: list[int], log_probs: np.ndarray) -> Score:
    return Score(tuple(ids), tuple(log_probs[: len(ids)].tolist()))
