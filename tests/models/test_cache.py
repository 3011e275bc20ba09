"""What the cache of decoding says about the next tokens, and what it refuses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from eqx_bart.models.cache import BartCache, check_max_length


@pytest.fixture
def cache(config):
    """A cache of 2 rows and 5 slots, of which 2 are taken."""
    return BartCache(config, 2, 5, ()).advance((), 2)


def test_the_next_tokens_see_the_past_and_themselves(cache):
    assert (cache.batch_size, cache.max_length, int(cache.length)) == (2, 5, 2)
    mask = cache.mask(2)
    assert mask.shape == (2, 1, 2, 5)
    assert mask[1, 0].astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    hidden = cache.expect(attention_mask=np.array([[0, 1], [1, 0]]))
    later = hidden.advance((), 2).mask(1)[:, 0, 0].astype(int)
    assert later.tolist() == [[1, 1, 0, 1, 1], [1, 1, 1, 0, 1]]
    assert np.all(cache.attention_mask)


def test_positions_follow_one_another_unless_they_are_given(cache):
    assert cache.positions.tolist() == [[0, 1, 2, 3, 4]] * 2
    given = cache.expect(position_ids=jnp.array([[7, 9]]))
    assert given.positions.tolist() == [[0, 1, 7, 9, 4]] * 2
    by_row = cache.expect(position_ids=jnp.array([[7, 9], [8, 6]]))
    assert by_row.positions.tolist() == [[0, 1, 7, 9, 4], [0, 1, 8, 6, 4]]
    assert by_row.positions.dtype == cache.positions.dtype
    assert np.all(by_row.attention_mask)


def test_what_fits_exactly_is_taken_and_no_more(cache, config):
    def embeds(rows, tokens):
        return jnp.ones((rows, tokens, 40))

    assert np.array_equal(cache.checked(config, embeds(2, 3)), embeds(2, 3))
    empty = BartCache(config, 2, 5, ())
    assert np.array_equal(empty.checked(config, embeds(2, 5)), embeds(2, 5))
    other = dataclasses.replace(config, d_model=48)
    for wrong, message in (
        (
            (config, embeds(2, 4)),
            "room for max_length=5 tokens: 4 more do not fit after those",
        ),
        (
            (config, embeds(2, 6)),
            "room for max_length=5 tokens: 6 more do not fit even when it is",
        ),
        (
            (config, embeds(3, 1)),
            "holds a batch of 2 rows and was given decoder_input_ids for 3",
        ),
        ((other, embeds(2, 1)), "belongs to a model with another config"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.checked(*wrong)


def test_a_cache_has_as_many_slots_as_the_model_has_positions():
    assert [check_max_length(n, 9) for n in (1, 9)] == [1, 9]
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=f"max_length={wrong} tokens does not fit"):
            check_max_length(wrong, 9)
