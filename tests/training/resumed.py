"""Training that is stopped, and goes on from what Orbax has kept, on the same mesh and on
another; run by `test_resumed.py`. The argument is a directory.
"""

import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from meshes import mesh_of, rows_of

import eqx_bart as eb


DIRECTORY = pathlib.Path(sys.argv[1])
DATA = np.random.default_rng(0).integers(4, 60, (6, 8, 7))  # six batches
OPTIM = optax.adamw(1e-2)
CONFIG = eb.BartConfig(
    vocab_size=64,
    max_position_embeddings=16,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    dropout=0.1,
)


@eqx.filter_jit
def step(model, state, ids, key, mesh):
    parameters, rest = eqx.partition(model, eb.trainable(model))

    def loss(parameters):
        whole = eqx.combine(parameters, rest)
        return eb.seq2seq_loss(whole, ids, None, ids, key=key).mean

    value, grads = jax.value_and_grad(loss)(parameters)
    updates, state = OPTIM.update(grads, state, parameters)
    model = eqx.apply_updates(model, updates)
    return eb.shard(model, mesh), eb.shard(state, mesh), value


def train(run, steps, mesh):
    """The run after these steps, and their losses."""
    model, state, key = run
    losses = []
    rows = NamedSharding(mesh, PartitionSpec(rows_of(mesh)))
    for i in steps:
        ids = jax.device_put(DATA[i], rows)
        model, state, loss = step(model, state, ids, jax.random.fold_in(key, i), mesh)
        losses.append(float(loss))
    return (model, state, key), losses


def started(mesh):
    model = eb.shard(eb.BartForConditionalGeneration(CONFIG, key=jax.random.key(0)), mesh)
    state = OPTIM.init(eqx.filter(model, eb.trainable(model)))
    return eb.shard((model, state, jax.random.key(1)), mesh)


def restored(rest, arrays, mesh):
    shapes = eb.shard(eqx.filter_eval_shape(lambda: arrays), mesh)
    with ocp.CheckpointManager(DIRECTORY) as manager:
        saved = manager.restore(
            manager.latest_step(),
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore()
            ),
        )
    return eqx.combine(saved.arrays, rest), saved.data["next"]


mesh = mesh_of("fsdp=4", "explicit")
run, first = train(started(mesh), range(3), mesh)
arrays, rest = eqx.partition(run, eqx.is_array)
with ocp.CheckpointManager(DIRECTORY) as manager:
    manager.save(
        3,
        args=ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), data=ocp.args.JsonSave({"next": 3})
        ),
    )
_, expected = train(run, range(3, 6), mesh)
assert len({*first, *expected}) == 6
again, position = restored(rest, arrays, mesh)
assert train(again, range(position, 6), mesh)[1] == expected  # to the last bit
for text, types in (("data=2,tensor=2", "automatic"), ("data=2,fsdp=2", "explicit")):
    other = mesh_of(text, types)
    moved, position = restored(rest, arrays, other)
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(run), strict=True):
        if eqx.is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert np.array_equal(x, y)
    _, losses = train(moved, range(position, 6), other)
    assert np.allclose(losses, expected, rtol=1e-5), (text, losses, expected)
sys.stdout.write("done")
