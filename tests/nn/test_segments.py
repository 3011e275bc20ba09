"""Which token is of which example, against loops."""

import jax
import numpy as np

from eqx_bart.nn.segments import (
    any_in_segment,
    segment_mask,
    segment_positions,
    segment_starts,
)


def random_segments(rng, batch, length):
    """Examples of random lengths and numbers, and padding after and between them."""
    rows = np.zeros((batch, length), np.int32)
    for row in rows:
        place = 0
        for number in rng.permutation(np.arange(-3, 9)):
            size = int(rng.integers(1, 5))
            row[place : place + size] = number
            place += size
    return rows


def test_segments():
    rng = np.random.default_rng(0)
    ids, others = random_segments(rng, 4, 20), random_segments(rng, 4, 11)
    flags = rng.random(ids.shape) < 0.1
    starts, positions = np.zeros(ids.shape, bool), np.zeros(ids.shape, int)
    seen = np.zeros(ids.shape, bool)
    for row, column in np.ndindex(ids.shape):
        number = ids[row, column]
        starts[row, column] = column == 0 or ids[row, column - 1] != number
        if number and not starts[row, column]:
            positions[row, column] = positions[row, column - 1] + 1
        seen[row, column] = flags[row, ids[row] == number].any()
    assert np.array_equal(jax.jit(segment_starts)(ids), starts)
    assert np.array_equal(jax.jit(segment_positions)(ids), positions)
    assert np.array_equal(jax.jit(any_in_segment)(flags, ids), seen)
    rows = any_in_segment(jax.numpy.asarray(flags), None)
    assert np.array_equal(rows, flags.any(1, keepdims=True))
    mask = jax.jit(segment_mask)(ids, others)
    assert np.array_equal(mask[:, 0], ids[:, :, None] == others[:, None])
