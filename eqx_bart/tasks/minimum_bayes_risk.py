"""Minimum Bayes risk: of several answers, the one that agrees best with all.

The likeliest answer may be unlike most that a model would give. This is the one with the
greatest expected utility, by a metric of your own.

Source: Eikema & Aziz 2020 (arXiv:2005.10283), section 4; Fernandes et al. 2022
(arXiv:2205.00978).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxtyping import PRNGKeyArray

from ..explained import explained
from ..models.conditional_generation import BartForConditionalGeneration
from .prediction import checked_ids
from .texts import AbstractTask, loaded, mapped, Named


T = TypeVar("T")

#: How good a candidate is if the reference is right; more is better.
Metric = Callable[[T, T], float]


@dataclasses.dataclass(frozen=True)
class MinimumRisk(Generic[T]):
    """The candidate with the greatest expected utility.

    **Fields:**

    - `answer`: the candidate.
    - `index`: which one it is; the first of equals.
    - `utilities`: the expected utility of each candidate.
    """

    answer: T
    index: int
    utilities: tuple[float, ...]


def minimum_risk(
    candidates: Sequence[T],
    metric: Metric[T],
    *,
    references: Sequence[T] | None = None,
    weights: Sequence[float] | None = None,
) -> MinimumRisk[T]:
    """The candidate with the greatest expected utility.

    **Arguments:**

    - `candidates`: strings, or anything else that the metric compares.
    - `metric`: `metric(candidate, reference)` is called for each pair. Where many are
        equal, `functools.cache` makes one call of theirs.
    - `references`: what might be right, samples of a model for instance; the candidates by
        default.
    - `weights`: how probable each reference is, relative to the others; the same for all by
        default, which is right for samples.

    **Raises** `ValueError` if there is no candidate or no reference, if there is not one
    weight for each reference, if weights are negative or all 0, or if a utility is NaN.
    """
    references = candidates if references is None else references
    if not len(candidates) or not len(references):
        raise ValueError(
            f"Minimum Bayes risk needs candidates and references: there are "
            f"{len(candidates)} and {len(references)}."
        )
    shares = _shares(len(references), weights)
    utilities = tuple(
        [
            math.fsum(
                share * metric(candidate, reference)
                for share, reference in zip(shares, references, strict=True)
            )
            for candidate in candidates
        ]
    )
    for candidate, utility in zip(candidates, utilities, strict=True):
        if math.isnan(utility):
            raise ValueError(f"The metric gives NaN for the candidate {candidate!r}.")
    index = utilities.index(max(utilities))
    return MinimumRisk(candidates[index], index, utilities)


@explained
def generate_minimum_risk(
    model: BartForConditionalGeneration | str | Path,
    texts: Any,
    metric: Metric[str],
    *,
    num_samples: int,
    key: PRNGKeyArray,
    top_k: int = 0,
    tokenizer: Any = None,
    truncation: bool = False,
    batch_size: int = 32,
    progress: bool = False,
    **settings: Any,
) -> Any:
    """The sample of each text with the greatest expected utility over all samples of it.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `texts`: a text, a list of texts, or another iterable of them, of any length.
    - `metric`: as in `minimum_risk`.
    - `num_samples`: how many samples of each text are drawn. The metric is called for all
        pairs of them.
    - `key`: to draw with.
    - `top_k`: as in `generate`; by default, samples are as frequent as they are probable.
    - `tokenizer`: the model's, one of transformers'.
    - `truncation`: whether a text that is longer than the model reads is cut. Otherwise
        that is an error.
    - `batch_size`: how many texts are answered at the same time.
    - `progress`: whether to show a progress bar on the terminal.
    - `settings`: others of `generate`.

    **Returns** a `MinimumRisk`; a list of them; or an iterator.

    **Raises** `TypeError` or `ValueError` if a text is empty, too long, or has nothing but
    special tokens, and says which: before anything is computed, except for iterators. Also
    if the tokenizer is another model's, and as `generate` and `minimum_risk` do.
    """
    model, reader = loaded(
        BartForConditionalGeneration, model, tokenizer, truncation=truncation
    )
    settings = dict(
        do_sample=True,
        num_beams=1,
        num_return_sequences=num_samples,
        top_k=top_k,
        key=key,
        **settings,
    )
    task = _MinimumRisk(model, reader, batch_size, progress, metric, settings)
    return mapped(task, ("texts",), (texts,))


@dataclasses.dataclass(frozen=True)
class _MinimumRisk(AbstractTask[list[int], MinimumRisk[str]]):
    """`generate_minimum_risk`."""

    metric: Metric[str]
    settings: dict[str, Any]

    def read(self, one: Named) -> list[int]:
        ((name,), (text,)) = one
        ids = self.reader.ids(name, text)
        checked_ids(self.limits, name, ids)
        return ids

    def answers(self, found: Iterable[list[int]]) -> Iterator[MinimumRisk[str]]:
        outputs = self.model.generate_many(
            found, batch_size=self.batch_size, progress=self.progress, **self.settings
        )
        for _, output in outputs:
            yield minimum_risk(output.decode(self.reader.tokenizer), self.metric)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    """The probability of each of so many references."""
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise ValueError(f"There are {len(weights)} weights for {count} references.")
    total = math.fsum(weights)
    if min(weights) < 0 or not 0 < total < math.inf:
        raise ValueError(
            f"Weights are relative probabilities, 0 or more and not all 0: {[*weights]}."
        )
    return [weight / total for weight in weights]
