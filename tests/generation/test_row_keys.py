"""The keys of rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from eqx_bart.generation.row_keys import row_keys


def data(*token_ids, seed=0):
    key = jax.random.key(seed)
    return np.asarray(jax.random.key_data(row_keys(key, *map(jnp.array, token_ids))))


def test_rows_that_differ_at_all_have_other_keys():
    """By a token, its place or their number; by one array of two; by how often the row has
    come before."""
    rows = [[5, 6, 7], [5, 7, 6], [6, 5, 7], [5, 6, 8], [0, 6, 7], [7, 6, 5], [0, 0, 0]]
    rows += [[5, 6, -1], [5, -1, -1], [0, -1, -1], [0, 0, -1], [6, -1, -1], [6, 5, -1]]
    rows += [[5, 6, 7], [0, 0, 0], [0, 0, 0]]
    other = [[1, 2]] * len(rows)
    calls = [(rows,), (rows, other), (other, rows), (rows, rows)]
    keys = np.concatenate([data(*call, seed=seed) for call in calls for seed in (0, 1)])
    assert len(np.unique(keys, axis=0)) == len(keys) == 8 * 16


def test_short_rows_are_all_told_apart():
    """All rows of up to three of nine tokens, each by itself: in a batch, rows that are
    taken for one another get other keys by their order."""
    rows = np.array(list(itertools.product(range(-1, 9), repeat=3)))
    rows = rows[(rows[:, 0] >= 0) & ((rows[:, 1] >= 0) | (rows[:, 2] < 0))]
    assert len(rows) == 9 + 9**2 + 9**3

    def alone(row):
        return jax.random.key_data(row_keys(jax.random.key(0), row[None])[0])

    keys = np.asarray(jax.vmap(alone)(jnp.array(rows)))
    assert len(np.unique(keys, axis=0)) == len(rows)


def test_padding_does_not_count():
    bare = data([[5, 6, 7], [8, 9, 5]], [[1], [2]])
    for rows in (
        [[-1, 5, 6, 7, -1], [8, -1, 9, -1, 5]],
        [[5, 6, 7, -2, -2], [-1, -7, 8, 9, 5]],
    ):
        assert np.array_equal(data(rows, [[-1, 1], [2, -1]]), bare)


def test_rows_that_are_alike_count_from_the_first():
    keys = data([[5, 6], [7, 7], [5, 6], [5, 6], [7, 7]])
    assert np.array_equal(keys[[0, 2, 3]], data([[5, 6]] * 3))
    assert np.array_equal(keys[[1, 4]], data([[7, 7]] * 2))
    assert np.array_equal(keys[:1], data([[5, 6]]))


def test_keys_of_either_kind():
    ids = jnp.array([[5, 6], [7, 7]])
    raw = row_keys(jax.random.PRNGKey(3), ids)
    assert np.array_equal(jax.random.key_data(raw), data(ids, seed=3))
