"""Batches of examples of mixed lengths, with little padding. All functions run in NumPy,
for loading data.

An example is a pair: the ids that the encoder reads, and the labels.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, PRNGKeyArray

from ..config import BartConfig
from ..models.inputs import IGNORE_INDEX
from ..nn.checks import ArrayLike
from ..nn.output import ModelOutput
from .data import generator, pad_token_id


#: Token ids and labels: lists or arrays, without padding.
Example = tuple[Any, Any]
_Pair = tuple[Integer[np.ndarray, "_"], Integer[np.ndarray, "_"]]


class Seq2SeqBatch(ModelOutput):
    """Rows for `seq2seq_loss`, by the names of its arguments:
    `eb.seq2seq_loss(model, **batch, key=key)`.

    It is a pytree of arrays with as many rows: `jax.tree.map` takes some of them, and
    `jax.device_put` splits them over a mesh.

    **Fields:**

    - `input_ids`, `attention_mask`: what the encoder reads, and which of it are tokens.
    - `labels`: -100 where there are none.
    - `segment_ids`, `decoder_segment_ids`: which example each token of the source, and each
        label, is of: 1 + its number; 0 for padding. `None` where a row is one example.
    """

    input_ids: Integer[ArrayLike, "rows source"]
    attention_mask: Bool[ArrayLike, "rows source"]
    labels: Integer[ArrayLike, "rows target"]
    segment_ids: Integer[ArrayLike, "rows source"] | None = None
    decoder_segment_ids: Integer[ArrayLike, "rows target"] | None = None


def pack(
    examples: Iterable[Example],
    config: BartConfig,
    *,
    source_length: int,
    target_length: int,
    batch_size: int = 1,
) -> Seq2SeqBatch:
    """Puts several examples into a row. Losses and gradients are those of separate rows:
    tokens attend to their own example alone, and its positions begin at 0.

    The examples, the largest first, each go to the first row that has room for their source
    and for their target. Shuffle the rows before you train on a few at a time: large
    examples come first.

    **Arguments:**

    - `examples`: pairs of token ids and labels, of any lengths, some ten thousands at a
        time: the time it takes grows with the square of their number.
    - `config`: says which id is padding.
    - `source_length`, `target_length`: the length of a row, which need not be a length that
        the model has positions for. Let one be to the other as in the examples. In longer
        rows there is less padding, and more work for attention.
    - `batch_size`: the number of rows is a multiple of it; the last ones may be empty.

    **Raises** `ValueError` if an example does not fit into a row, or is empty, and says
    which; if the config has no `pad_token_id`; or if `batch_size` is less than 1.

    Source: Krell et al. 2021 (arXiv:2107.02027). The rows are those of first-fit
    decreasing, by the sum of the shares that an example takes of a row: Panigrahy et al.
    2011, "Heuristics for vector bin packing".
    """
    pairs = _pairs(examples, source_length, target_length)
    sizes = np.array([(len(source), len(target)) for source, target in pairs], np.int64)
    rows = _first_fit(sizes.reshape(-1, 2), np.array([source_length, target_length]))
    return _batch(pairs, rows, config, (source_length, target_length), batch_size)


def pad(
    examples: Iterable[Example],
    config: BartConfig,
    *,
    source_lengths: Sequence[int],
    target_lengths: Sequence[int],
    batch_size: int = 1,
) -> Seq2SeqBatch:
    """Gives each example a row, padded to one of a few lengths, so that few programs are
    compiled. For batches of examples of about one length, see `length_grouped`.

    **Arguments:**

    - `examples`: pairs of token ids and labels.
    - `config`: says which id is padding.
    - `source_lengths`, `target_lengths`: the lengths that rows may have. The shortest is
        taken that every example fits into.
    - `batch_size`: the number of rows is a multiple of it; the last ones may be empty.

    **Raises** as `pack` does.
    """
    pairs = _pairs(examples, max(source_lengths), max(target_lengths))
    longest = [max(map(len, parts), default=0) for parts in zip(*pairs, strict=True)]
    allowed = zip((source_lengths, target_lengths), longest or (0, 0), strict=True)
    source, target = (min(x for x in lengths if x >= need) for lengths, need in allowed)
    rows = [[i] for i in range(len(pairs))]
    batch = _batch(pairs, rows, config, (source, target), batch_size)
    return Seq2SeqBatch(batch.input_ids, batch.attention_mask, batch.labels)


def length_grouped(
    lengths: Integer[ArrayLike, "examples"] | Integer[ArrayLike, "examples kinds"],
    batch_size: int,
    *,
    key: PRNGKeyArray,
    megabatch: int = 50,
) -> list[Integer[np.ndarray, "_"]]:
    """The batches of an epoch, each of examples of about one length, in random order.

    Random groups of `megabatch` batches are sorted by length, and cut into batches. The
    same key gives the same batches: a run goes on at `length_grouped(…)[step:]`.

    **Arguments:**

    - `lengths`: of each example; or several of each, such as those of its source and its
        labels, of which the first counts first. Rounded up to what its rows are padded to,
        it leaves some for the next one to sort.
    - `batch_size`: the number of examples in a batch. The last batch has what is left.
    - `key`: another one for each epoch: `jax.random.fold_in(key, epoch)`.
    - `megabatch`: how many batches are sorted together. More of them differ less in length
        within a batch, and vary less from epoch to epoch.

    **Returns** the numbers of the examples in each batch.

    Source: HF's `LengthGroupedSampler`, which has batches follow one another by length.
    """
    rng, columns = generator(key), np.atleast_2d(np.asarray(lengths).T)[::-1]
    order = rng.permutation(len(lengths))
    size = batch_size * megabatch
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    order = np.concatenate([x[np.lexsort(columns[:, x])] for x in groups] or [order])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    num_whole = len(order) // batch_size
    return [batches[i] for i in rng.permutation(num_whole)] + batches[num_whole:]


def _pairs(
    examples: Iterable[Example], source_length: int, target_length: int
) -> list[_Pair]:
    """The examples, as arrays.

    **Raises** `ValueError` if one is no pair of ids, empty, or longer than allowed.
    """
    pairs = list[_Pair]()
    for i, (source, target) in enumerate(examples):
        pair = (np.asarray(source), np.asarray(target))
        if any(x.ndim != 1 or x.dtype.kind not in "iu" for x in pair if x.size):
            raise ValueError(f"Example {i} must be a pair of lists of ids: {pair}.")
        sizes = (pair[0].size, pair[1].size)
        if min(sizes) == 0 or sizes[0] > source_length or sizes[1] > target_length:
            raise ValueError(
                f"Example {i} has {sizes[0]} tokens and {sizes[1]} labels; a row takes 1 "
                f"to {source_length} and 1 to {target_length}. Truncate the example, leave "
                "it out, or allow longer rows."
            )
        pairs.append(pair)
    return pairs


def _first_fit(
    sizes: Integer[np.ndarray, "examples 2"], room: Integer[np.ndarray, "2"]
) -> list[list[int]]:
    """The numbers of the examples in each row, by first-fit decreasing."""
    rows, free = list[list[int]](), np.empty((2, len(sizes)), np.int64)
    for i in np.argsort(-np.sum(sizes / room, axis=1), kind="stable").tolist():
        source, target = sizes[i]
        fits = (free[0, : len(rows)] >= source) & (free[1, : len(rows)] >= target)
        row = int(np.argmax(fits)) if fits.any() else len(rows)
        if row == len(rows):
            free[:, row] = room
            rows.append([])
        free[:, row] -= sizes[i]
        rows[row].append(i)
    return rows


def _batch(
    pairs: list[_Pair],
    rows: list[list[int]],
    config: BartConfig,
    lengths: tuple[int, int],
    batch_size: int,
) -> Seq2SeqBatch:
    """The examples in their rows, one after the other, and empty rows after these."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; it is {batch_size}.")
    num_rows = len(rows) + -len(rows) % batch_size
    source_shape, target_shape = ((num_rows, length) for length in lengths)
    input_ids = np.full(source_shape, pad_token_id(config), np.int32)
    labels = np.full(target_shape, IGNORE_INDEX, np.int32)
    segment_ids, decoder_segment_ids = (
        np.zeros(shape, np.int32) for shape in (source_shape, target_shape)
    )
    for row, members in enumerate(rows):
        place, decoder_place = 0, 0
        for i in members:
            source, target = pairs[i]
            end, decoder_end = place + len(source), decoder_place + len(target)
            input_ids[row, place:end] = source
            segment_ids[row, place:end] = i + 1
            labels[row, decoder_place:decoder_end] = target
            decoder_segment_ids[row, decoder_place:decoder_end] = i + 1
            place, decoder_place = end, decoder_end
    return Seq2SeqBatch(
        input_ids, segment_ids != 0, labels, segment_ids, decoder_segment_ids
    )
