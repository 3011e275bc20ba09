"""The noise of BART's training: what it keeps, and its statistics."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import scipy.stats

import eqx_bart as eb


BOS, PAD, EOS, MASK, STOP = 0, 1, 2, 99, 50
CONFIG = eb.BartConfig(vocab_size=100)
NOISE = {
    "token_masking": functools.partial(eb.token_masking, mask_token_id=MASK),
    "token_deletion": eb.token_deletion,
    "text_infilling": functools.partial(eb.text_infilling, mask_token_id=MASK),
    "sentence_permutation": functools.partial(
        eb.sentence_permutation, full_stop_ids=(STOP,)
    ),
    "document_rotation": eb.document_rotation,
}


def documents(sizes, width=None):
    """Rows `<s> 3 4 5 … </s>`, so that each token says where it stood."""
    width = width or max(sizes) + 2
    rows = [[BOS, *range(3, 3 + size), EOS] for size in sizes]
    return np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32)


def inside(row):
    """A row's document; that the rest is as it was."""
    row = row[row != PAD]
    assert row[0] == BOS
    assert row[-1] == EOS
    return row[1:-1]


@pytest.mark.parametrize("name", NOISE)
def test_ends_and_padding_stay_and_the_key_decides(name):
    ids = documents([0, 1, 2, 7, 40, 45])
    before = ids.copy()
    noised = NOISE[name](ids, CONFIG, key=jax.random.key(3))
    assert noised.dtype == ids.dtype
    assert np.array_equal(ids, before)
    for row, old in zip(noised, ids, strict=True):
        tokens = row[row != PAD]
        assert np.all(row[len(tokens) :] == PAD)
        assert set(inside(row)) <= {*inside(old), MASK}
    assert np.array_equal(noised, NOISE[name](ids, CONFIG, key=jax.random.key(3)))
    others = [NOISE[name](ids, CONFIG, key=jax.random.key(i)) for i in range(8)]
    if name != "sentence_permutation":
        assert any(not np.array_equal(noised, other) for other in others)
    assert NOISE[name](ids[:0], CONFIG, key=jax.random.key(0)).shape == (0, 47)


@pytest.mark.parametrize("name", NOISE)
def test_rows_without_ends_are_documents_too(name):
    ids = np.array([[7, 8, 9, 10], [7, 8, PAD, PAD]])
    noised = NOISE[name](ids, CONFIG, key=jax.random.key(0))
    assert set(noised.ravel()) <= {7, 8, 9, 10, PAD, MASK}


@pytest.mark.parametrize("name", ["token_masking", "token_deletion", "text_infilling"])
def test_no_noise_is_none(name):
    ids = documents([0, 1, 7])
    noised = NOISE[name](ids, CONFIG, ratio=0.0, key=jax.random.key(0))
    assert np.array_equal(noised, ids)


def test_masking_and_deletion_hit_each_token_alike():
    ids = documents([40] * 4000)
    masked = eb.token_masking(ids, CONFIG, mask_token_id=MASK, key=jax.random.key(0))
    hits = (masked == MASK)[:, 1:-1]
    assert np.all(hits.sum(1) == 6)
    assert np.all(masked[masked != MASK] == ids[masked != MASK])
    assert scipy.stats.chisquare(hits.sum(0)).pvalue > 1e-3

    left = eb.token_deletion(ids, CONFIG, ratio=0.25, key=jax.random.key(1))
    rows = np.array([inside(row) for row in left])
    assert rows.shape == (4000, 30)
    assert np.all(np.diff(rows, axis=1) > 0)
    assert scipy.stats.chisquare(np.bincount(rows.ravel() - 3)).pvalue > 1e-3


