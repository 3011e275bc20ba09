"""Attention by hand, in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart.nn.attention import causal_mask, padding_mask


OFF = eqx.nn.Dropout(0.0)


def by_hand(query, keys, values, mask, bias):
    scores = np.einsum("bhqd,bhkd->bhqk", query, keys) / np.sqrt(query.shape[-1]) + bias
    scores = np.where(mask, scores, -np.inf)
    scores = scores - scores.max(-1, keepdims=True)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return np.einsum("bhqk,bhkd->bhqd", weights, values), weights


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("queries", [1, 5, 40])
def test_dot_product_attention(queries, with_bias, getkey):
    query, keys, values, bias = (
        np.asarray(jax.random.normal(getkey(), (2, 3, *shape)))
        for shape in ((queries, 4), (7, 4), (7, 4), (queries, 7))
    )
    mask = np.array(jax.random.bernoulli(getkey(), 0.6, (2, 1, queries, 7)))
    mask[..., 0] = True
    expected = by_hand(query, keys, values, mask, bias if with_bias else 0)
    found = eb.nn.dot_product_attention(
        jnp.asarray(query),
        eb.KeyValues(jnp.asarray(keys), jnp.asarray(values)),
        jnp.asarray(mask),
        bias=jnp.asarray(bias) if with_bias else None,
        dropout=OFF,
        key=None,
    )
    for a, b in zip(found, expected, strict=True):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_query_that_may_attend_to_nothing_is_finite(getkey):
    x = jax.random.normal(getkey(), (1, 2, 3, 4))
    mask = jnp.zeros((1, 1, 3, 3), bool)
    attended, weights = eb.nn.dot_product_attention(
        x, eb.KeyValues(x, x), mask, dropout=OFF, key=None
    )
    assert np.allclose(weights, 1 / 3)
    assert np.all(np.isfinite(attended))


def test_the_module(getkey):
    """Its projections are drawn one by one; its cache has the shape of what it attends to;
    and its sizes are no parameters."""
    attention = eb.nn.Attention(12, 3, dropout=0.0, init_std=0.5, key=getkey())
    weights = [getattr(attention, f"{x}_proj").weight for x in ("q", "k", "v", "out")]
    assert len(np.unique(np.stack(weights), axis=0)) == 4
    assert not any(isinstance(x, int) and x > 1 for x in jax.tree.leaves(attention))
    states = jax.random.normal(getkey(), (2, 5, 12))
    places = jnp.arange(5)[None]
    new = attention.key_values(states, places)
    cache = attention.init_cache(2, 7, "bfloat16")
    for made, empty in zip(jax.tree.leaves(new), jax.tree.leaves(cache), strict=True):
        assert empty.shape == (2, 3, 7, 4)
        assert made.shape == (2, 3, 5, 4)
        assert empty.dtype == "bfloat16"
    attended, shown = attention(states, places, new, places, None, key=None)
    query, keys, values = (
        np.asarray(eb.nn.split_heads(x(states), 3))
        for x in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    expected, weights = by_hand(query, keys, values, True, 0)
    assert np.allclose(shown, weights, atol=1e-5)
    merged = eb.nn.merge_heads(jnp.asarray(expected))
    assert np.allclose(attended, attention.out_proj(merged), atol=1e-5)


def test_dropout_hits_the_weights(getkey):
    x = jax.random.normal(getkey(), (1, 2, 30, 4))
    dropout = eqx.nn.Dropout(0.25)
    attended, weights = eb.nn.dot_product_attention(
        x, eb.KeyValues(x, x), None, dropout=dropout, key=getkey()
    )
    _, whole = by_hand(*[np.asarray(x)] * 3, True, 0)
    is_left = np.asarray(weights) > 0
    assert 0.7 < is_left.mean() < 0.8
    assert np.allclose(weights, np.where(is_left, whole / 0.75, 0), atol=1e-5)
    assert np.allclose(attended, np.asarray(weights) @ x, atol=1e-5)


def test_heads_are_split_and_merged(getkey):
    x = jax.random.normal(getkey(), (2, 5, 12))
    heads = eb.nn.split_heads(x, 3)
    assert heads.shape == (2, 3, 5, 4)
    assert np.array_equal(heads[1, 2, 3], x[1, 3, 8:])
    assert np.array_equal(eb.nn.merge_heads(heads), x)


def test_masks():
    assert causal_mask(3)[0, 0].tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert padding_mask(np.array([[1, 1, 0]])).tolist() == [[[[True, True, False]]]]
