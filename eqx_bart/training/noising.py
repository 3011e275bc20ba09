"""The noise of BART's pre-training, over token ids: the model reads the noised ids, and
learns to write the original.

`input_ids` are rows of ids, `[batch, length]`, padded on the right. The first `<s>` and
the last `</s>` of a row stay where they are; what lies between is its document. All
functions run in NumPy, for loading data, and the same key gives the same noise.

Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.2. Its models were trained with
`text_infilling(sentence_permutation(ids, …), …)`.
"""

import numpy as np
from jaxtyping import Integer, PRNGKeyArray

from ..config import BartConfig
from ..explained import explained
from ..nn.checks import ArrayLike
from .data import generator, pad_token_id


Ids = Integer[np.ndarray, "batch length"]


@explained
def token_masking(
    input_ids: Integer[ArrayLike, "batch length"],
    config: BartConfig,
    *,
    mask_token_id: int,
    ratio: float = 0.15,
    key: PRNGKeyArray,
) -> Ids:
    """Replaces random tokens by the mask.

    **Arguments:**

    - `input_ids`: rows of ids, padded on the right.
    - `config`: says which ids are `<s>`, `</s>` and padding.
    - `mask_token_id`: the mask.
    - `ratio`: the share of each document that is replaced, rounded to whole tokens.
    - `key`: to draw them.

    **Raises** `ValueError` if the ratio lies outside [0, 1], if there is padding before
    tokens, or if the config has no `pad_token_id`.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.2.
    """
    ids, inside = _documents(input_ids, config)
    chosen = _random_subset(inside, _share(inside, ratio), generator(key))
    return np.where(chosen, ids.dtype.type(mask_token_id), ids)


@explained
def token_deletion(
    input_ids: Integer[ArrayLike, "batch length"],
    config: BartConfig,
    *,
    ratio: float = 0.15,
    key: PRNGKeyArray,
) -> Ids:
    """Deletes random tokens.

    **Arguments:**

    - `ratio`: the share of each document that is deleted, rounded to whole tokens.
    - `input_ids`, `config`, `key`: as in `token_masking`.

    **Raises** as `token_masking` does.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.2.
    """
    ids, inside = _documents(input_ids, config)
    deleted = _random_subset(inside, _share(inside, ratio), generator(key))
    order = np.argsort(deleted, axis=1, kind="stable")
    kept = np.take_along_axis(~deleted, order, 1)
    return np.where(kept, np.take_along_axis(ids, order, 1), _padding(config, ids))


@explained
def text_infilling(
    input_ids: Integer[ArrayLike, "batch length"],
    config: BartConfig,
    *,
    mask_token_id: int,
    ratio: float = 0.3,
    poisson_lambda: float = 3.0,
    key: PRNGKeyArray,
) -> Integer[np.ndarray, "batch noised"]:
    """Replaces random spans of tokens by one mask each.

    The lengths of spans are drawn from a Poisson distribution, and the last one is cut to
    fit. Spans lie anywhere, but do not overlap. One of length 0 puts a mask between two
    tokens. With many of these a row grows, and the array with it.

    **Arguments:**

    - `ratio`: the share of each document that the spans cover together, rounded to whole
        tokens.
    - `poisson_lambda`: the mean length of a span, in tokens.
    - `input_ids`, `config`, `mask_token_id`, `key`: as in `token_masking`.

    **Raises** as `token_masking` does, and `ValueError` if `poisson_lambda` is not
    positive.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.2.
    """
    if poisson_lambda <= 0:
        raise ValueError(f"poisson_lambda must be positive; it is {poisson_lambda}.")
    ids, inside = _documents(input_ids, config)
    rng = generator(key)
    lengths, is_span = _spans(_share(inside, ratio), poisson_lambda, rng)
    sizes = inside.sum(1)
    # A document becomes a row of slots: its spans and its other tokens, in random order.
    slots = sizes - lengths.sum(1) + is_span.sum(1)
    first = inside.argmax(1)
    width = max(ids.shape[1], int((ids.shape[1] - sizes + slots).max(initial=0)))
    place = np.arange(width) - first[:, None]
    holds_span = _random_subset(
        (place >= 0) & (place < slots[:, None]), is_span.sum(1), rng
    )
    taken = np.ones(holds_span.shape, np.int64)
    taken[holds_span] = lengths[is_span]
    source = np.cumsum(taken, axis=1) - taken
    is_token = ~holds_span & (source < ids.shape[1])
    tokens = np.take_along_axis(ids, np.minimum(source, ids.shape[1] - 1), 1)
    noised = np.where(is_token, tokens, _padding(config, ids))
    return np.where(holds_span, ids.dtype.type(mask_token_id), noised)


