"""Keys and values, and how they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_bart as eb


def test_new_slots_are_written_and_nothing_is_changed_in_place(getkey):
    old = eb.KeyValues.zeros(2, 3, 5, 4, jnp.float32)
    x = jax.random.normal(getkey(), (2, 3, 2, 4))
    written = old.write(eb.KeyValues(x, 2 * x), 1)
    assert np.array_equal(written.keys[:, :, 1:3], x)
    assert np.array_equal(written.values[:, :, 1:3], 2 * x)
    for rest in (written.keys[:, :, :1], written.keys[:, :, 3:], old.keys):
        assert not np.any(rest)
    half = eb.KeyValues.zeros(2, 3, 5, 4, jnp.bfloat16).write(eb.KeyValues(x, x), 0)
    assert half.keys.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 2, 4), "of batch=2, and was given batch=1"),
        ((2, 1, 2, 4), "of heads=3, and was given heads=1"),
        ((2, 3, 2, 3), "of head_dim=4, and was given head_dim=3"),
    ],
)
def test_other_shapes_are_refused(shape, message):
    cache = eb.KeyValues.zeros(2, 3, 5, 4, jnp.float32)
    new = eb.KeyValues(jnp.ones(shape), jnp.ones(shape))
    with pytest.raises(ValueError, match=message):
        cache.write(new, 0)
