"""Forwards over any number of rows of token ids, in padded shapes that many rows share."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Integer

from ..explained import explained
from ..generation.inputs import is_traced, power_of_two, usual_length
from ..generation.programs import run
from ..generation.reading import ordered, read, sorted_ahead, with_bar
from ..models.seq2seq import Seq2SeqModel
from ..models.sequence_classification import BartForSequenceClassification
from ..nn.checks import checks
from ..nn.dropout import refuse_training_mode
from ..nn.mesh import on_any_mesh
from ..nn.processes import on_host


#: Token ids; or more than one sequence of them.
Column = Integer[np.ndarray, "_"] | list[Integer[np.ndarray, "_"]]


class Item(NamedTuple):
    """A row for `predictions`: its columns, what errors call each of them, and what the
    result is for."""

    names: tuple[str, ...]
    columns: tuple[Any, ...]
    what: Any = None


class _Row(NamedTuple):
    """An item that has been checked.

    `shape` has the number of sequences in each column, and the length of the longest, as
    they are padded.
    """

    number: int
    columns: tuple[Column, ...]
    shape: tuple[int, ...]
    num_ends: int
    what: Any

    @property
    def num_sequences(self) -> int:
        return max(self.shape[::2])


@explained
def predict(
    function: Callable[..., Any],
    model: Seq2SeqModel[Any, Any],
    rows: Iterable[tuple[Any, ...]],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[Any]:
    """`function(model, ids, mask, ...)` for any number of rows of mixed lengths.

    Rows are read ahead, 32 batches at most, and those of about one length become a batch.
    Batches are padded to lengths that many of them share, quarters of a power of two, so
    that few programs are compiled; the programs are kept. While one batch is read, the next
    one is computed.

    **Arguments:**

    - `function`: a pure function of the model and, for each column of the rows, its ids and
        the mask of what in them is not padding. It returns a pytree of arrays with a row
        for each of theirs. Give the same function again, not another one that is defined in
        the same place: a program is compiled for each.
    - `rows`: the columns of each row, a tuple: `(input_ids,)`, or `(input_ids, labels)`. A
        column is a sequence of token ids, which becomes an array `[batch, length]`; or a
        list of such, of any number of them, which becomes `[batch, number, length]`.
    - `batch_size`: how many sequences of a column are computed together.
    - `progress`: whether to show a progress bar on the terminal.

    **Yields** what `function` returns for each row, in their order, as NumPy arrays without
    the axis of the batch. Axes that go by positions are as long as those of the batch: what
    belongs to the row comes first. A row's numbers do not depend on its neighbours.

    **Raises** `ValueError` if a row is empty, has an id outside the vocabulary, is longer
    than the model reads, or has no `</s>` for a classifier to read, and says which: before
    anything is computed if `rows` is a list; otherwise after the results of those that were
    read before it. `RuntimeError` if the model is in training mode.
    """
    items = (_item(number, columns) for number, columns in enumerate(rows))
    found = predictions(
        function,
        model,
        list(items) if isinstance(rows, Sequence) else items,
        batch_size=batch_size,
        bar="Predicting" if progress else None,
    )
    return (result for _, result in found)


def _item(number: int, columns: tuple[Any, ...]) -> Item:
    names = tuple(f"rows[{number}][{i}]" for i in range(len(columns)))
    return Item(names, columns)


def predictions(
    function: Callable[..., Any],
    model: Seq2SeqModel[Any, Any],
    items: Iterable[Item],
    *,
    batch_size: int,
    bar: str | None,
) -> Iterator[tuple[Any, Any]]:
    """`predict`, of items: `what` each is for, and its result; `bar` is what a progress bar
    says, if there is to be one."""
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}: at least one row is computed at a time."
        )
    if is_traced(model):
        raise ValueError(
            "Inside jit, nothing reads inputs one after another: call a function of arrays."
        )
    refuse_training_mode(model, "A task")
    rows = (_checked(model, number, item) for number, item in enumerate(items))
    if isinstance(items, Sequence):
        rows = iter(list(rows))
    found = _computed(function, model, rows, batch_size)
    if bar is not None:
        found = with_bar(found, len(items) if isinstance(items, Sequence) else None, bar)
    return (result for _, result in ordered(found))


def _checked(model: Seq2SeqModel[Any, Any], number: int, item: Item) -> _Row:
    pairs = zip(item.names, item.columns, strict=True)
    columns = tuple(_column(model, name, column) for name, column in pairs)
    num_ends = 0
    if isinstance(model, BartForSequenceClassification):
        ends = model.config.eos_token_ids
        num_ends = int(np.isin(np.concatenate(_sequences(columns[0])), ends).sum())
        if num_ends == 0:
            raise ValueError(
                f"{item.names[0]} has no end of a sequence, a token of {ends}: a "
                "classifier reads the state at the last one."
            )
    limit, shape = model.max_positions, list[int]()
    for column in columns:
        sequences = _sequences(column)
        longest = max(map(len, sequences))
        shape += [usual_length(len(sequences), len(sequences) * 2, 1)]
        shape += [usual_length(longest, limit)]
    return _Row(number, columns, tuple(shape), num_ends, item.what)


def _sequences(column: Column) -> list[Integer[np.ndarray, "_"]]:
    return column if isinstance(column, list) else [column]


def _column(model: Seq2SeqModel[Any, Any], name: str, column: Any) -> Column:
    """A column as arrays.

    **Raises** `ValueError` if the model cannot read it.
    """
    if len(column) > 0 and np.ndim(column[0]) > 0:
        return [checked_ids(model, f"{name}[{i}]", ids) for i, ids in enumerate(column)]
    return checked_ids(model, name, column)


def checked_ids(
    model: Seq2SeqModel[Any, Any], name: str, ids: Any
) -> Integer[np.ndarray, "_"]:
    """Token ids as an array.

    **Raises** `ValueError` if the model cannot read them.
    """
    ids = np.asarray(ids)
    if ids.size == 0:
        raise ValueError(f"{name} is empty: a sequence needs at least one token.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a sequence of token ids; it is {ids.dtype}{list(ids.shape)}."
        )
    wrong = ids[(ids < 0) | (ids >= model.vocab_size)]
    if len(wrong):
        raise ValueError(
            f"{name} has the token {wrong[0]}, and the model's vocabulary "
            f"{model.vocab_size} tokens."
        )
    if len(ids) > model.max_positions:
        raise ValueError(
            f"{name} has {len(ids)} tokens, and the model reads at most "
            f"{model.max_positions}."
        )
    return ids.astype(np.int32)


def _computed(
    function: Callable[..., Any],
    model: Seq2SeqModel[Any, Any],
    rows: Iterator[_Row],
    batch_size: int,
) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """The number of each row, what it is for, and its result. A batch is read while the
    next one is computed."""
    pad_token_id = _pad_token_id(model)
    batches = _batches(rows, batch_size)
    before = list[tuple[list[_Row], Any]]()
    while True:
        ahead, error = read(batches, 1)
        started = [
            (x, _run(model, function, *_arrays(x, batch_size, pad_token_id))) for x in ahead
        ]
        for batch, output in before:
            yield from _results(batch, output)
        if error is not None:
            raise error
        if not started:
            return
        before = started


@on_any_mesh
def _run(
    model: Seq2SeqModel[Any, Any], function: Callable[..., Any], *arrays: np.ndarray
) -> Any:
    with checks("off"):  # they have been checked
        return run(function, model, *arrays)


def _results(batch: list[_Row], output: Any) -> Iterator[tuple[int, tuple[Any, Any]]]:
    output = jax.tree.map(on_host, output)
    for i, row in enumerate(batch):
        yield row.number, (row.what, jax.tree.map(operator.itemgetter(i), output))


def _pad_token_id(model: Seq2SeqModel[Any, Any]) -> int:
    """What ids are padded with: no end of a sequence, for which a classifier looks."""
    config = model.config
    usual = config.pad_token_id
    if usual is not None and usual not in config.eos_token_ids:
        return usual
    return next(i for i in itertools.count() if i not in config.eos_token_ids)


def _batches(rows: Iterator[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Rows of about one shape, and with as many ends of sequences, which a classifier
    needs; the largest come first."""
    kind = operator.attrgetter("num_ends")

    def key(row: _Row) -> Any:
        return row.num_ends, [-size for size in row.shape]

    for ahead in sorted_ahead(rows, batch_size, key):
        for _, alike in itertools.groupby(ahead, kind):
            group = list(alike)
            while group:
                size = _num_rows(group, batch_size)
                yield group[:size]
                group = group[size:]


def _num_rows(rows: list[_Row], batch_size: int) -> int:
    """How many of these rows, one at least, a batch has room for."""
    most = 0
    for number, row in enumerate(rows):
        most = max(most, row.num_sequences)
        if number and (number + 1) * most > batch_size:
            return number
    return len(rows)


def _arrays(batch: list[_Row], batch_size: int, pad_token_id: int) -> Iterator[np.ndarray]:
    """The ids and the mask of each column, padded; the last row stands for those that
    fill up the batch."""
    shape = np.max([row.shape for row in batch], axis=0).tolist()
    size = min(power_of_two(len(batch)), max(batch_size // max(shape[::2]), len(batch)))
    rows = batch + batch[-1:] * (size - len(batch))
    columns = zip(*[row.columns for row in rows], strict=True)
    for column, number, length in zip(columns, shape[::2], shape[1::2], strict=True):
        ids = np.full((size, number, length), pad_token_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        for i, sequences in enumerate(map(_sequences, column)):
            for j, sequence in enumerate(sequences):
                ids[i, j, : len(sequence)] = sequence
                mask[i, j, : len(sequence)] = True
        is_list = isinstance(column[0], list)
        yield ids if is_list else ids[:, 0]
        yield mask if is_list else mask[:, 0]
