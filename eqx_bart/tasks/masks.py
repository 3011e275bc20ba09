"""What stands in the place of masks: a token for each."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ..explained import explained
from ..generation.top_k import top_k as largest
from ..models.conditional_generation import BartForConditionalGeneration
from ..nn.checks import ArrayLike, check_range, Mask
from ..nn.matmul import at_least_float32
from ..nn.mesh import on_any_mesh
from .prediction import Row
from .scoring import teacher_forced
from .texts import AbstractTask, loaded, mapped, Named, Reader


@dataclasses.dataclass(frozen=True)
class Filling:
    """A token in the place of a mask.

    **Fields:**

    - `score`: its probability there.
    - `token`, `token_str`: its id, and its text.
    - `sequence`: the text with it. Where there are other masks, these stay, and so do other
        special tokens.
    """

    score: float
    token: int
    token_str: str
    sequence: str


@explained
def fill_mask(
    model: BartForConditionalGeneration | str | Path,
    texts: Any,
    *,
    top_k: int = 5,
    targets: Sequence[str] | None = None,
    tokenizer: Any = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Any:
    """The likeliest tokens in the place of each `<mask>`, all from one pass: the masks are
    not filled one after another.

    BART was trained to write any number of tokens for a mask: `infill` does that.

    **Arguments:**

    - `model`: a model; or the name or the path of a checkpoint, which is then read, with
        its tokenizer, at each call.
    - `texts`: a text with one mask or more, a list of texts, or another iterable of them,
        of any length.
    - `top_k`: how many tokens for each mask.
    - `targets`: the tokens to choose from; all by default. Most begin with a space, as
        words within a text do.
    - `tokenizer`: the model's, one of transformers'.
    - `batch_size`: how many masks are computed together.
    - `progress`: whether to show a progress bar on the terminal.

    **Returns** for each text a tuple with a tuple of `Filling`s for each mask, the
    likeliest first; of a list of texts a list, and of another iterable an iterator, which
    reads ahead no more than 32 batches.

    **Raises** `TypeError` or `ValueError` if a text is empty, too long, without a mask, or
    has nothing but special tokens, and says which: before anything is computed, except for
    iterators. Also if a target is not one token, or if the tokenizer is another model's.

    Source: HF's `FillMaskPipeline`, which takes the first token of a longer target.
    """
    model, reader = loaded(BartForConditionalGeneration, model, tokenizer, truncation=False)
    choices = None if targets is None else _choices(reader, targets)
    most = model.vocab_size if choices is None else len(choices)
    if not top_k >= 1:
        raise ValueError(f"top_k={top_k}: at least one token is asked for.")
    task = _FillMask(model, reader, batch_size, progress, min(top_k, most), choices)
    return mapped(task, ("texts",), (texts,))


@explained
@on_any_mesh
def mask_log_probs(
    model: BartForConditionalGeneration,
    input_ids: Integer[ArrayLike, "batch length"],
    attention_mask: Mask[ArrayLike, "batch length"] | None,
    positions: Integer[ArrayLike, "batch masks"],
) -> Float[Array, "batch masks vocab"]:
    """The log-probability of every token at some positions of each row, in float32 or
    better; the head computes no others. A pure function, for a `jit` of your own.

    **Arguments:**

    - `input_ids`, `attention_mask`: as in a call of the model.
    - `positions`: where the masks are.

    **Raises** as the model does; `ValueError` if a position is outside the row.
    """
    positions = check_range(positions, input_ids.shape[1], "positions", "the row")
    decoded, source = teacher_forced(model, input_ids, attention_mask, input_ids)
    if model.head is not None:
        logits = _at(model.logits(decoded, source), positions)
    else:
        logits = model.projection(_at(decoded.last_hidden_state, positions))
    return jax.nn.log_softmax(logits.astype(at_least_float32(logits)), axis=-1)


def _at(
    x: Float[Array, "batch length width"], positions: Integer[Array, "batch masks"]
) -> Float[Array, "batch masks width"]:
    return jnp.take_along_axis(x, positions[..., None], axis=1)


def _probabilities(
    model: BartForConditionalGeneration,
    input_ids: Integer[Array, "batch length"],
    attention_mask: Bool[Array, "batch length"],
    masks: Integer[Array, "batch masks _"],
) -> Float[Array, "batch masks vocab"]:
    """The probability of each token at the masks, of which a row has as many as it has
    sequences in `masks`."""
    is_mask = (input_ids == masks[:, 0, :1]) & attention_mask
    positions = jnp.argsort(~is_mask, axis=1, stable=True)[:, : masks.shape[1]]
    return jnp.exp(mask_log_probs(model, input_ids, attention_mask, positions))


def _best(
    model: BartForConditionalGeneration,
    input_ids: Integer[Array, "batch length"],
    attention_mask: Bool[Array, "batch length"],
    masks: Integer[Array, "batch masks _"],
    *_: Any,
    top_k: int,
) -> tuple[Float[Array, "batch masks {top_k}"], Integer[Array, "batch masks {top_k}"]]:
    """The likeliest tokens at each mask."""
    found = _probabilities(model, input_ids, attention_mask, masks)
    best = largest(found.reshape(-1, found.shape[-1]), top_k)
    scores, tokens = (x.reshape(*found.shape[:2], top_k) for x in best)
    return scores, tokens


def _of_choices(
    model: BartForConditionalGeneration,
    input_ids: Integer[Array, "batch length"],
    attention_mask: Bool[Array, "batch length"],
    masks: Integer[Array, "batch masks _"],
    _: Any,
    choices: Integer[Array, "batch choices"],
    *__: Any,
) -> Float[Array, "batch masks choices"]:
    """The probabilities of some tokens at each mask."""
    found = _probabilities(model, input_ids, attention_mask, masks)
    return jnp.take_along_axis(found, choices[:, None], axis=-1)


@functools.cache
def _best_of(top_k: int) -> Callable[..., Any]:
    """`_best`, as one function for each number: a program is compiled for each function."""
    return functools.partial(_best, top_k=top_k)


@dataclasses.dataclass(frozen=True)
class _FillMask(AbstractTask[Row, tuple[tuple[Filling, ...], ...]]):
    """`fill_mask`."""

    top_k: int
    choices: tuple[int, ...] | None

    def read(self, one: Named) -> Row:
        ((name,), (text,)) = one
        ids = ids_with_masks(self.reader, name, text)
        mask = self.reader.tokenizer.mask_token_id
        columns = (ids, [[mask]] * ids.count(mask))
        if self.choices is not None:
            return self.row((name,) * 3, (*columns, self.choices), ids)
        return self.row((name,) * 2, columns, ids)

    def answers(self, found: Iterable[Row]) -> Iterator[tuple[tuple[Filling, ...], ...]]:
        mask = self.reader.tokenizer.mask_token_id
        function = _best_of(self.top_k) if self.choices is None else _of_choices
        for ids, result in self.predictions(function, found, "Filling"):
            scores, tokens = result if self.choices is None else self._ranked(result)
            places = [i for i, token in enumerate(ids) if token == mask]
            is_only = len(places) == 1
            yield tuple(
                [
                    self._fillings(ids, place, scores[i], tokens[i], is_only=is_only)
                    for i, place in enumerate(places)
                ]
            )

    def _ranked(
        self, scores: Float[np.ndarray, "masks _"]
    ) -> tuple[Float[np.ndarray, "masks _"], Integer[np.ndarray, "masks _"]]:
        """The best of the choices at each mask."""
        choices = np.asarray(self.choices)
        scores = scores[:, : len(choices)]
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k]
        return np.take_along_axis(scores, best, axis=1), choices[best]

    def _fillings(
        self,
        ids: list[int],
        place: int,
        scores: Float[np.ndarray, " top_k"],
        tokens: Integer[np.ndarray, " top_k"],
        *,
        is_only: bool,
    ) -> tuple[Filling, ...]:
        decode = self.reader.tokenizer.decode
        fillings = list[Filling]()
        for score, token in zip(scores.tolist(), tokens.tolist(), strict=True):
            filled = [*ids[:place], token, *ids[place + 1 :]]
            text = decode(filled, skip_special_tokens=is_only)
            fillings.append(Filling(score, token, decode([token]), text))
        return tuple(fillings)


def ids_with_masks(reader: Reader, name: str, text: Any) -> list[int]:
    """The token ids of a text that has masks.

    **Raises** `TypeError` or `ValueError` if it has none, or as `Reader.ids` does.
    """
    reader.check(name, text)
    token = reader.tokenizer.mask_token
    if token is None:
        raise ValueError("The tokenizer has no mask token: its model is of another kind.")
    ids = reader.ids(name, text)
    if reader.tokenizer.mask_token_id not in ids:
        raise ValueError(f"{name} has no mask: write {token!r} where something is missing.")
    return ids


def _choices(reader: Reader, targets: Sequence[str]) -> tuple[int, ...]:
    """The tokens that these are.

    **Raises** `ValueError` if one is more than one token, or if there are none.
    """
    if isinstance(targets, str):
        raise TypeError(f"targets must be a list of strings; they are {targets!r}.")
    if not targets:
        raise ValueError("targets is an empty list: there is nothing to choose from.")
    found = list[int]()
    for number, target in enumerate(targets):
        name = f"targets[{number}]"
        reader.check(name, target)
        ids = reader.tokenizer(target, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = reader.tokenizer.convert_ids_to_tokens(ids)
            raise ValueError(
                f"{name}, {target!r}, is {len(ids)} tokens, {pieces}, and a mask is one. "
                "Most words are one token with a space before them."
            )
        found += ids
    return tuple(dict.fromkeys(found))
