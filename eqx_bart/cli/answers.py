"""A model's answers to the inputs of a command."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..generation.config import GenerationConfig
from ..generation.output import GenerationOutput
from ..models.conditional_generation import BartForConditionalGeneration
from ..tasks.texts import unknown_characters
from .common import InputError
from .inputs import Input
from .picture import write_picture


@dataclasses.dataclass(frozen=True)
class Row:
    """The token ids of an input, and what its random key is made of: its window, and how
    many inputs before it in that window had the same ids."""

    ids: tuple[int, ...]
    draw: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A text that the model generates.

    `score` is its log-probability over its length in tokens to the power
    `length_penalty`; `None` if it was not asked for by `output_token_log_probs`.
    """

    text: str
    score: float | None


class Answerer:
    """What answers inputs: a model, its tokenizer and the settings of `generate`.

    When answers are drawn at random, they are the same for the same inputs with the same
    numbers, however these are batched, and whether or not other windows are answered too.
    """

    def __init__(
        self,
        model: BartForConditionalGeneration,
        tokenizer: Any,
        settings: dict[str, Any],
        seed: int,
        picture: Path | None = None,
    ):
        """`picture` is the file for a picture of the first answer."""
        if picture is not None:
            settings = settings | {"output_attentions": True}
        self._picture = picture
        self._config = model.generation_config.updated(None, settings)
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._key = jax.random.key(seed)
        self._window = 0
        self._num_seen: collections.Counter[tuple[int, ...]] = collections.Counter()

    def row(self, source: Input, *, truncate: bool) -> Row:
        """Reads an input. Those of a window must be read in their order.

        **Raises** `InputError` if the model cannot read it, or not the whole of it unless
        it may be truncated.
        """
        ids = self._token_ids(source.text, truncate=truncate)
        if not self._config.do_sample:
            return Row(ids, (0, 0))
        if source.window != self._window:
            self._window = source.window
            self._num_seen.clear()
        self._num_seen[ids] += 1
        return Row(ids, (source.window, self._num_seen[ids] - 1))

    def _token_ids(self, text: str, *, truncate: bool) -> tuple[int, ...]:
        limit, tokenizer = self._model.config.max_position_embeddings, self._tokenizer
        cut = {"truncation": True, "max_length": limit} if truncate else {}
        ids = tokenizer(text, verbose=False, **cut)["input_ids"]
        if not text.strip() or not ids:
            raise InputError("is empty")
        if tokenizer.unk_token_id in ids:
            unknown = unknown_characters(tokenizer, text)
            raise InputError(
                "has characters that the model does not know: "
                f"{' '.join(map(repr, unknown))}"
            )
        if max(ids) >= self._model.vocab_size:
            raise InputError(
                f"has the token {max(ids)} and the model's vocabulary "
                f"{self._model.vocab_size} tokens: the tokenizer is another model's"
            )
        if len(ids) > limit:
            raise InputError(
                f"has {len(ids)} tokens and the model reads at most {limit}: shorten it, "
                "or pass --truncate"
            )
        return tuple(ids)

    def answers(self, rows: Sequence[Row]) -> list[list[Answer]]:
        """The answers to each row, the best first."""
        answers: dict[Row, list[Answer]] = {}
        # Equal rows of one call would draw by their order in it: each gets its own call.
        for draw in {row.draw for row in rows}:
            group = [row for row in rows if row.draw == draw]
            answers |= zip(group, self._generate(group, draw), strict=True)
        return [answers[row] for row in rows]

    def stream(self, row: Row) -> Iterator[str]:
        """The parts of the answer to a row, each as soon as it is decided; joined, the text
        of `answers`.

        **Raises** `InputError` if the settings ask for more than one answer.
        """
        count = self._config.to_dict().get("num_return_sequences", 1)
        if count > 1:
            raise InputError(
                f"--stream shows one text for each input, and num_return_sequences={count}"
            )
        ids, shown = list[int](), ""
        key = self._key_of(row.draw)
        steps = self._model.stream(np.asarray([row.ids]), key=key, **self._settings)
        for (new,) in steps:
            ids += new.tolist()
            # A character may be several tokens: until it is whole, it is this one.
            text = self._text(ids, unfinished="\ufffd")
            if text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        yield self._text(ids)[len(shown) :]

    def _text(self, ids: list[int], unfinished: str = "") -> str:
        rows = np.asarray([ids], np.int32)
        (text,) = self._tokenizer.batch_decode(rows, skip_special_tokens=True)
        return text.removesuffix(unfinished).strip()

    def _key_of(self, draw: tuple[int, int]) -> PRNGKeyArray:
        return functools.reduce(jax.random.fold_in, draw, self._key)

    def _generate(self, rows: Sequence[Row], draw: tuple[int, int]) -> list[list[Answer]]:
        input_ids = np.zeros((len(rows), max(len(row.ids) for row in rows)), np.int32)
        attention_mask = np.zeros(input_ids.shape, bool)
        for i, row in enumerate(rows):
            input_ids[i, : len(row.ids)] = row.ids
            attention_mask[i, : len(row.ids)] = True
        output = self._model.generate(
            input_ids, attention_mask, key=self._key_of(draw), **self._settings
        )
        if self._picture is not None:
            write_picture(self._picture, self._tokenizer, rows[0].ids, output)
        texts = self._tokenizer.batch_decode(
            np.asarray(output.sequences), skip_special_tokens=True
        )
        scores = _scores(output, self._config)
        answers = [
            Answer(text.strip(), score) for text, score in zip(texts, scores, strict=True)
        ]
        count = len(answers) // len(rows)
        return [answers[i : i + count] for i in range(0, len(answers), count)]


def _scores(output: GenerationOutput, config: GenerationConfig) -> list[float | None]:
    if output.token_log_probs is None:
        return [None] * len(output.sequences)
    scores = output.sequences_scores
    if scores is None:
        power = config.to_dict().get("length_penalty", 1.0)
        num_new = np.asarray(output.lengths) - 1  # after the start token
        log_probs = np.asarray(output.token_log_probs, float)
        scores = np.sum(log_probs, axis=1) / num_new**power
    return np.asarray(scores).tolist()
