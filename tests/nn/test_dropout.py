"""LayerDrop."""

import jax
import jax.numpy as jnp

from eqx_bart.nn.dropout import LayerDrop


def test_layerdrop_drops_at_its_rate_and_passes_the_input_on(getkey):
    layerdrop = LayerDrop(0.3)
    old, new = jnp.zeros(3), jnp.ones(3)
    keys = jax.random.split(getkey(), 4000)
    results = jax.vmap(lambda key: layerdrop(new, old, key=key))(keys)
    assert set(results.mean(1).tolist()) == {0, 1}
    assert abs(1 - results.mean() - 0.3) < 0.03
