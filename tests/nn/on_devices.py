"""What checks do on all the devices that there are; run by `test_checks.py`."""

import contextlib
import os
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqx_bart as eb


MESH = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
ROWS = 8
MESSAGE = "input_ids must lie in [0, 50)"


def place(x, *axes):
    return jax.device_put(x, NamedSharding(MESH, PartitionSpec(*axes)))


@contextlib.contextmanager
def quickly():
    """Hanging devices end the process after 40 s."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5


def outcome(call, *args):
    """The result, or the error."""
    with quickly():
        try:
            return jax.block_until_ready(call(*args))
        except RuntimeError as error:
            return str(error)


def share(call, model, ids):
    """The part of the work that each device does when the batch is split."""

    def flops(model, ids):
        lowered = jax.jit(call).lower(model, ids)
        return lowered.compile().cost_analysis()["flops"]

    return flops(model, place(ids, "data")) / flops(MODEL, ids)


def forward(model, ids):
    return eqx.combine(model, REST)(ids, decoder_input_ids=ids).logits


def loss(model, ids):
    return eb.seq2seq_loss(eqx.combine(model, REST), ids, None, ids % 50).mean


def generate(model, ids):
    return eqx.combine(model, REST).generate(ids, max_new_tokens=3).sequences


config = eb.BartConfig(
    vocab_size=50,
    max_position_embeddings=16,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
)
model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
MODEL, REST = eqx.partition(eqx.nn.inference_mode(model), eqx.is_array)
whole = place(MODEL)
parts = jax.tree.map(
    lambda x: place(x, *["data"] * (x.ndim and x.shape[0] % 8 == 0)), MODEL
)
good = np.random.default_rng(0).integers(4, 50, (ROWS, 5))
bad = good.copy()
bad[5, 2] = 10**6
gradient = jax.grad(loss, allow_int=True)

several = jax.device_count() > 1
default = os.environ.get("EQX_ON_ERROR", "nan" if several else "raise")

if default != "raise":
    for call in (gradient, generate):
        assert share(call, whole, good) <= 1.2 / jax.device_count()

for setting in (None, "raise"):
    with eb.checks(setting) if setting else contextlib.nullcontext():
        for weights in (whole, parts) if setting == "raise" else (whole,):
            call, slope = eqx.filter_jit(forward), eqx.filter_jit(gradient)
            expected = call(weights, place(good, "data"))
            jax.block_until_ready(slope(weights, place(good, "data")))
            for _ in range(3):
                found = outcome(call, weights, place(bad, "data"))
                slopes = outcome(slope, weights, place(bad, "data"))
                match setting or default:
                    case "raise":
                        assert MESSAGE in found
                        assert MESSAGE in slopes
                    case "nan":
                        assert np.isnan(found[5]).all()
                        others = np.arange(ROWS) != 5
                        assert np.array_equal(found[others], expected[others])
                        floats = [
                            x for x in jax.tree.leaves(slopes) if eqx.is_inexact_array(x)
                        ]
                        assert all(np.isnan(x).any() for x in floats)
            if several and (setting or default) != "raise":
                assert call(weights, place(good, "data")).sharding.num_devices > 1

with jax.set_mesh(jax.make_mesh((1,), ("data",), (AxisType.Auto,))):
    if "EQX_ON_ERROR" not in os.environ:  # one device is in force, of those there are
        assert MESSAGE in outcome(eqx.filter_jit(forward), MODEL, jnp.asarray(bad))
sys.stdout.write("done")
