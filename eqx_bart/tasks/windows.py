"""A text that is longer than a model reads, cut at the ends of sentences."""

import bisect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple


#: Parts of a sentence that is too long, or of such parts: lines, words, characters.
_SMALLER = tuple(map(re.compile, (r"\s*.+", r"\s*\S+", r"\s*\S")))
#: Whitespace that sentencex 1.0.32 takes for one byte, and fails; a space may stand for it.
_OTHER_SPACES = re.compile(r"[^\S\r\n]")


class Span(NamedTuple):
    """Characters of a text, `text[start:end]`."""

    start: int
    end: int


def windows(
    tokenizer: Any, text: str, most: int, *, prefix: str = "", language: str = "en"
) -> list[tuple[Span, list[int]]]:
    """A text in windows, and the token ids of each.

    A window begins and ends with a sentence; a sentence is cut only if it is too long for
    any window, at lines or, if these are, at words or characters. Between two windows there
    is nothing but whitespace. There are as few windows as possible, of about one length.

    **Arguments:**

    - `tokenizer`: one of transformers'. Each window is read as a text of its own.
    - `most`: how many tokens a window has at most, special ones included.
    - `prefix`: what is put before each window.
    - `language`: the code of the text's, for its abbreviations.

    **Raises** `ValueError` if so few tokens have no room for a character.
    """
    # What goes together counts as no more tokens than its parts, but for what begins a
    # window, whose space the prefix may have: a few more, for which there is room made.
    room = most - len(_ids(tokenizer, [prefix.rstrip()])[0])
    while room > 0:
        spans = _parts(tokenizer, text, room, language)
        runs = partition(_sizes(tokenizer, text, spans), room)
        found = [
            _trimmed(text, spans[run.start].start, spans[run.stop - 1].end) for run in runs
        ]
        ids = _ids(tokenizer, [prefix + text[start:end] for start, end in found])
        excess = max(map(len, ids)) - most
        if excess <= 0:
            return list(zip(found, ids, strict=True))
        room -= excess
    raise ValueError(f"There is no room for a text in windows of {most} tokens.")


def beginning(
    tokenizer: Any, text: str, most: int, *, prefix: str = ""
) -> tuple[Span, list[int]]:
    """The first tokens of a text, `most` of them with special ones, and where they end."""
    encoded = tokenizer(
        prefix + text,
        truncation=True,
        max_length=most,
        return_offsets_mapping=True,
        verbose=False,
    )
    end = max(end for _, end in encoded["offset_mapping"]) - len(prefix)
    return Span(0, max(end, 0)), encoded["input_ids"]


def partition(sizes: Sequence[int], most: int) -> list[slice]:
    """Neighbours in runs, each of which adds up to `most` at most, unless it is one alone:
    as few runs as possible and, of these, such that the largest is as small as possible.
    """
    number = len(_packed(sizes, most))
    limits = range(min(max(sizes), most), most)
    index = bisect.bisect_left(limits, -number, key=lambda n: -len(_packed(sizes, n)))
    return _packed(sizes, limits.start + index)


def _packed(sizes: Sequence[int], most: int) -> list[slice]:
    """Neighbours in runs, each as long as may be."""
    runs, start, total = list[slice](), 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > most:
            runs.append(slice(start, i))
            start, total = i, 0
        total += size
    return [*runs, slice(start, len(sizes))]


def _parts(tokenizer: Any, text: str, room: int, language: str) -> list[Span]:
    """The sentences of a text; of one with more tokens than there is room for, its parts.
    The whitespace between two belongs to the second."""
    spans = list(_sentences(text, language))
    for smaller in _SMALLER:
        sizes = _sizes(tokenizer, text, spans)
        if max(sizes) <= room:
            break
        spans = [
            part
            for span, size in zip(spans, sizes, strict=True)
            for part in ([span] if size <= room else _found(smaller, text, span))
        ]
    return spans


def _found(pattern: re.Pattern[str], text: str, span: Span) -> Iterator[Span]:
    return (Span(*match.span()) for match in pattern.finditer(text, *span))


def _sentences(text: str, language: str) -> Iterator[Span]:
    """The sentences of a text, with all that is in it but whitespace at its end."""
    try:
        import sentencex
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A text that is longer than the model reads is cut at the ends of its "
            "sentences, which the package sentencex finds: pip install 'eqx-bart[tasks]'. "
            "long='truncate' does without."
        ) from error
    splitter: Any = sentencex  # which has no types
    found = splitter.get_sentence_boundaries(language, _OTHER_SPACES.sub(" ", text))
    start = 0
    # Only where sentences end counts, so that nothing is lost between two of them.
    for end in (*(boundary["end_index"] for boundary in found), len(text)):
        if sentence := text[start:end].rstrip():
            yield Span(start, start + len(sentence))
            start += len(sentence)


def _trimmed(text: str, start: int, end: int) -> Span:
    """These characters, without whitespace around them."""
    window = text[start:end]
    return Span(end - len(window.lstrip()), start + len(window.rstrip()))


def _sizes(tokenizer: Any, text: str, spans: Iterable[Span]) -> list[int]:
    parts = [text[start:end] for start, end in spans]
    return list(map(len, _ids(tokenizer, parts, add_special_tokens=False)))


def _ids(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    return tokenizer(texts, verbose=False, **options)["input_ids"]
