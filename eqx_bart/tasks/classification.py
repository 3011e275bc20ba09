"""Which label a text has, of those that a classifier was trained for."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from ..config import BartConfig
from ..explained import explained
from ..models.sequence_classification import BartForSequenceClassification
from ..nn.checks import ArrayLike, Mask
from ..nn.matmul import at_least_float32
from .prediction import Row
from .texts import AbstractTask, loaded, mapped, Named


_FUNCTIONS = ("softmax", "sigmoid", "none")


@dataclasses.dataclass(frozen=True)
class Classification:
    """The labels of a text, the best first, and the score of each.

    **Fields:**

    - `sequence`: the text.
    - `labels`, `scores`: as many of each.
    """

    sequence: Any
    labels: tuple[str, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(
        cls, sequence: Any, labels: Iterable[str], scores: Float[np.ndarray, " labels"]
    ) -> "Classification":
        """The labels in the order of their scores; of equal ones, the first stays first."""
        order = np.argsort(-scores, kind="stable")
        names = list(labels)
        return cls(
            sequence, tuple([names[i] for i in order]), tuple(scores[order].tolist())
        )

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[0]

    @property
    def score(self) -> float:
        """The score of the best label."""
        return self.scores[0]


@explained
def classify(
    model: BartForSequenceClassification | str | Path,
    texts: Any,
    text_pairs: Any = None,
    *,
    function_to_apply: str | None = None,
    tokenizer: Any = None,
    truncation: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Any:
    """The labels of each text, by a classifier's own head.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `texts`: a text, a list of texts, or another iterable of them, of any length. A text
        may also be its token ids, of a tokenizer of your own.
    - `text_pairs`: the second text of each, for a classifier of pairs.
    - `function_to_apply`: what makes scores of logits: `"softmax"`, `"sigmoid"`, or
        `"none"`. By default the config's `problem_type` says which: `"none"` for a
        regression, the sigmoid where each label may be right. Without one it is the sigmoid
        of one label, and the softmax of more.
    - `tokenizer`: the model's, one of transformers'.
    - `truncation`: whether a text that is longer than the model reads is cut, the first of
        a pair. Otherwise that is an error.
    - `batch_size`: how many texts are computed together. Those of about one length are.
    - `progress`: whether to show a progress bar on the terminal.

    **Returns** a `Classification`, with the names of all labels in the config; a list of
    them; or an iterator, which reads ahead no more than 32 batches.

    **Raises** `TypeError` or `ValueError` if a text is empty, too long, or has nothing but
    special tokens, and says which: before anything is computed, except for iterators. Also
    if the tokenizer is another model's.

    Source: HF's `TextClassificationPipeline`.
    """
    model, reader = loaded(
        BartForSequenceClassification, model, tokenizer, truncation=truncation
    )
    function = _function(model.config, function_to_apply)
    task = _Classify(model, reader, batch_size, progress, function)
    if text_pairs is None:
        return mapped(task, ("texts",), (texts,))
    return mapped(task, ("texts", "text_pairs"), (texts, text_pairs))


def label_scores(
    logits: Float[ArrayLike, "*batch labels"], function_to_apply: str
) -> Float[ArrayLike, "*batch labels"]:
    """The scores of labels, in float32 or better; inside `jit`, and of NumPy's arrays in
    NumPy.

    **Arguments:**

    - `function_to_apply`: `"softmax"`, for labels of which one is right; `"sigmoid"`, where
        each may be; or `"none"`, for the logits.
    """
    logits = logits.astype(at_least_float32(logits))
    if function_to_apply == "softmax":
        return softmax(logits)
    return sigmoid(logits) if function_to_apply == "sigmoid" else logits


def softmax(x: Float[ArrayLike, "*batch labels"]) -> Float[ArrayLike, "*batch labels"]:
    """Probabilities along the last axis; of NumPy's arrays in NumPy, which needs no program
    for each shape."""
    exp = _library(x).exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def _library(x: ArrayLike) -> Any:
    return np if isinstance(x, np.ndarray) else jnp


def sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """Probabilities; of NumPy's arrays in NumPy."""
    library = _library(x)
    return library.exp(-library.logaddexp(library.zeros_like(x), -x))


def label_logits(
    model: BartForSequenceClassification,
    input_ids: Integer[ArrayLike, "batch length"],
    attention_mask: Mask[ArrayLike, "batch length"],
) -> Float[Array, "batch labels"]:
    """The logits, for `predictions`: one program for all that goes by them."""
    return model(input_ids, attention_mask).logits


@dataclasses.dataclass(frozen=True)
class _Classify(AbstractTask[Row, Classification]):
    """`classify`."""

    function: str

    def read(self, one: Named) -> Row:
        ids = self.reader.ids(one.names[0], *one.values)
        return self.row(one.names[:1], (ids,), one.values[0])

    def answers(self, found: Iterable[Row]) -> Iterator[Classification]:
        names = list(self.model.config.id2label.values())
        for text, logits in self.predictions(label_logits, found, "Classifying"):
            scores = np.asarray(label_scores(logits, self.function))
            yield Classification.of(text, names, scores)


def _function(config: BartConfig, function_to_apply: str | None) -> str:
    config.check_labels()
    config.check("problem_type")
    if function_to_apply is None:
        if config.problem_type == "regression":
            return "none"
        is_multi_label = config.problem_type == "multi_label_classification"
        return "sigmoid" if is_multi_label or config.num_labels == 1 else "softmax"
    if function_to_apply not in _FUNCTIONS:
        raise ValueError(
            f"function_to_apply must be one of {', '.join(_FUNCTIONS)}, or None; it is "
            f"{function_to_apply!r}."
        )
    return function_to_apply
