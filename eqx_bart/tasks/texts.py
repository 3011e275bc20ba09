"""What all tasks make of their arguments: a model and its tokenizer, and texts."""

import abc
import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from ..config import BartConfig
from ..models.conditional_generation import BartForConditionalGeneration
from ..models.question_answering import BartForQuestionAnswering
from ..models.seq2seq import Seq2SeqModel
from ..models.sequence_classification import BartForSequenceClassification
from ..settings import as_id_tuple
from .prediction import checked_row, Limits, limits_of, predictions, Row


ModelT = TypeVar("ModelT", bound=Seq2SeqModel[Any, Any])
ReadT = TypeVar("ReadT")
AnswerT = TypeVar("AnswerT")

#: A text, or its token ids.
Text = Any
_HEADS = {
    x.__name__
    for x in (
        BartForConditionalGeneration,
        BartForQuestionAnswering,
        BartForSequenceClassification,
    )
}


class Named(NamedTuple):
    """The parts of one input, and what errors call each of them."""

    names: tuple[str, ...]
    values: tuple[Any, ...]


class _Special(NamedTuple):
    """The special tokens of a tokenizer, and the id of `<unk>`."""

    tokens: tuple[str, ...]
    unknown: int | None


def unknown_characters(tokenizer: Any, text: str) -> list[str]:
    """The characters of a text that its tokenizer takes for `<unk>`."""
    unknown = tokenizer.unk_token_id
    return sorted(x for x in set(text) if unknown in tokenizer(x)["input_ids"])


@dataclasses.dataclass(frozen=True)
class Reader:
    """What makes token ids of texts, and says what is wrong with one.

    **Fields:**

    - `tokenizer`: one of transformers'; or `None`, where texts are their ids.
    - `truncate_to`: to how many tokens a text that is longer is cut, the first of a pair;
        `None` for not at all.
    """

    tokenizer: Any
    truncate_to: int | None = None

    def ids(
        self, name: str, text: Text, pair: str | None = None, *, may_cut: bool = True
    ) -> list[int]:
        """The token ids of a text, or of a pair.

        **Raises** `TypeError` or `ValueError` if it cannot be read; `name` is what the
        message calls it.
        """
        if not isinstance(text, str) and is_one(text) and pair is None:
            return [int(i) for i in text]
        for part in (text,) if pair is None else (text, pair):
            self.check(name, part)
        cut: dict[str, Any] = {}
        if may_cut and self.truncate_to is not None:
            cut = {"truncation": "only_first", "max_length": self.truncate_to}
        failure = f"{name} cannot be read by the tokenizer"
        ids = self.tokenized(failure, text, pair, **cut)["input_ids"]
        if self._special.unknown in ids:
            self._check_unknown(name, text + (pair or ""))
        return ids

    def check(self, name: str, text: Any) -> None:
        """**Raises** `TypeError` or `ValueError` if there is nothing to read."""
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a string; it is {text!r}.")
        if self.tokenizer is None:
            raise TypeError(
                f"{name} is a string, and there is no tokenizer: pass tokenizer=..., or "
                "the name of a checkpoint as the model."
            )
        if not text.strip():
            raise ValueError(f"{name} is empty.")
        rest = text
        for token in self._special.tokens:
            rest = rest.replace(token, "")
        if not rest.strip():
            raise ValueError(f"{name} has nothing but special tokens.")

    @functools.cached_property
    def _special(self) -> "_Special":
        """What takes the tokenizer a while to say."""
        tokenizer = self.tokenizer
        return _Special(tuple(tokenizer.all_special_tokens), tokenizer.unk_token_id)

    def _check_unknown(self, name: str, text: str) -> None:
        """**Raises** `ValueError` if there are characters that are no tokens."""
        if unknown := unknown_characters(self.tokenizer, text):
            raise ValueError(
                f"{name} has characters that the tokenizer does not know: "
                f"{' '.join(map(repr, unknown))}."
            )

    def tokenized(self, failure: str, *texts: str | None, **options: Any) -> Any:
        """What the tokenizer makes of a text, or of a pair.

        **Raises** `ValueError` if it fails, which says `failure` and why.
        """
        try:
            return self.tokenizer(*texts, verbose=False, **options)
        except Exception as error:  # of the tokenizer, about what it was given
            raise ValueError(f"{failure}: {error}") from error