def test_infilling_takes_spans_of_poisson_lengths():
    size = 400
    ids = np.array([[BOS, *(np.arange(size) + 100), EOS]] * 600)
    noised = eb.text_infilling(ids, CONFIG, mask_token_id=MASK, key=jax.random.key(2))
    kept = [inside(row)[inside(row) != MASK] for row in noised]
    assert {len(row) for row in kept} == {280}
    assert all(np.all(np.diff(row) > 0) for row in kept)
    taken = np.ones((600, size))
    for flags, row in zip(taken, kept, strict=True):
        flags[row - 100] = 0
    assert scipy.stats.chisquare(taken.sum(0)).pvalue > 1e-3
    spans = np.concatenate([isolated_spans(inside(row), 100, 100 + size) for row in noised])
    counts = np.bincount(np.minimum(spans, 8), minlength=9)
    exact = scipy.stats.poisson(3).pmf(np.arange(9))
    exact[8] = 1 - exact[:8].sum()
    # Of the last span of each of 600 rows, a part may be missing.
    assert abs(counts.sum() * exact - counts).max() < 0.01 * counts.sum()
    masks = (noised == MASK).sum(1)
    assert abs(masks.mean() - 120 / 3) < 1


def isolated_spans(row, first, end):
    """The lengths of the spans of masks that have no mask beside them."""
    is_mask = row == MASK
    beside = np.pad(is_mask, 1)
    alone = is_mask & ~beside[:-2] & ~beside[2:]
    padded = np.concatenate([[first - 1], row, [end]])
    return (padded[2:] - padded[:-2] - 1)[alone]


def test_infilling_may_lengthen_a_row():
    ids = documents([10])
    noised = eb.text_infilling(
        ids, CONFIG, mask_token_id=MASK, poisson_lambda=0.01, key=jax.random.key(0)
    )
    assert noised.shape[1] > 12
    assert noised[0, -1] in (EOS, PAD)
    assert [t for t in inside(noised[0]) if t != MASK] == sorted(
        t for t in inside(noised[0]) if t != MASK
    )
    all_of_it = eb.text_infilling(
        ids, CONFIG, mask_token_id=MASK, ratio=1.0, key=jax.random.key(0)
    )
    assert set(inside(all_of_it[0])) == {MASK}


def test_sentences_are_permuted_as_wholes():
    sentences = [(10, STOP), (11, 12, STOP), (STOP,), (13, 14)]
    row = [BOS, *(token for sentence in sentences for token in sentence), EOS]
    ids = np.array([[*row, PAD]] * 2400)
    noised = eb.sentence_permutation(
        ids, CONFIG, full_stop_ids=(STOP,), key=jax.random.key(4)
    )
    orders = {}
    for row in noised:
        text = tuple(inside(row).tolist())
        orders[text] = orders.get(text, 0) + 1
    assert len(orders) == 24
    assert scipy.stats.chisquare(list(orders.values())).pvalue > 1e-3
    whole = {"".join(map(chr, s)) for s in sentences}
    assert all(all("".join(map(chr, text)).count(s) for s in whole) for text in orders)


def test_documents_are_rotated_to_any_token():
    ids = documents([9] * 3600, width=14)
    noised = eb.document_rotation(ids, CONFIG, key=jax.random.key(5))
    starts = noised[:, 1] - 3
    expected = (np.arange(9) + starts[:, None]) % 9 + 3
    assert np.array_equal(noised[:, 1:10], expected)
    assert scipy.stats.chisquare(np.bincount(starts, minlength=9)).pvalue > 1e-3


def test_wrong_arguments():
    ids, key = documents([5]), jax.random.key(0)
    for ratio in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"ratio must lie in \[0, 1\]; it is {ratio}"):
            eb.token_deletion(ids, CONFIG, ratio=ratio, key=key)
    with pytest.raises(ValueError, match="poisson_lambda must be positive; it is 0"):
        eb.text_infilling(ids, CONFIG, mask_token_id=9, poisson_lambda=0.0, key=key)
    left, between = [[5, 6, 7], [PAD, 6, 7]], [[PAD, PAD, PAD], [5, PAD, 7]]
    for rows in (left, between):
        with pytest.raises(ValueError, match="padded on the right; row 1 has tokens after"):
            eb.document_rotation(np.array(rows), CONFIG, key=key)
    config = dataclasses.replace(CONFIG, pad_token_id=None)
    with pytest.raises(ValueError, match="has no pad_token_id"):
        eb.document_rotation(ids, config, key=key)
