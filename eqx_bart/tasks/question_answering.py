"""Where in a text the answer to a question stands."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ..explained import explained
from ..generation.top_k import top_k as largest
from ..models.question_answering import BartForQuestionAnswering
from ..nn.checks import ArrayLike, Mask
from ..nn.matmul import at_least_float32
from ..nn.mesh import on_any_mesh
from .prediction import Row
from .texts import AbstractTask, loaded, mapped, Named


#: As in HF.
_MAX_SEQ_LEN, _DOC_STRIDE = 384, 128


@dataclasses.dataclass(frozen=True)
class Answer:
    """A span of a context.

    **Fields:**

    - `score`: the probability of its start, times that of its end; where a context has
        more than one window, or a text stands in it more than once, the sum over all.
    - `start`, `end`: where it is: `context[start:end]` is the answer.
    - `answer`: its text, which is empty if there is no answer.
    """

    score: float
    start: int
    end: int
    answer: str


class Spans(NamedTuple):
    """The best spans of each row, by the places of their first and their last token.

    `null_scores` is how likely it is that there is none.
    """

    scores: Float[Array, "batch spans"]
    starts: Integer[Array, "batch spans"]
    ends: Integer[Array, "batch spans"]
    null_scores: Float[Array, " batch"]


@explained
def answer(
    model: BartForQuestionAnswering | str | Path,
    questions: Any,
    contexts: Any,
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
    max_seq_len: int | None = None,
    doc_stride: int | None = None,
    tokenizer: Any = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Any:
    """The answer to each question, as a span of its context.

    A context that is too long is read in windows that overlap.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `questions`, `contexts`: a text each, a list of texts each, or another iterable each,
        of any length.
    - `top_k`: how many answers; fewer if there are not so many.
    - `max_answer_len`: how many tokens an answer may have.
    - `handle_impossible_answer`: whether there may be no answer, as in SQuAD 2. It is then
        one of the answers, with an empty text.
    - `align_to_words`: whether an answer is widened to whole words.
    - `max_seq_len`: how many tokens a window has, the question and the special ones
        included; 384 by default, or as many as the model reads.
    - `doc_stride`: how many tokens of the context two windows share; 128 by default, or
        half a window.
    - `tokenizer`: the model's, one of transformers' fast ones.
    - `batch_size`: how many windows are computed together.
    - `progress`: whether to show a progress bar on the terminal.

    **Returns** a tuple of `Answer`s, the best first; a list of them; or an iterator, which
    reads ahead no more than 32 batches of windows.

    **Raises** `TypeError` or `ValueError` if a text is empty or has nothing but special
    tokens, or if a question leaves no room for its context, and says which: before anything
    is computed, except for iterators. Also if there are not as many questions as contexts,
    or if the tokenizer is another model's.

    Source: HF's `QuestionAnsweringPipeline`, with its scores. Of the same text twice, in
    upper or lower case, the answer is the first, and its score the sum, which where windows
    overlap counts a place twice.
    """
    model, reader = loaded(BartForQuestionAnswering, model, tokenizer, truncation=False)
    if reader.tokenizer is not None and not reader.tokenizer.is_fast:
        raise ValueError(
            "answer needs one of transformers' fast tokenizers, which know the place of "
            "each token in a text."
        )
    size = min(_MAX_SEQ_LEN, model.max_positions) if max_seq_len is None else max_seq_len
    stride = min(size // 2, _DOC_STRIDE) if doc_stride is None else doc_stride
    for name, value, least in (
        ("top_k", top_k, 1),
        ("max_answer_len", max_answer_len, 1),
        ("doc_stride", stride, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be {least} or more; it is {value}.")
    if size > model.max_positions:
        raise ValueError(
            f"max_seq_len={max_seq_len}, and the model reads at most {model.max_positions} "
            "tokens."
        )
    task = _Answers(
        model,
        reader,
        batch_size,
        progress,
        top_k,
        max_answer_len,
        handle_impossible_answer,
        align_to_words,
        {"max_length": size, "stride": stride},
    )
    return mapped(task, ("questions", "contexts"), (questions, contexts))


@on_any_mesh
def best_spans(
    start_logits: Float[Array, "batch length"],
    end_logits: Float[Array, "batch length"],
    context_mask: Mask[ArrayLike, "batch length"],
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
) -> Spans:
    """The best spans of each row, the likeliest first. A pure function, for a `jit` of your
    own.

    Starts and ends have probabilities, the softmax over the context and the first token,
    which stands for no answer. That of a span is their product.

    **Arguments:**

    - `start_logits`, `end_logits`: of a `BartForQuestionAnswering`.
    - `context_mask`: which tokens are those of the context.
    - `top_k`: how many spans; those that do not exist have the score 0.
    - `max_answer_len`: how many tokens a span may have.
    """
    is_context = jnp.asarray(context_mask, bool).at[:, 0].set(False)
    dtype = at_least_float32(start_logits)
    starts, ends = (
        _probabilities(x.astype(dtype), is_context) for x in (start_logits, end_logits)
    )
    null_scores = starts[:, 0] * ends[:, 0]
    starts, ends = (jnp.where(is_context, x, 0) for x in (starts, ends))
    length = starts.shape[1]
    ends = jnp.pad(ends, ((0, 0), (0, max_answer_len - 1)))
    # For each start, the ends that are not too far.
    windows = jnp.stack([ends[:, i : i + length] for i in range(max_answer_len)], axis=-1)
    scores = starts[..., None] * windows
    scores, places = largest(scores, min(top_k, length * max_answer_len))
    first = places // max_answer_len
    return Spans(scores, first, first + places % max_answer_len, null_scores)


def _probabilities(
    logits: Float[Array, "batch length"], is_context: Bool[Array, "batch length"]
) -> Float[Array, "batch length"]:
    """The softmax over the context and the first token."""
    is_choice = is_context.at[:, 0].set(True)
    return jax.nn.softmax(jnp.where(is_choice, logits, -jnp.inf), axis=-1)


def _spans(
    model: BartForQuestionAnswering,
    input_ids: Integer[Array, "batch length"],
    attention_mask: Bool[Array, "batch length"],
    is_context: Integer[Array, "batch length"],
    is_flag: Bool[Array, "batch length"],
    *,
    top_k: int,
    max_answer_len: int,
) -> Spans:
    output = model(input_ids, attention_mask)
    return best_spans(
        output.start_logits,
        output.end_logits,
        (is_context == 1) & is_flag,
        top_k=top_k,
        max_answer_len=max_answer_len,
    )


@functools.cache
def _spans_of(top_k: int, max_answer_len: int) -> Callable[..., Any]:
    """`_spans`, as one function for each pair of numbers: a program is compiled for each
    function."""
    return functools.partial(_spans, top_k=top_k, max_answer_len=max_answer_len)


class _Window(NamedTuple):
    """A part of a context, with what the tokenizer says about its tokens."""

    context: str
    encoding: Any


@dataclasses.dataclass(frozen=True)
class _Answers(AbstractTask[list[Row], tuple[Answer, ...]]):
    """`answer`: a row for each window."""

    top_k: int
    max_answer_len: int
    handle_impossible_answer: bool
    align_to_words: bool
    sizes: dict[str, int]

    def read(self, one: Named) -> list[Row]:
        for name, text in zip(*one, strict=True):
            self.reader.check(name, text)
        encoded = self.reader.tokenized(
            f"{one.names[0]} and {one.names[1]} cannot be read in windows of "
            f"{self.sizes['max_length']} tokens that share {self.sizes['stride']}",
            *one.values,
            truncation="only_second",
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            **self.sizes,
        )
        context = one.values[1]
        return [self._row(one.names, _Window(context, x)) for x in encoded.encodings]

    def _row(self, names: tuple[str, ...], window: _Window) -> Row:
        is_context = [int(i == 1) for i in window.encoding.sequence_ids]
        return self.row(names, (window.encoding.ids, is_context), window)

    def answers(self, found: Iterable[list[Row]]) -> Iterator[tuple[Answer, ...]]:
        # Some fall together when they are widened to words.
        top_k = 2 * self.top_k + 10 if self.align_to_words else self.top_k
        function = _spans_of(top_k, self.max_answer_len)
        for windows in self.group_predictions(function, found, "Answering"):
            yield self._best(windows)

    def _best(self, windows: list[tuple[_Window, Spans]]) -> tuple[Answer, ...]:
        """The best answers from all windows of a context."""
        answers = dict[str, Answer]()
        for window, spans in windows:
            columns = (np.asarray(x).tolist() for x in spans[:3])
            for score, first, last in zip(*columns, strict=True):
                if score > 0:
                    start, end = self._characters(window.encoding, first, last)
                    text = window.context[start:end]
                    known = answers.get(text.lower(), Answer(0.0, start, end, text))
                    new = dataclasses.replace(known, score=known.score + score)
                    answers[text.lower()] = new
        ranked = list(answers.values())
        if self.handle_impossible_answer:
            null_score = min(float(spans.null_scores) for _, spans in windows)
            ranked.append(Answer(null_score, 0, 0, ""))
        return tuple(sorted(ranked, key=lambda one: -one.score)[: self.top_k])

    def _characters(self, encoding: Any, first: int, last: int) -> tuple[int, int]:
        """Where the characters of these tokens begin and end in the context."""
        if self.align_to_words:
            words = (encoding.token_to_word(i) for i in (first, last))
            spans = [encoding.word_to_chars(word, 1) for word in words]
        else:
            spans = [encoding.offsets[i] for i in (first, last)]
        return spans[0][0], spans[1][1]
