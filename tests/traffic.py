"""What devices send one another, and what each of them holds, beside formulas of the
config; run by `test_sharding.py`.

Arguments: `explicit` or `automatic` axes, and meshes, such as `data=2,tensor=2`.

A formula gives the bytes that all results of a collective have on one device, in float32.
"""

import collections
import math
import re
import sys

import equinox as eqx
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from meshes import mesh_of, rows_of

import eqx_bart as eb


CONFIG = eb.BartConfig(
    vocab_size=1016,
    max_position_embeddings=40,
    d_model=32,
    encoder_layers=2,
    decoder_layers=1,
    encoder_ffn_dim=96,
    decoder_ffn_dim=72,
    encoder_attention_heads=4,
    decoder_attention_heads=8,
)
BATCH, SOURCE, TARGET = 8, 24, 12
VOCAB, D = CONFIG.vocab_size, CONFIG.d_model
POSITIONS = CONFIG.max_position_embeddings + 2
MODEL = eqx.nn.inference_mode(
    eb.BartForConditionalGeneration(CONFIG, key=jax.random.key(0))
)
TRAINED = eb.trainable(MODEL)
GATHERING = ("all-gather", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4}
COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) "
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def exchanged(compiled):
    """The bytes of all results of each kind of collective on one device."""
    totals = collections.Counter()
    for shapes, kind in COLLECTIVE.findall(compiled.as_text()):
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            totals[kind] += BYTES[dtype] * math.prod(int(n) for n in sizes.split(",") if n)
    return dict(totals)


def forward(data, fsdp, tensor):
    """A call of the model. Over `tensor`, the sums of what each part of a product gives
    (Megatron's, one for each attention and each feed-forward) and of a lookup in a part of
    the table; over `fsdp`, the weights where they are used, and for a lookup in a part of
    each row of the table the ids there and the rows back."""
    rows = BATCH // data
    own = rows // fsdp
    tokens = {"source": SOURCE, "target": TARGET}
    sums = {"source": 2 * CONFIG.encoder_layers, "target": 3 * CONFIG.decoder_layers}
    found = collections.Counter()
    for name, length in tokens.items():
        if tensor > 1:
            found["all-reduce"] += 4 * own * length * D * sums[name]
            found["all-reduce"] += 4 * rows * length * D // fsdp
        if fsdp > 1:
            found["all-gather"] += 4 * length * D  # the positions that are used
            found["all-gather"] += 4 * rows * length
            found["all-gather"] += rows * length  # which ids are outside the table
            found["all-to-all"] += 4 * own * length * D
        if fsdp > 1 and tensor > 1:
            found["collective-permute"] += 4 * own * length
    if fsdp > 1:
        found["all-gather"] += 4 * (VOCAB * D + weights_of_layers()) // tensor
    return found


def weights_of_layers():
    """How many entries the matrices of all layers have."""
    encoder = 4 * D * D + 2 * D * CONFIG.encoder_ffn_dim
    decoder = 8 * D * D + 2 * D * CONFIG.decoder_ffn_dim
    return CONFIG.encoder_layers * encoder + CONFIG.decoder_layers * decoder


def num_parameters():
    return sum(x.size for x in jax.tree.leaves(eqx.filter(MODEL, TRAINED)))


def biases_of_columns():
    """How many entries the biases have that are split as the columns of their matrices."""
    encoder = CONFIG.encoder_layers * (3 * D + CONFIG.encoder_ffn_dim)
    return encoder + CONFIG.decoder_layers * (6 * D + CONFIG.decoder_ffn_dim)


def training(data, fsdp, tensor):
    """A forward pass and the gradients. XLA's CPU backend sums a gradient and then takes a
    part of it, where others scatter the sums."""
    found = forward(data, fsdp, tensor)
    own = BATCH // (data * fsdp)
    source, target = 4 * own * SOURCE * D, 4 * own * TARGET * D
    if tensor > 1:
        found["all-reduce"] += 2 * 4 * own * TARGET  # the softmax: its maximum and sum
        found["all-reduce"] += target  # by the head's input
        # By the inputs of q, k and v, one by one, and of the feed-forward.
        found["all-reduce"] += 4 * source * CONFIG.encoder_layers
        found["all-reduce"] += (5 * target + 2 * source) * CONFIG.decoder_layers
    if data * fsdp == 1:
        return found
    table = 4 * VOCAB * D // tensor
    matrices = 4 * weights_of_layers() // tensor + table
    positions = 4 * (SOURCE + TARGET) * D  # the rows that are used
    found["all-reduce"] += 4  # the number of labels
    found["all-reduce"] += positions + 4 * biases_of_columns() // tensor + 4 * num_copied()
    found["all-reduce"] += matrices
    if data > 1:  # the parts of matrices once more; and what the two lookups add
        found["all-reduce"] += (fsdp > 1) * matrices // fsdp + 2 * table // fsdp
    if fsdp > 1:  # rows of the table to their parts
        found["all-to-all"] += source + target
    if fsdp > 1 and tensor > 1:  # gathered again, rather than kept
        found["all-gather"] += table
    if min(data, fsdp, tensor) > 1:
        found["all-gather"] += 4 * weights_of_feed_forward() // tensor
    return found


