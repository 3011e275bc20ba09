"""Every public call on a mesh of two by two devices, beside the same call on one device;
run by `test_mesh.py`.

Arguments: `explicit`, `automatic` or both, for the types of the axes, in order; and the
names of the calls, `all` for every one.
"""

import contextlib
import functools
import itertools
import math
import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from calls import (
    cached,
    call,
    classification,
    decoder_cached,
    distillation,
    generation,
    gradient,
    question_answering,
    seq2seq,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqx_bart as eb


TYPES = {"explicit": AxisType.Explicit, "automatic": AxisType.Auto}
AXES = tuple(TYPES[name] for name in sys.argv[1:3])
MESH = jax.make_mesh((2, 2), ("data", "fsdp"), AXES)
ROWS = 6  # three for each half of the mesh: generation pads them to four
CONFIG = eb.BartConfig(
    vocab_size=50,
    max_position_embeddings=16,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    num_labels=3,
)


def place(x, *axes):
    return jax.device_put(x, NamedSharding(MESH, PartitionSpec(*axes)))


def new(model, seed):
    return eqx.nn.inference_mode(model(CONFIG, key=jax.random.key(seed)))


def whole(model):
    return eqx.filter_shard(model, NamedSharding(MESH, PartitionSpec()))


def in_parts(model):
    """The model, with each weight split along its first axis."""
    arrays, others = eqx.partition(model, eqx.is_array)
    parts = jax.tree.map(
        lambda x: place(x, *["fsdp"] * (x.ndim and x.shape[0] % 2 == 0)), arrays
    )
    return eqx.combine(parts, others)


LM = new(eb.BartForConditionalGeneration, 0)
DECODER = new(eb.BartForCausalLM, 1)
CLASSIFIER = new(eb.BartForSequenceClassification, 2)
IDS = np.random.default_rng(0).integers(4, 50, (ROWS, 5))
IDS[:, -1] = 2
MASK = np.ones_like(IDS)
MASK[1, 3:] = 0


def stepped(model, ids, mask):
    state = model.init_generation(
        ids, mask, max_new_tokens=4, num_beams=2, output_scores=True
    )
    arrays, others = eqx.partition(state, eqx.is_array)

    def is_unfinished(arrays):
        return ~eqx.combine(arrays, others).is_done

    def step(arrays):
        return eqx.filter(model.step(eqx.combine(arrays, others)), eqx.is_array)

    end = jax.lax.while_loop(is_unfinished, step, arrays)
    return eqx.combine(end, others).output()


def continued(model, ids, mask):
    first = model.generate(ids, mask, max_new_tokens=3, output_cache=True)
    second = model.generate(
        decoder_input_ids=first.sequences, cache=first.cache, max_new_tokens=3
    )
    return second.sequences, first.cache.past.cache.layers


def by_row(model, ids, mask):
    """Mapped over rows, which the model then does not see."""
    return jax.vmap(lambda ids, mask: model(ids[None], mask[None]).logits[0])(ids, mask)


def parts(model, ids, mask):
    """What people take a model apart for."""
    embeds = model.model.shared(ids)
    encoder, decoder = model.model.encoder, model.model.decoder
    encoded = encoder(embeds, mask).last_hidden_state
    layer = decoder.layers[0]
    slots = layer.self_attn.init_cache(ROWS, 8, embeds.dtype)
    slots = slots.write(layer.self_attn.key_values(encoded), 1)
    positions = decoder.embed_positions.lookup(decoder.embed_positions.span(0, 5))
    decoded = decoder(embeds + positions).last_hidden_state
    return encoded, slots, decoded, model.projection(decoded)


#: Each call, with the model that it is of.
CALLS = {
    "language model": (LM, call),
    "decoder": (DECODER, call),
    "classifier": (CLASSIFIER, call),
    "question answering": (new(eb.BartForQuestionAnswering, 3), call),
    "trunk": (new(eb.BartModel, 4), call),
    "cached": (LM, cached),
    "decoder, cached": (DECODER, decoder_cached),
    "parts": (LM, parts),
    "by row": (LM, by_row),
    "loss": (LM, gradient(seq2seq)),
    "chunked loss": (LM, gradient(functools.partial(seq2seq, chunk_size=7))),
    "distillation loss": (LM, gradient(functools.partial(distillation, chunk_size=7))),
    "classification loss": (CLASSIFIER, gradient(classification)),
    "question answering loss": (
        new(eb.BartForQuestionAnswering, 3),
        gradient(question_answering),
    ),
    "greedy": (LM, generation()),
    "records": (
        LM,
        generation(
            output_scores=True,
            output_logits=True,
            output_attentions=True,
            output_token_log_probs=True,
        ),
    ),
    "beams": (
        LM,
        generation(
            num_beams=3, num_return_sequences=2, output_scores=True, output_attentions=True
        ),
    ),
    "many beams": (LM, generation(num_beams=17)),
    "samples": (LM, generation(do_sample=True, num_return_sequences=2)),
    "beam sampling": (LM, generation(do_sample=True, num_beams=2)),
    "processors": (
        LM,
        generation(
            repetition_penalty=1.5,
            no_repeat_ngram_size=2,
            encoder_repetition_penalty=1.2,
            bad_words_ids=[[5], [6, 7]],
            min_length=3,
            top_k=5,
            do_sample=True,
        ),
    ),
    "decoder, beams": (DECODER, generation(num_beams=2)),
    "stepped": (LM, stepped),
    "continued": (LM, continued),
}


def check(result, expected, where, *, is_gradient):
    """The arrays are the same, and those of rows are split as the batch is."""
    pairs = zip(
        jtu.tree_leaves_with_path(eqx.filter(result, eqx.is_array)),
        jax.tree.leaves(eqx.filter(expected, eqx.is_array)),
        strict=True,
    )
    for (path, x), y in pairs:
        place = f"{where}{jtu.keystr(path)}: {x.sharding}"
        assert np.allclose(x, y, atol=1e-5), place
        # The compiler copies what is the same for any batch, such as a cache's positions.
        is_decided = AXES[0] is AxisType.Explicit or jnp.issubdtype(x.dtype, jnp.inexact)
        if x.ndim and is_decided and not is_gradient:
            is_by_step = isinstance(result, eb.GenerationOutput) and path[0].name in (
                "scores",
                "logits",
            )
            assert x.sharding.spec[is_by_step] == "data", place


def modes(name):
    """How the weights are split, whether to compile, and whether to set the mesh."""
    for weights, compile_, set_ in itertools.product(
        (whole, in_parts), *[(True, False)] * 2
    ):
        # JAX's gradients outside `jit`, over explicit axes, need a mesh that is set; and a
        # loop outside it needs arrays that do not change their types.
        if compile_ or (set_ if "loss" in name else name != "stepped"):
            yield weights, compile_, set_


def quick_modes(name):
    """Those of them that have mechanisms of their own."""
    is_outside = name in ("records", "samples", "continued")
    return [(in_parts, not is_outside, is_outside)]


def run(name, modes):
    model, function = CALLS[name]
    expected = eqx.filter_jit(function)(model, IDS, MASK)
    ids, mask = place(IDS, "data"), place(MASK, "data")
    for weights, compile_, set_ in modes:
        with jax.set_mesh(MESH) if set_ else contextlib.nullcontext():
            call = eqx.filter_jit(function) if compile_ else function
            result = call(weights(model), ids, mask)
        where = f"{name}, {weights.__name__}, {compile_=}, {set_=}: "
        check(result, expected, where, is_gradient="loss" in name)


def run_stream(**settings):
    expected = list(LM.stream(IDS, MASK, max_new_tokens=4, **settings))
    ids, mask = place(IDS, "data"), place(MASK, "data")
    found = in_parts(LM).stream(ids, mask, max_new_tokens=4, **settings)
    for step, right in zip(found, expected, strict=True):
        assert all(map(np.array_equal, step, right))


def check_that_no_cache_is_gathered():
    """Neither where beams share slots, nor where each has its own, which move."""
    arrays, others = eqx.partition(whole(LM), eqx.is_array)
    for beams in (3, 17):

        def generate(arrays, ids, beams=beams):
            model = eqx.combine(arrays, others)
            return model.generate(ids, num_beams=beams, max_new_tokens=9).sequences

        program = jax.jit(generate).lower(arrays, place(IDS, "data")).compile().as_text()
        shapes = re.findall(r"\w+\[([\d,]+)\]\S* all-gather", program)
        sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
        keys_of_a_layer = ROWS * beams * 9 * CONFIG.d_model
        assert max(sizes) < keys_of_a_layer, (beams, sizes)


def check_other_batches():
    """A batch that is split in another way, or not at all; and parts of one that the model
    is given by `shard_map`."""
    four = IDS[:4]
    batches = (four, place(four), place(four, ("data", "fsdp")), place(four[:3]))
    for ids in batches:
        found = in_parts(LM).generate(ids, max_new_tokens=4).sequences
        expected = LM.generate(np.asarray(ids), max_new_tokens=4).sequences
        assert np.array_equal(found, expected)
        assert found.sharding.num_devices == 4
    arrays, others = eqx.partition(whole(LM), eqx.is_array)
    mapped = jax.shard_map(
        lambda arrays, ids: eqx.combine(arrays, others)(ids).logits,
        mesh=MESH,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec("data"),
    )
    found = jax.jit(mapped)(arrays, place(IDS, "data"))
    assert np.allclose(found, LM(IDS).logits, atol=1e-5)


def check_wrong_ids():
    """The checks are what they are on one device, or on several."""
    wrong = IDS.copy()
    wrong[4, 1] = 1000
    ids = place(wrong, "data")
    for function in (in_parts(LM), in_parts(LM).generate):
        with pytest.raises(ValueError, match=r"input_ids\[4, 1\] is 1000"):
            function(ids)
    logits = np.asarray(eqx.filter_jit(in_parts(LM))(ids).logits)
    assert np.isnan(logits[4]).all()
    assert np.isfinite(np.delete(logits, 4, axis=0)).all()


if sys.argv[3:] == ["all"]:
    for name in CALLS:
        run(name, modes(name))
    run_stream()
    check_that_no_cache_is_gathered()
    check_other_batches()
    check_wrong_ids()
else:
    for name in sys.argv[3:]:
        run(name, quick_modes(name))
with jax.set_mesh(MESH):
    run_stream(num_beams=2)
sys.stdout.write("done")
