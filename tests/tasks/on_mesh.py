"""A task's rows on a mesh of two by two devices; run by `test_prediction.py`."""

import sys

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType

import eqx_bart as eb


CONFIG = eb.BartConfig(
    vocab_size=24,
    max_position_embeddings=16,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
)
ROWS = [([5, *range(6, 6 + n), 2],) for n in range(1, 9)]
SEEN = []


def states(model, ids, mask):
    found = model.encode(ids, mask).last_hidden_state
    jax.debug.inspect_array_sharding(found, callback=SEEN.append)
    return found[:, 0]


def main():
    model = eb.BartForConditionalGeneration(CONFIG, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    expected = [*eb.tasks.predict(states, model, ROWS, batch_size=4)]
    SEEN.clear()
    types = (getattr(AxisType, sys.argv[1]),) * 2
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), types)
    found = [*eb.tasks.predict(states, eb.shard(model, mesh), ROWS, batch_size=4)]
    np.testing.assert_allclose(found, expected, 1e-4, 1e-6)
    assert SEEN
    assert all(tuple(x.spec)[:1] in {("data",), (("data",),)} for x in SEEN), SEEN
    sys.stdout.write("done")


main()
