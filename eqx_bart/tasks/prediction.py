"""Forwards over any number of rows of token ids, in padded shapes that many rows share."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Integer

from ..explained import explained
from ..generation.inputs import is_traced, usual_length
from ..generation.programs import run
from ..generation.reading import ordered, read, sorted_ahead, with_bar
from ..models.seq2seq import Seq2SeqModel
from ..models.sequence_classification import BartForSequenceClassification
from ..nn.checks import checks
from ..nn.dropout import refuse_training_mode
from ..nn.matmul import power_of_two
from ..nn.mesh import on_any_mesh
from ..nn.processes import on_host


#: Token ids; or more than one sequence of them.
Column = Integer[np.ndarray, "_"] | list[Integer[np.ndarray, "_"]]


class Row(NamedTuple):
    """A row for `predictions`, which `checked_row` makes.

    `shape` has the number of sequences in each column, and the length of the longest, as
    they are padded; `what` is what the result is for.
    """

    columns: tuple[Column, ...]
    shape: tuple[int, ...]
    num_ends: int
    what: Any
    number: int = 0

    @property
    def num_sequences(self) -> int:
        return max(self.shape[::2])


class Limits(NamedTuple):
    """What a model reads.

    `ends` are the tokens of which a row needs one, at which a classifier reads.
    """

    vocab_size: int
    max_positions: int
    ends: tuple[int, ...]


def limits_of(model: Seq2SeqModel[Any, Any]) -> Limits:
    """What the model reads: looked up once, not for each of many rows."""
    is_classifier = isinstance(model, BartForSequenceClassification)
    ends = model.config.eos_token_ids if is_classifier else ()
    return Limits(model.vocab_size, model.max_positions, ends)


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
    limits = limits_of(model)
    checked = (_numbered(limits, number, columns) for number, columns in enumerate(rows))
    found = predictions(
        function,
        model,
        list(checked) if isinstance(rows, Sequence) else checked,
        batch_size=batch_size,
        bar="Predicting" if progress else None,
    )
    return (result for _, result in found)


def _numbered(limits: Limits, number: int, columns: tuple[Any, ...]) -> Row:
    names = tuple([f"rows[{number}][{i}]" for i in range(len(columns))])
    return checked_row(limits, names, columns)


def predictions(
    function: Callable[..., Any],
    model: Seq2SeqModel[Any, Any],
    rows: Iterable[Row],
    *,
    batch_size: int,
    bar: str | None,
) -> Iterator[tuple[Any, Any]]:
    """`predict`, of rows that have been checked: `what` each is for, and its result; `bar`
    is what a progress bar says, if there is to be one."""
    if batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size}: at least one row is computed at a time."
        )
    if is_traced(model):
        raise ValueError(
            "Inside jit, nothing reads inputs one after another: call a function of arrays."
        )
    refuse_training_mode(model, "A task")
    numbered = (row._replace(number=number) for number, row in enumerate(rows))
    found = _computed(function, model, numbered, batch_size)
    if bar is not None:
        found = with_bar(found, len(rows) if isinstance(rows, Sequence) else None, bar)
    return (result for _, result in ordered(found))


def checked_row(
    limits: Limits,
    names: tuple[str, ...],
    columns: tuple[Any, ...],
    what: Any = None,
) -> Row:
    """A row of these columns; `names` is what errors call each of them.

    **Raises** `ValueError` if the model cannot read it.
    """
    pairs = zip(names, columns, strict=True)
    columns = tuple([_column(limits, name, column) for name, column in pairs])
    first = np.concatenate(_sequences(columns[0]))
    num_ends = sum(int(np.count_nonzero(first == end)) for end in limits.ends)
    if limits.ends and num_ends == 0:
        raise ValueError(
            f"{names[0]} has no end of a sequence, a token of {limits.ends}: a "
            "classifier reads the state at the last one."
        )
    shape = list[int]()
    for column in columns:
        sequences = _sequences(column)
        longest = max(map(len, sequences))
        shape += [usual_length(len(sequences), len(sequences) * 2, 1)]
        shape += [usual_length(longest, limits.max_positions)]
    return Row(columns, tuple(shape), num_ends, what)


def _sequences(column: Column) -> list[Integer[np.ndarray, "_"]]:
    return column if isinstance(column, list) else [column]


def _column(limits: Limits, name: str, column: Any) -> Column:
    """A column as arrays.

    **Raises** `ValueError` if the model cannot read it.
    """
    if len(column) > 0 and isinstance(column[0], Sequence | np.ndarray):
        return [checked_ids(limits, f"{name}[{i}]", ids) for i, ids in enumerate(column)]
    return checked_ids(limits, name, column)


def checked_ids(limits: Limits, name: str, ids: Any) -> Integer[np.ndarray, "_"]:
    """The ids of a sequence, as an array.

    **Raises** `ValueError` if the model cannot read it.
    """
    ids = np.asarray(ids)
    if ids.size == 0:
        raise ValueError(f"{name} is empty: a sequence needs at least one token.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a sequence of token ids; it is {ids.dtype}{list(ids.shape)}."
        )
    least, most = ids.min(), ids.max()
    if least < 0 or most >= limits.vocab_size:
        raise ValueError(
            f"{name} has the token {least if least < 0 else most}, and the model's "
            f"vocabulary {limits.vocab_size} tokens."
        )
    if len(ids) > limits.max_positions:
        raise ValueError(
            f"{name} has {len(ids)} tokens, and the model reads at most "
            f"{limits.max_positions}."
        )
    return ids.astype(np.int32)


def _computed(
    function: Callable[..., Any],
    model: Seq2SeqModel[Any, Any],
    rows: Iterator[Row],
    batch_size: int,
) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """The number of each row, what it is for, and its result. A batch is read while the
    next one is computed."""
    pad_token_id = _pad_token_id(model)
    batches = _batches(rows, batch_size)
    before = list[tuple[list[Row], Any]]()
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


def _results(batch: list[Row], output: Any) -> Iterator[tuple[int, tuple[Any, Any]]]:
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


def _batches(rows: Iterator[Row], batch_size: int) -> Iterator[list[Row]]:
    """Rows of about one shape, and with as many ends of sequences, which a classifier
    needs; the largest come first."""
    kind = operator.attrgetter("num_ends")

    def key(row: Row) -> Any:
        return row.num_ends, [-size for size in row.shape]

    for ahead in sorted_ahead(rows, batch_size, key):
        for _, alike in itertools.groupby(ahead, kind):
            group = list(alike)
            while group:
                size = _num_rows(group, batch_size)
                yield group[:size]
                group = group[size:]


def _num_rows(rows: list[Row], batch_size: int) -> int:
    """How many of these rows, one at least, a batch has room for."""
    most = 0
    for number, row in enumerate(rows):
        most = max(most, row.num_sequences)
        if number and (number + 1) * most > batch_size:
            return number
    return len(rows)


def _arrays(batch: list[Row], batch_size: int, pad_token_id: int) -> Iterator[np.ndarray]:
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
