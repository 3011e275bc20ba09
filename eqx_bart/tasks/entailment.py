"""Which of some labels a text has, by a classifier that was trained for entailment."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..config import BartConfig
from ..explained import explained
from ..models.sequence_classification import BartForSequenceClassification
from ..nn.checks import ArrayLike
from ..nn.matmul import at_least_float32
from .classification import Classification, label_logits, sigmoid, softmax
from .prediction import Row
from .texts import AbstractTask, loaded, mapped, Named


@explained
def zero_shot(
    model: BartForSequenceClassification | str | Path,
    texts: Any,
    labels: Sequence[str],
    *,
    hypothesis_template: str = "This example is {}.",
    multi_label: bool = False,
    tokenizer: Any = None,
    truncation: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Any:
    """Which of `labels` each text has, by a model of entailment such as
    `facebook/bart-large-mnli`: how far the text entails that it is an example of each.

    Each pair of a text and a label is a sequence of its own, in which every token of the
    text sees the label, so that nothing of one pair can serve another.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `texts`: a text, a list of texts, or another iterable of them, of any length.
    - `labels`: the labels to choose from, in words.
    - `hypothesis_template`: a sentence, with `{}` in the place of the label.
    - `multi_label`: whether each label may be right. The scores are then its probability of
        entailment, rather than contradiction; otherwise, or of one label, they are shares
        that add up to 1.
    - `tokenizer`: the model's, one of transformers'.
    - `truncation`: whether a text that is longer than the model reads, together with a
        hypothesis, is cut. Otherwise that is an error.
    - `batch_size`: how many pairs are computed together.
    - `progress`: whether to show a progress bar on the terminal.

    **Returns** a `Classification`; a list of them; or an iterator, which reads ahead no
    more than 32 batches of pairs.

    **Raises** `TypeError` or `ValueError` if a text is empty, too long, or has nothing but
    special tokens, and says which: before anything is computed, except for iterators. Also
    if there are no labels, the same one twice, a template without its place, a model
    without a label for entailment, or another model's tokenizer.

    Source: Yin et al. 2019 (arXiv:1909.00161); HF's `ZeroShotClassificationPipeline`. Where
    the config names no contradiction, that is the first label, or the last if the first is
    entailment, as in HF; where it names one, HF may take another for it.
    """
    model, reader = loaded(
        BartForSequenceClassification, model, tokenizer, truncation=truncation
    )
    hypotheses = _hypotheses(labels, hypothesis_template)
    entailment_id, contradiction_id = _entailment(model.config)
    task = _ZeroShot(
        model,
        reader,
        batch_size,
        progress,
        dict(zip(labels, hypotheses, strict=True)),
        entailment_id,
        contradiction_id if multi_label or len(labels) == 1 else None,
    )
    return mapped(task, ("texts",), (texts,))


def entailment_scores(
    logits: Float[ArrayLike, "*batch labels classes"],
    entailment_id: int,
    contradiction_id: int | None = None,
) -> Float[ArrayLike, "*batch labels"]:
    """The scores of labels, from the logits of a text with each of them, in float32 or
    better; inside `jit`, and of NumPy's arrays in NumPy.

    **Arguments:**

    - `entailment_id`, `contradiction_id`: which classes these are. With a contradiction,
        each label is scored by itself: its probability of entailment rather than
        contradiction. Without it, the scores are the softmax of entailment over the labels.
    """
    logits = logits.astype(at_least_float32(logits))
    entailment = logits[..., entailment_id]
    if contradiction_id is None:
        return softmax(entailment)
    return sigmoid(entailment - logits[..., contradiction_id])


@dataclasses.dataclass(frozen=True)
class _ZeroShot(AbstractTask[list[Row], Classification]):
    """`zero_shot`: as many rows for a text as there are labels."""

    hypotheses: dict[str, str]
    entailment_id: int
    contradiction_id: int | None

    def read(self, one: Named) -> list[Row]:
        ((name,), (text,)) = one
        self.reader.check(name, text)
        rows = list[Row]()
        for label, hypothesis in self.hypotheses.items():
            pair = f"{name}, with the label {label!r},"
            rows.append(self.row((pair,), (self.reader.ids(pair, text, hypothesis),), text))
        return rows

    def answers(self, found: Iterable[list[Row]]) -> Iterator[Classification]:
        ids = (self.entailment_id, self.contradiction_id)
        for pairs in self.group_predictions(label_logits, found, "Classifying"):
            logits = np.stack([logits for _, logits in pairs])
            scores = np.asarray(entailment_scores(logits, *ids))
            yield Classification.of(pairs[0][0], self.hypotheses, scores)


def _hypotheses(labels: Sequence[str], template: str) -> list[str]:
    """The template, with each label in its place.

    **Raises** `TypeError` or `ValueError` if there are no labels, or if it has no place.
    """
    if isinstance(labels, str):
        raise TypeError(f"labels must be a list of strings; they are {labels!r}.")
    if not labels:
        raise ValueError("labels is an empty list: there is nothing to choose from.")
    for number, label in enumerate(labels):
        if not label.strip():
            raise ValueError(f"labels[{number}] is empty: {label!r}.")
        if label in labels[:number]:
            raise ValueError(f"labels[{number}] is there twice: {label!r}.")
    try:
        hypotheses = [template.format(label) for label in labels]
        has_place = template.format("1") != template.format("2")
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"hypothesis_template has a place that is not {{}}: {template!r}."
        ) from error
    if not has_place:
        raise ValueError(f"hypothesis_template has no place {{}}: {template!r}.")
    return hypotheses


def _entailment(config: BartConfig) -> tuple[int, int]:
    """Which labels of the config are entailment and contradiction.

    **Raises** `ValueError` if none is called entailment.
    """
    config.check_labels()
    entailment = _first(config, "entail")
    if entailment is None:
        raise ValueError(
            "zero_shot needs a model of entailment, with a label whose name begins with "
            f"'entail'; the labels of this config are {list(config.id2label.values())}. If "
            "it is one, give the labels their names: "
            "model.with_config(model.config.updated(id2label=[...]))."
        )
    if config.num_labels < 2:
        raise ValueError("zero_shot needs a model of two labels or more; this has one.")
    contradiction = _first(config, "contra")
    if contradiction is None:
        contradiction = 0 if entailment else config.num_labels - 1
    return entailment, contradiction


def _first(config: BartConfig, beginning: str) -> int | None:
    """The first label whose name begins so."""
    labels = config.id2label.items()
    return next((i for i, x in labels if x.lower().startswith(beginning)), None)
