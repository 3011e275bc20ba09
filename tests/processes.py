"""What a program of some processes computes, beside one process with all devices; run by
`test_processes.py`.

Arguments: the number of processes, which of them this is, a port, a mesh such as
`data=2,tensor=2`, the types of its axes, the directory of a checkpoint, and one for what is
saved. Each process prints what it found, as JSON. Of more than one, the first then dies
while it saves again.
"""

import collections
import errno
import json
import os
import pathlib
import sys
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from meshes import mesh_of, rows_of

import eqx_bart as eb
from eqx_bart.files import tensors


NUM_PROCESSES, PROCESS, PORT = map(int, sys.argv[1:4])
if NUM_PROCESSES > 1:
    jax.distributed.initialize(f"127.0.0.1:{PORT}", NUM_PROCESSES, PROCESS)
MESH = mesh_of(*sys.argv[4:6])
SOURCE, TARGET = map(pathlib.Path, sys.argv[6:8])
NUM_READ, HELD = [], collections.Counter()
IDS = np.random.default_rng(0).integers(4, 50, (8, 6))
IDS[:, -1] = 2
MASK = np.ones_like(IDS)
MASK[1, 3:] = 0


def counted(file, offset, buffer, whole=tensors.read_into):
    NUM_READ.append(whole(file, offset, buffer))
    return NUM_READ[-1]


def held(size, whole=tensors._aligned_bytes):
    """Memory for what is read, which is counted until it is let go."""
    buffer = whole(size)
    HELD["now"] += size
    HELD["most"] = max(HELD["most"], HELD["now"])
    weakref.finalize(buffer.base, HELD.subtract, {"now": size})
    return buffer


def rows(x):
    """An array whose rows are split, made of those that this process has of its own."""
    sharding = NamedSharding(MESH, PartitionSpec(rows_of(MESH)))
    places = sharding.addressable_devices_indices_map(x.shape).values()
    own = sorted({p[0].indices(len(x))[:2] for p in places})
    local = np.concatenate([x[start:stop] for start, stop in own])
    return jax.make_array_from_process_local_data(sharding, local, x.shape)


def everywhere(x):
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def own_bytes(model):
    """How many bytes of the model's arrays are on this process's devices, each once."""
    total = 0
    for x in jax.tree.leaves(eqx.filter(model, eqx.is_array)):
        parts = {str(part.index): part.data.nbytes for part in x.addressable_shards}
        total += sum(parts.values())
    return total


def trained(model):
    """Five steps of training: the losses, and the model."""
    optimiser = optax.sgd(0.1, momentum=0.9)  # Adam would make much of the last digit
    ids, mask = rows(IDS), rows(MASK)
    is_trained = eb.trainable(model)

    @eqx.filter_jit
    def step(model, state, ids, mask):
        parameters, rest = eqx.partition(model, is_trained)

        def loss(parameters):
            return eb.seq2seq_loss(eqx.combine(parameters, rest), ids, mask, ids).mean

        value, gradients = eqx.filter_value_and_grad(loss)(parameters)
        updates, state = optimiser.update(gradients, state)
        parameters = eqx.apply_updates(parameters, updates)
        return value, eb.shard(eqx.combine(parameters, rest), MESH), eb.shard(state, MESH)

    losses, state = [], eb.shard(optimiser.init(eqx.filter(model, is_trained)), MESH)
    for _ in range(5):
        loss, model, state = step(model, state, ids, mask)
        losses.append(float(loss))
    return losses, model


def generated(model):
    ids, mask = rows(IDS), rows(MASK)
    key = jax.random.key(0)
    settings = {
        "greedy": {},
        "beams": {"num_beams": 4, "num_return_sequences": 2},
        "samples": {"do_sample": True, "key": key, "num_return_sequences": 2},
    }
    found = {}
    for name, options in settings.items():
        output = model.generate(ids, mask, max_new_tokens=6, **options)
        found[name] = everywhere(output.sequences).tolist()
    output = model.generate(IDS[:5], MASK[:5], max_new_tokens=6)  # the same in all of them
    found["of NumPy"] = everywhere(output.sequences).tolist()
    stream = model.stream(ids, mask, max_new_tokens=6)
    found["stream"] = [[row.tolist() for row in step] for step in stream]
    inside = eqx.filter_jit(lambda model, ids: model.generate(ids, max_new_tokens=6))
    found["in jit"] = everywhere(inside(model, ids).sequences).tolist()
    return found


def called(model):
    ids, mask = rows(IDS), rows(MASK)
    encoded = model.encode(ids, mask)
    cache = model.init_cache(encoded, 8, mask)
    _, cache = model.decode(ids[:, :2], cache)
    output, _ = model.decode(ids[:, 2:3], cache)
    return everywhere(jnp.argmax(output.logits[:, -1], axis=-1)).tolist()


def contents(directory):
    return {x.name: x.read_bytes() for x in directory.iterdir()}


def full_disk(_):
    raise OSError(errno.ENOSPC, "No space left")


def die(_):
    os._exit(7)


tensors.read_into, tensors._aligned_bytes = counted, held
model = eb.BartForConditionalGeneration.from_pretrained(SOURCE, mesh=MESH)
found = {"read": sum(NUM_READ), "own": own_bytes(model), "held": HELD["most"]}
found["called"] = called(model)
found["generated"] = generated(model)
try:
    model.generate(IDS + (PROCESS == 1), max_new_tokens=2)
except ValueError as error:
    found["different"] = str(error)
found["losses"], model = trained(model)
model.save_pretrained(TARGET)
before = contents(TARGET)
os.fsync = full_disk
try:
    eb.cast(model, jnp.float16).save_pretrained(TARGET)
except (OSError, RuntimeError) as error:
    found["full disk"] = str(error)
assert contents(TARGET) == before
sys.stdout.write("\n" + json.dumps(found))
sys.stdout.flush()
if NUM_PROCESSES > 1:
    os.fsync = die
    eb.cast(model, jnp.float16).save_pretrained(TARGET)