def weights_of_feed_forward():
    encoder = CONFIG.encoder_layers * CONFIG.encoder_ffn_dim
    return 2 * D * (encoder + CONFIG.decoder_layers * CONFIG.decoder_ffn_dim)


def num_copied():
    """How many entries the parameters have of which each device has a copy."""
    split = weights_of_layers() + VOCAB * D + 2 * POSITIONS * D
    return num_parameters() - split - biases_of_columns()


def parameters_of_a_device(fsdp, tensor):
    """What is split over both axes, or over one of them; and what is copied."""
    split = (weights_of_layers() + VOCAB * D) // (fsdp * tensor)
    split += 2 * POSITIONS * D // fsdp + biases_of_columns() // tensor
    return split + num_copied()


def check(name, mesh):
    sizes = [mesh.shape.get(axis, 1) for axis in ("data", "fsdp", "tensor")]
    arrays, rest = eqx.partition(eb.shard(MODEL, mesh), eqx.is_array)
    sharding = NamedSharding(mesh, PartitionSpec(rows_of(mesh)))
    rng = np.random.default_rng(0)
    source, target = (
        jax.device_put(rng.integers(4, VOCAB, (BATCH, length)), sharding)
        for length in (SOURCE, TARGET)
    )

    def call(arrays, source, target):
        return eqx.combine(arrays, rest)(source, decoder_input_ids=target).logits

    def gradients(arrays, source, target):
        trained, fixed = eqx.partition(eqx.combine(arrays, rest), TRAINED)

        def loss(trained):
            return eb.seq2seq_loss(eqx.combine(trained, fixed), source, None, target).mean

        return eqx.filter(eb.shard(eqx.filter_grad(loss)(trained), mesh), eqx.is_array)

    def compiled(function):
        return jax.jit(function).lower(arrays, source, target).compile()

    program = compiled(call)
    assert exchanged(program) == +forward(*sizes), (
        name,
        exchanged(program),
        forward(*sizes),
    )
    own = 4 * parameters_of_a_device(*sizes[1:])
    trained = eqx.filter(eqx.combine(arrays, rest), TRAINED)
    for device in mesh.devices.flat:
        parts = (p for x in jax.tree.leaves(trained) for p in x.addressable_shards)
        held = sum(p.data.nbytes for p in parts if p.device == device)
        assert held == own, (name, held, own)
    # The program's arguments: the parameters, the bias of the logits, and the ids.
    ids = 4 * BATCH * (SOURCE + TARGET) // (sizes[0] * sizes[1])
    arguments = program.memory_analysis().argument_size_in_bytes
    assert arguments == own + 4 * VOCAB // sizes[2] + ids, (name, arguments)
    step = compiled(gradients)
    assert exchanged(step) == +training(*sizes), (name, exchanged(step), training(*sizes))
    outputs = step.memory_analysis().output_size_in_bytes
    assert own <= outputs <= own + 16 * len(jax.tree.leaves(trained)), (name, outputs)


#: For generation: a model whose matrices are smaller than a layer's cache.
WIDE = eb.BartConfig(
    vocab_size=4064,
    max_position_embeddings=64,
    d_model=256,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=256,
    decoder_ffn_dim=256,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
)
NEW_TOKENS = 40
SEARCHES = {
    "greedy": {},
    "samples": {"do_sample": True, "num_return_sequences": 4},
    "beams": {"num_beams": 4},
    "many beams": {"num_beams": 17},
}


def check_generation(name, mesh, settings):
    """Nothing that is gathered has an axis of tokens of the vocabulary, as the logits and
    the table have, or is as large as the keys of one layer."""
    model = eqx.nn.inference_mode(
        eb.BartForConditionalGeneration(WIDE, key=jax.random.key(0))
    )
    arrays, rest = eqx.partition(eb.shard(model, mesh), eqx.is_array)
    ids = np.random.default_rng(0).integers(4, WIDE.vocab_size, (BATCH, SOURCE))
    ids = jax.device_put(ids, NamedSharding(mesh, PartitionSpec(rows_of(mesh))))
    key = jax.random.key(0) if "do_sample" in settings else None

    def generate(arrays, ids):
        options = {"max_new_tokens": NEW_TOKENS, "key": key, **settings}
        return eqx.combine(arrays, rest).generate(ids, **options).sequences

    program = jax.jit(generate).lower(arrays, ids).compile().as_text()
    vocab = {WIDE.vocab_size // parts for parts in (1, 2, 4, 8)}
    gathered = [shapes for shapes, kind in COLLECTIVE.findall(program) if kind in GATHERING]
    for shape in re.findall(r"\w+\[([\d,]+)\]", " ".join(gathered)):
        sizes = [int(n) for n in shape.split(",")]
        assert not vocab.intersection(sizes), (name, settings, shape)
        assert math.prod(sizes) < BATCH * NEW_TOKENS * WIDE.d_model, (name, settings, shape)


with eb.checks("nan"):
    for name in sys.argv[2:]:
        mesh = mesh_of(name, sys.argv[1])
        check(name, mesh)
        for search, settings in SEARCHES.items():
            if (sys.argv[1] == "explicit") == (search != "many beams"):
                check_generation(name, mesh, settings)
sys.stdout.write("done")
