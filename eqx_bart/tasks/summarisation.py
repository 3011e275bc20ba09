"""Summaries of texts, of any length."""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from ..explained import explained
from ..generation.config import GenerationConfig
from ..generation.logits_process import LogitsProcessor
from ..generation.output import GenerationOutput
from ..generation.reading import sorted_ahead
from ..models.conditional_generation import BartForConditionalGeneration
from ..nn.processes import on_host
from .prediction import checked_ids
from .texts import AbstractTask, is_one, loaded, mapped, Named
from .windows import beginning, Span, windows


_LONG = ("windows", "truncate", "error")
#: How many tokens HF's pipeline makes, and with how many beams, unless settings say.
_NEW_TOKENS, _BEAMS = 256, 4


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a source, and its summary.

    **Fields:**

    - `start`, `end`: the part is `source[start:end]`.
    - `summary_text`, `summary_token_ids`: its summary, and the ids of that, from the
        decoder's start token on.
    """

    start: int
    end: int
    summary_text: str
    summary_token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The summary of a source.

    **Fields:**

    - `summary_text`, `summary_token_ids`: the summary, and its ids, from the decoder's
        start token on.
    - `source`: what it is the summary of.
    - `windows`: the parts in which the source was read: one, unless it was too long.
    - `merged`: if there are more, the summary of their summaries, joined by spaces; this is
        the summary of the source. `None` for one window, and if these are too long to
        become fewer windows: the summary is then the joined ones, and its ids are theirs.
    """

    summary_text: str
    summary_token_ids: tuple[int, ...]
    source: Any
    windows: tuple[Window, ...]
    merged: "Summary | None" = None


@explained
def summarise(
    model: BartForConditionalGeneration | str | Path,
    texts: Any,
    generation_config: GenerationConfig | None = None,
    *,
    tokenizer: Any = None,
    long: str | None = None,
    language: str = "en",
    batch_size: int = 32,
    progress: bool = False,
    logits_processors: Sequence[LogitsProcessor] = (),
    key: PRNGKeyArray | None = None,
    **settings: Any,
) -> Any:
    """A summary of each text.

    The settings are HF's: the `generation_config` given and `settings` override those that
    the config has for the task (`task_specific_params["summarization"]`), these override
    the model's own `generation_config`; what nobody sets is 256 new tokens, or as many as
    the model has positions for, and 4 beams. If the config has a `prefix`, it is put before
    each text.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `texts`: a text, a list of texts, or another iterable of them, of any length. A text
        may also be its token ids, if the model can read them all; offsets count tokens
        then.
    - `generation_config`, `logits_processors`, `key`, `settings`: as in `generate`.
    - `tokenizer`: the model's, one of transformers'.
    - `long`: what becomes of a text that is longer than the model reads. `"windows"`: it is
        read in windows, as few as possible and of about one length, which begin and end
        with a sentence. Their summaries, joined, are summarised as a text of their own, if
        need be in windows again, until there is one summary; those that do not get shorter
        are the summary as they are, with a warning. `"truncate"`: only its
        beginning is read. `"error"`: it is an error. By default, windows and a warning.
    - `language`: the code of the language whose sentences are looked for, such as `"fr"`.
    - `batch_size`: how many windows are summarised at the same time.
    - `progress`: whether to show a progress bar on the terminal: one for the windows of all
        texts, and one each time that summaries are merged.

    **Returns** a `Summary`; a list of them; or an iterator, which reads ahead no more than
    32 batches.

    **Raises** `TypeError` or `ValueError` if a text is empty or has nothing but special
    tokens, or cannot be cut to windows, and says which: before anything is computed, except
    for iterators. Also if the tokenizer is another model's, or if a setting is impossible.
    `ModuleNotFoundError` if a text is to be cut, and sentencex is not installed.

    Source: HF's `SummarizationPipeline`. That of transformers 4.57 has its 256 tokens and
    its 4 beams override what the model's `generation_config` says of `max_new_tokens` and
    `num_beams`, and its 256 tokens a `max_length` of the task, though its documentation has
    them the other way round; for its tokens, pass these settings.
    """
    if long not in (*_LONG, None):
        raise ValueError(
            f"long must be one of {', '.join(_LONG)}, or None; it is {long!r}."
        )
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}: at least one text is summarised at a time."
        )
    model, reader = loaded(BartForConditionalGeneration, model, tokenizer, truncation=False)
    if reader.tokenizer is None:
        raise TypeError(
            "A summary is made of tokens by the tokenizer: pass tokenizer=..., or the name "
            "of a checkpoint as the model."
        )
    own, prefix = _of_task(model)
    config = own.updated(generation_config, {})
    _check_settings(model, model.generation_config.updated(config, settings))

    def generate(inputs: list[np.ndarray]) -> Iterator[tuple[int, GenerationOutput]]:
        return model.generate_many(
            inputs,
            config,
            batch_size=batch_size,
            progress=progress,
            logits_processors=logits_processors,
            key=key,
            **settings,
        )

    task = _Summarise(model, reader, batch_size, progress, generate, prefix, long, language)
    return mapped(task, ("texts",), (texts,))


#: As Hugging Face spells it.
summarize = summarise