@dataclasses.dataclass(frozen=True)
class AbstractTask(abc.ABC, Generic[ReadT, AnswerT]):
    """What a task does with inputs, however many there are; see `mapped`."""

    model: Any
    reader: Reader
    batch_size: int
    progress: bool

    @functools.cached_property
    def limits(self) -> Limits:
        """What the model reads."""
        return limits_of(self.model)

    @abc.abstractmethod
    def read(self, one: Named) -> ReadT:
        """Checks an input, and makes token ids of it."""

    @abc.abstractmethod
    def answers(self, found: Iterable[ReadT]) -> Iterator[AnswerT]:
        """The answers to what has been read, in their order."""

    def row(self, names: tuple[str, ...], columns: tuple[Any, ...], what: Any) -> Row:
        """What `read` makes for `predictions`, see `checked_row`."""
        return checked_row(self.limits, names, columns, what)

    def predictions(
        self, function: Callable[..., Any], rows: Iterable[Row], what: str
    ) -> Iterator[tuple[Any, Any]]:
        """See `predictions`; `what` is being done."""
        bar = what if self.progress else None
        return predictions(function, self.model, rows, batch_size=self.batch_size, bar=bar)

    def group_predictions(
        self, function: Callable[..., Any], groups: Iterable[list[Row]], what: str
    ) -> Iterator[list[tuple[Any, Any]]]:
        """The same of groups of rows, which come out together."""
        sizes = collections.deque[int]()
        rows: Iterable[Row] = _joined(groups, sizes)
        rows = list(rows) if isinstance(groups, Sequence) else rows
        found = self.predictions(function, rows, what)
        for first in found:
            yield [first, *itertools.islice(found, sizes.popleft() - 1)]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs with names of their own, for any task in the place of each part of its
    inputs; those that cannot be read are left out.

    **Fields:**

    - `named`: the inputs, which are read when they are wanted.
    - `on_error`: called with what is wrong with the input that was read last. It has no
        answer.
    """

    named: Iterable[Named]
    on_error: Callable[[Exception], None]

    def read_by(self, task: AbstractTask[ReadT, Any]) -> Iterator[ReadT]:
        """What the task can read."""
        for one in self.named:
            try:
                found = task.read(one)
            except (TypeError, ValueError) as error:
                self.on_error(error)
            else:
                yield found


def _joined(groups: Iterable[list[Row]], sizes: collections.deque[int]) -> Iterator[Row]:
    """The rows of all groups; their sizes are added to `sizes`."""
    for group in groups:
        sizes.append(len(group))
        yield from group


def loaded(
    kind: type[ModelT], model: ModelT | str | Path, tokenizer: Any, *, truncation: bool
) -> tuple[ModelT, Reader]:
    """The model, and what reads for it; both of a checkpoint, if `model` is its name.

    **Raises** `TypeError` if it is a model of another kind; `ValueError` if the checkpoint
    is, or if the tokenizer is that of another model.
    """
    if isinstance(model, str | Path):
        is_file = Path(model).is_file()
        directory = Path(model).parent if is_file else model
        _check_head(kind, directory)
        tokenizer = tokenizer or _read_tokenizer(directory)
        model = kind.from_pretrained(model)
    if not isinstance(model, kind):
        raise TypeError(
            f"This task needs a {kind.__name__}, or the name of its checkpoint; it was "
            f"given a {type(model).__name__}."
        )
    if tokenizer is not None:
        _check_tokenizer(model, tokenizer)
    return model, Reader(tokenizer, model.max_positions if truncation else None)


def _check_head(kind: type, path: str | Path) -> None:
    architecture = BartConfig.from_pretrained(path).architecture
    if architecture in _HEADS - {kind.__name__}:
        raise ValueError(
            f"{path} is the checkpoint of a {architecture}, which has not the head of a "
            f"{kind.__name__}, as this task needs it."
        )


def _read_tokenizer(path: str | Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        path, local_files_only=Path(path).exists(), trust_remote_code=False
    )


def _check_tokenizer(model: Seq2SeqModel[Any, Any], tokenizer: Any) -> None:
    """**Raises** `ValueError` if the tokenizer contradicts the model."""
    special = tokenizer.all_special_ids
    if len(tokenizer) <= len(special):
        raise ValueError("The tokenizer knows no words: its files are missing.")
    beyond = {i for i in range(model.vocab_size, len(tokenizer)) if i not in special}
    if beyond:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, and the model's vocabulary "
            f"{model.vocab_size}: it is another model's."
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        theirs, ours = getattr(tokenizer, name), getattr(model.config, name)
        if None not in (theirs, ours) and theirs not in as_id_tuple(ours):
            raise ValueError(
                f"The {name} of the tokenizer is {theirs}, and the model's {ours}: it is "
                "another model's."
            )


def mapped(
    task: AbstractTask[Any, Any], names: tuple[str, ...], inputs: tuple[Any, ...]
) -> Any:
    """What a task returns: one answer for one input, a list for a list, and an iterator for
    any other iterable, and for `Inputs`.

    **Arguments:**

    - `names`: what errors call each part of the inputs.
    - `inputs`: the parts. The first says whether it is one input.

    **Raises** as `task.read` does, before anything is answered if it is one input, or a
    list; `TypeError` if it is none of these; `ValueError` if it is an empty list, or if
    the parts are not as many as one another.
    """
    if isinstance(inputs[0], Inputs):
        return task.answers(inputs[0].read_by(task))
    if is_one(inputs[0]):
        return next(task.answers([task.read(Named(names, inputs))]))
    for name, part in zip(names, inputs, strict=True):
        if isinstance(part, str | bytes | Mapping) or not isinstance(part, Iterable):
            raise TypeError(
                f"{name} must be a text, a list of texts or another iterable of them, as "
                f"{names[0]} are; it is {part!r}."
            )
    found = map(task.read, _named(names, inputs))
    if not all(isinstance(part, Sequence | np.ndarray) for part in inputs):
        return task.answers(found)
    if not len(inputs[0]):
        raise ValueError(f"{names[0]} is an empty list.")
    return list(task.answers(list(found)))


def _named(names: tuple[str, ...], inputs: tuple[Any, ...]) -> Iterator[Named]:
    missing = object()
    together = itertools.zip_longest(*inputs, fillvalue=missing)
    for number, values in enumerate(together):
        if any(value is missing for value in values):
            raise ValueError(
                f"There are not as many {names[0]} as {' and '.join(names[1:])}."
            )
        yield Named(tuple(f"{name}[{number}]" for name in names), values)


def is_one(inputs: Any) -> bool:
    """Whether this is one text, or the token ids of one."""
    if isinstance(inputs, str | bytes):
        return isinstance(inputs, str)
    if isinstance(inputs, np.ndarray):
        return inputs.ndim == 1 and inputs.dtype.kind in "iu"
    is_ids = isinstance(inputs, Sequence) and len(inputs) > 0
    return is_ids and isinstance(inputs[0], int | np.integer)
