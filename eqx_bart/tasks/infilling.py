"""What stands in the place of masks: any number of tokens for each."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..explained import explained
from ..generation.output import GenerationOutput
from ..models.conditional_generation import BartForConditionalGeneration
from ..nn.processes import on_host
from .masks import ids_with_masks
from .prediction import checked_ids
from .texts import AbstractTask, loaded, mapped, Named


#: How many more tokens than the text an answer may have by default.
_ROOM = 32


@dataclasses.dataclass(frozen=True)
class Infilling:
    """A text without masks.

    **Fields:**

    - `log_prob`: the logarithm of the probability of the whole text, after all that the
        settings do to it.
    - `sequence`: the text.
    - `fillings`: what stands for each mask, with the spaces around it; `None` if the model
        has changed what was around the masks as well.
    """

    log_prob: float
    sequence: str
    fillings: tuple[str, ...] | None

    @property
    def score(self) -> float:
        """The probability of the whole text."""
        return math.exp(self.log_prob)


@explained
def infill(
    model: BartForConditionalGeneration | str | Path,
    texts: Any,
    *,
    max_new_tokens: int | None = None,
    tokenizer: Any = None,
    batch_size: int = 32,
    progress: bool = False,
    **settings: Any,
) -> Any:
    """Writes a text without its masks, each of which stands for any number of tokens, as
    BART was trained to: by `generate`.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `texts`: a text with one mask or more, a list of texts, or another iterable of them,
        of any length.
    - `max_new_tokens`: how long an answer may be: by default 32 tokens longer than the
        longest text of a list, and of another iterable as long as the model can write.
    - `tokenizer`: the model's, one of transformers'.
    - `batch_size`: how many texts are answered at the same time.
    - `progress`: whether to show a progress bar on the terminal.
    - `settings`: those of `generate`, such as `num_beams` and `num_return_sequences`, with
        the checkpoint's own as defaults; and its `key`.

    **Returns** for each text a tuple of `Infilling`s, as many as `num_return_sequences`,
    the best first; of a list of texts a list, and of another iterable an iterator.

    **Raises** `TypeError` or `ValueError` if a text is empty, too long, without a mask, or
    has nothing but special tokens, and says which: before anything is computed, except for
    iterators. Also if the tokenizer is another model's, and as `generate` does.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.2, "text infilling".
    """
    model, reader = loaded(BartForConditionalGeneration, model, tokenizer, truncation=False)
    settings |= {"output_token_log_probs": True}
    task = _Infill(model, reader, batch_size, progress, max_new_tokens, settings)
    return mapped(task, ("texts",), (texts,))


class _Text(NamedTuple):
    """A text with masks, and the pattern of what it can become."""

    ids: list[int]
    pattern: re.Pattern[str]


@dataclasses.dataclass(frozen=True)
class _Infill(AbstractTask[_Text, tuple[Infilling, ...]]):
    """`infill`."""

    max_new_tokens: int | None
    settings: dict[str, Any]

    def read(self, one: Named) -> _Text:
        ((name,), (text,)) = one
        ids = ids_with_masks(self.reader, name, text)
        checked_ids(self.limits, name, ids)
        around = "".join(
            "(.*?)" if token is None else re.escape(token) for token in self._parts(ids)
        )
        return _Text(ids, re.compile(around, re.DOTALL))

    def _parts(self, ids: list[int]) -> Iterator[str | None]:
        """The text between masks, and `None` for each mask."""
        mask = self.reader.tokenizer.mask_token_id
        part = list[int]()
        for token in [*ids, None]:
            if token in (mask, None):
                yield self.reader.tokenizer.decode(part, skip_special_tokens=True)
                part = []
            if token == mask:
                yield None
            elif token is not None:
                part.append(token)

    def answers(self, found: Iterable[_Text]) -> Iterator[tuple[Infilling, ...]]:
        most, waiting = self.max_new_tokens, collections.deque[_Text]()
        ids: Iterable[list[int]] = _ids(found, waiting)
        if isinstance(found, Sequence):
            ids = list(ids)
            most = most or max(map(len, ids)) + _ROOM
        answers = self.model.generate_many(
            ids,
            batch_size=self.batch_size,
            progress=self.progress,
            max_new_tokens=min(most or self.model.max_positions, self.model.max_positions),
            **self.settings,
        )
        for _, output in answers:
            yield self._infillings(waiting.popleft().pattern, output)

    def _infillings(
        self, pattern: re.Pattern[str], output: GenerationOutput
    ) -> tuple[Infilling, ...]:
        assert output.token_log_probs is not None
        log_probs = on_host(output.token_log_probs).sum(axis=1)
        texts = output.decode(self.reader.tokenizer)
        infillings = list[Infilling]()
        for log_prob, text in zip(log_probs.tolist(), texts, strict=True):
            match = pattern.fullmatch(text)
            fillings = None if match is None else match.groups()
            infillings.append(Infilling(log_prob, text, fillings))
        return tuple(infillings)


def _ids(found: Iterable[_Text], waiting: collections.deque[_Text]) -> Iterator[list[int]]:
    """The ids of all texts, which are added to `waiting`."""
    for text in found:
        waiting.append(text)
        yield text.ids