@dataclasses.dataclass(frozen=True)
class _Read:
    """A source that has been read: what errors call it, its number of tokens, and its
    windows, with the token ids of each."""

    name: str
    source: Any
    num_tokens: int
    windows: list[tuple[Span, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Summarise(AbstractTask[_Read, Summary]):
    """`summarise`."""

    generate: Callable[[list[np.ndarray]], Iterator[tuple[int, GenerationOutput]]]
    prefix: str
    long: str | None
    language: str

    def read(self, one: Named) -> _Read:
        ((name,), (source,)) = one
        if not isinstance(source, str) and is_one(source):
            return self._cut(name, source, self.reader.ids(name, source))
        self.reader.check(name, source)
        return self._cut(name, source, self.reader.ids(name, self.prefix + source))

    def answers(self, found: Iterable[_Read]) -> Iterator[Summary]:
        size = self.batch_size
        groups = (
            [found]
            if isinstance(found, list)
            else sorted_ahead(iter(found), size, lambda _: 0)  # in their order
        )
        may_warn = self.long is None
        for sources in groups:
            if may_warn and any(len(source.windows) > 1 for source in sources):
                self._warn(sources)
                may_warn = False
            yield from self._summaries(sources)

    def _cut(self, name: str, source: Any, ids: list[int]) -> _Read:
        """A source with these ids, in windows."""
        tokenizer, most = self.reader.tokenizer, self.model.max_positions
        found = [(Span(0, len(source)), ids)]
        if isinstance(source, str) and len(ids) > most and self.long != "error":
            if self.long == "truncate":
                found = [beginning(tokenizer, source, most, prefix=self.prefix)]
            else:
                options = {"prefix": self.prefix, "language": self.language}
                found = windows(tokenizer, source, most, **options)
        checked = [(span, checked_ids(self.limits, name, ids)) for span, ids in found]
        return _Read(name, source, len(ids), checked)

    def _warn(self, sources: list[_Read]) -> None:
        longest = max(sources, key=lambda source: source.num_tokens)
        warnings.warn(
            f"{longest.name} has {longest.num_tokens} tokens, and the model reads at most "
            f"{self.model.max_positions}: it is read in {len(longest.windows)} windows, "
            "whose summaries are summarised in turn, and so are others that are too long. "
            "long='windows' does so without this warning, long='truncate' reads the "
            "beginning alone, and long='error' refuses.",
            stacklevel=2,
        )

    def _summaries(self, sources: list[_Read]) -> list[Summary]:
        """The summaries of all sources; those of their windows are made together."""
        if not sources:
            return []
        inputs = [ids for source in sources for _, ids in source.windows]
        made = iter([self._made(output) for _, output in self.generate(inputs)])
        parts = [
            tuple([Window(*span, *next(made)) for span, _ in source.windows])
            for source in sources
        ]
        joined = list(map(self._joined, sources, parts))
        merged = iter(self._summaries([one for one in joined if one is not None]))
        return [
            _summary(source.source, part, None if one is None else next(merged))
            for source, part, one in zip(sources, parts, joined, strict=True)
        ]

    def _made(self, output: GenerationOutput) -> tuple[str, tuple[int, ...]]:
        (text,) = output.decode(self.reader.tokenizer, clean_up_tokenization_spaces=False)
        length = on_host(output.lengths)[0]
        return text, tuple(on_host(output.sequences)[0, :length].tolist())

    def _joined(self, source: _Read, parts: tuple[Window, ...]) -> _Read | None:
        """The summaries of the windows, as a source; `None` if there is nothing to merge,
        or if they take as many windows."""
        text = _joined_text(parts)
        if len(parts) == 1 or not text:
            return None
        name = f"the summaries of {source.name}"
        joined = self._cut(name, text, self.reader.ids(name, self.prefix + text))
        if len(joined.windows) < len(parts):
            return joined
        warnings.warn(
            f"The summaries of the {len(parts)} windows of {source.name} have "
            f"{joined.num_tokens} tokens, which take {len(joined.windows)} windows: they "
            "do not become one, and are joined. A smaller max_new_tokens makes them "
            "shorter, and long='truncate' does without.",
            stacklevel=2,
        )
        return None


def _summary(source: Any, parts: tuple[Window, ...], merged: Summary | None) -> Summary:
    first, *others = parts
    if merged is None and others:
        ids = itertools.chain.from_iterable(part.summary_token_ids for part in parts)
        return Summary(_joined_text(parts), tuple(ids), source, parts)
    best = first if merged is None else merged
    return Summary(best.summary_text, best.summary_token_ids, source, parts, merged)


def _joined_text(parts: tuple[Window, ...]) -> str:
    texts = [part.summary_text.strip() for part in parts]
    return " ".join(filter(None, texts))


def _of_task(model: BartForConditionalGeneration) -> tuple[GenerationConfig, str]:
    """The settings for summaries, and what is put before each text.

    **Raises** `ValueError` if the config has something else in their places.
    """
    extra = model.config.extra
    tasks = extra.get("task_specific_params") or {}
    of_task = tasks.get("summarization") or {} if isinstance(tasks, Mapping) else tasks
    if not isinstance(of_task, Mapping):
        raise ValueError(
            "The config's task_specific_params must have the settings of each task by "
            f"their names; they are {tasks!r}."
        )
    settings = dict(of_task)
    prefix = settings.pop("prefix", extra.get("prefix")) or ""
    if not isinstance(prefix, str):
        raise ValueError(f"The config's prefix must be a string; it is {prefix!r}.")
    config = GenerationConfig(
        max_new_tokens=min(_NEW_TOKENS, model.max_positions), num_beams=_BEAMS
    )
    config = config.updated(model.generation_config, {})
    return config.updated(GenerationConfig.from_dict(settings), {}), prefix


def _check_settings(model: BartForConditionalGeneration, config: GenerationConfig) -> None:
    """**Raises** `ValueError` if a setting is impossible, or wants more than a summary."""
    settled = config.settled(1, model.vocab_size, model.max_positions)
    if settled.num_return_sequences > 1:
        raise ValueError(
            f"num_return_sequences={settled.num_return_sequences}: summarise gives one "
            "summary of each text; generate gives more."
        )