@explained
def sentence_permutation(
    input_ids: Integer[ArrayLike, "batch length"],
    config: BartConfig,
    *,
    full_stop_ids: tuple[int, ...],
    key: PRNGKeyArray,
) -> Ids:
    """Shuffles the sentences of each document.

    **Arguments:**

    - `full_stop_ids`: the tokens that end a sentence. The end of the document does too.
    - `input_ids`, `config`, `key`: as in `token_masking`.

    **Raises** `ValueError` if there is padding before tokens, or if the config has no
    `pad_token_id`.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.2.
    """
    ids, inside = _documents(input_ids, config)
    ends = np.isin(ids, full_stop_ids) & inside
    sentence = np.cumsum(ends, axis=1) - ends
    draws = generator(key).random(ids.shape)
    return _reordered(ids, inside, np.take_along_axis(draws, sentence, 1))


@explained
def document_rotation(
    input_ids: Integer[ArrayLike, "batch length"],
    config: BartConfig,
    *,
    key: PRNGKeyArray,
) -> Ids:
    """Rotates each document, so that it begins with a random one of its tokens.

    **Arguments:**

    - `input_ids`, `config`, `key`: as in `token_masking`.

    **Raises** `ValueError` if there is padding before tokens, or if the config has no
    `pad_token_id`.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 2.2.
    """
    ids, inside = _documents(input_ids, config)
    start = generator(key).random((len(ids), 1)) * inside.sum(1, keepdims=True)
    place = np.cumsum(inside, axis=1) - 1
    return _reordered(ids, inside, place < np.floor(start))


def _documents(
    input_ids: Integer[ArrayLike, "batch length"], config: BartConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The ids, and which of them belong to each row's document.

    **Raises** `ValueError` if there is padding before or between tokens.
    """
    ids = np.asarray(input_ids)
    is_token = ids != _padding(config, ids)
    if np.any(is_token[:, 1:] & ~is_token[:, :-1]):
        row = int(np.argmax(np.any(is_token[:, 1:] & ~is_token[:, :-1], axis=1)))
        raise ValueError(
            f"input_ids must be padded on the right; row {row} has tokens after padding."
        )
    place = np.arange(ids.shape[1])
    is_last = place == is_token.sum(1, keepdims=True) - 1
    is_end = is_last & (ids == config.eos_token_id)
    is_start = (place == 0) & (ids == config.bos_token_id)
    return ids, is_token & ~is_start & ~is_end


def _padding(config: BartConfig, ids: np.ndarray) -> np.integer:
    return ids.dtype.type(pad_token_id(config))


def _share(inside: np.ndarray, ratio: float) -> np.ndarray:
    """How many tokens `ratio` of each document is."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1]; it is {ratio}.")
    return np.rint(inside.sum(1) * ratio).astype(np.int64)


def _random_subset(
    among: np.ndarray, counts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A random subset of each row's True entries, of the size that `counts` says."""
    draws = np.where(among, rng.random(among.shape), np.inf)
    ranks = np.argsort(np.argsort(draws, axis=1), axis=1)
    return ranks < counts[:, None]


def _spans(
    totals: np.ndarray, poisson_lambda: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of spans that add up to each row's total, and which entries are spans."""
    width = int(totals.max(initial=0))
    lengths = np.zeros((len(totals), 0), np.int64)
    while np.any(lengths.sum(1) < totals):
        more = rng.poisson(poisson_lambda, (len(totals), max(width, 1)))
        lengths = np.concatenate([lengths, more], axis=1)
    before = np.cumsum(lengths, axis=1) - lengths
    left = np.maximum(totals[:, None] - before, 0)
    is_span = left > 0
    # The last span is cut; then all are shuffled.
    order = np.argsort(np.where(is_span, rng.random(left.shape), np.inf), axis=1)
    return np.take_along_axis(np.minimum(lengths, left), order, 1), is_span


def _reordered(ids: np.ndarray, inside: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The tokens inside each document, sorted by rank; all others stay."""
    is_before = np.cumsum(inside, axis=1) == 0
    rank = np.where(inside, rank, np.where(is_before, -np.inf, np.inf))
    return np.take_along_axis(ids, np.argsort(rank, axis=1, kind="stable"), 1)
