"""Models that `shard` has laid out over a mesh, beside the same ones on one device, in
float64; run by `test_sharding.py`.

Arguments: `explicit`, `automatic` or `mixed` axes; `few` calls, the `others` or `all` of
them; and meshes, such as `data=2,tensor=2`.
"""

import functools
import math
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from calls import (
    cached,
    call,
    classification,
    decoder_cached,
    distillation,
    generation,
    gradient,
    packed_seq2seq,
    question_answering,
    seq2seq,
)
from jax.sharding import NamedSharding, PartitionSpec
from meshes import mesh_of, rows_of

import eqx_bart as eb


jax.config.update("jax_enable_x64", True)

CONFIG = {
    "vocab_size": 264,  # four parts, each of a block of the top-k and some more
    "max_position_embeddings": 16,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_labels": 3,
    "init_std": 0.3,
}


def new(model, seed, **changes):
    config = eb.BartConfig(**CONFIG | changes)
    model = eqx.nn.inference_mode(model(config, key=jax.random.key(seed)))
    return eb.cast(model, jnp.float64)


LM = new(eb.BartForConditionalGeneration, 0)
ODD = new(eb.BartForConditionalGeneration, 1, vocab_size=50)
UNTIED = new(eb.BartForConditionalGeneration, 2, tie_word_embeddings=False)
ADAPTED = eb.lora(LM, 4, ("q_proj", "out_proj", "fc1", "fc2"), key=jax.random.key(3))
QUANTIZED = eb.quantize(LM)
CLASSIFIER = new(eb.BartForSequenceClassification, 4)
QA = new(eb.BartForQuestionAnswering, 5)
DECODER = new(eb.BartForCausalLM, 6)
IDS = np.random.default_rng(0).integers(4, 50, (8, 5))
IDS[:, -1] = 2
MASK = np.ones_like(IDS)
MASK[1, 3:] = 0

BEAMS = {"num_beams": 4, "num_return_sequences": 2, "output_token_log_probs": True}

#: Each call, with the model that it is of, and how many rows it is given.
CALLS = {
    "language model": (LM, call, 8),
    "odd rows": (LM, call, 5),
    "trunk": (new(eb.BartModel, 7), call, 8),
    "untied": (UNTIED, call, 8),
    "adapted": (ADAPTED, call, 8),
    "in 8 bits": (QUANTIZED, call, 8),
    "classifier": (CLASSIFIER, call, 8),
    "question answering": (QA, call, 8),
    "decoder": (DECODER, call, 8),
    "cached": (LM, cached, 8),
    "decoder, cached": (DECODER, decoder_cached, 8),
    "loss": (LM, gradient(seq2seq), 8),
    "loss, odd vocabulary": (ODD, gradient(seq2seq), 8),
    "loss, untied": (UNTIED, gradient(seq2seq), 8),
    "loss, adapted": (ADAPTED, gradient(seq2seq), 8),
    "loss, chunked": (LM, gradient(functools.partial(seq2seq, chunk_size=8)), 8),
    "loss, packed": (LM, gradient(packed_seq2seq), 8),
    "loss, packed, chunked": (
        LM,
        gradient(functools.partial(packed_seq2seq, chunk_size=8)),
        8,
    ),
    "loss, distilled": (LM, gradient(distillation), 8),
    "loss, distilled, chunked": (
        LM,
        gradient(functools.partial(distillation, chunk_size=8)),
        8,
    ),
    "loss, classifier": (CLASSIFIER, gradient(classification), 8),
    "loss, question answering": (QA, gradient(question_answering), 8),
    "greedy": (LM, generation(output_token_log_probs=True, output_scores=True), 5),
    "greedy, odd vocabulary": (ODD, generation(), 8),
    "samples": (LM, generation(do_sample=True, num_return_sequences=2), 5),
    "drafts": (LM, generation(prompt_lookup_num_tokens=3, output_scores=True), 5),
    "beams": (LM, generation(**BEAMS), 5),
    "beams, odd vocabulary": (ODD, generation(**BEAMS), 5),
    "beams in groups": (
        LM,
        generation(**BEAMS, num_beam_groups=2, diversity_penalty=0.5, output_scores=True),
        5,
    ),
    "beams, in 8 bits": (QUANTIZED, generation(**BEAMS), 5),
    "beam sampling": (LM, generation(**BEAMS, do_sample=True), 5),
    "processors": (
        UNTIED,
        generation(
            repetition_penalty=1.5,
            no_repeat_ngram_size=2,
            top_k=9,
            top_p=0.9,
            do_sample=True,
        ),
        8,
    ),
    "decoder, beams": (DECODER, generation(num_beams=17), 4),
}


#: Those that have a mechanism of their own on a mesh.
FEW = (
    "language model",
    "in 8 bits",
    "loss",
    "loss, packed",
    "greedy",
    "samples",
    "beams",
    "beam sampling",
)


def check(found, expected, where, mesh):
    pairs = zip(
        jtu.tree_leaves_with_path(eqx.filter(found, eqx.is_array)),
        jax.tree.leaves(eqx.filter(expected, eqx.is_array)),
        strict=True,
    )
    for (path, x), y in pairs:
        place = f"{where}: {jtu.keystr(path)}"
        assert x.shape == y.shape, place
        assert np.allclose(x, y, rtol=1e-10, atol=1e-10), place
        assert x.sharding.num_devices == mesh.size, place


def run(name, meshes):
    model, function, num_rows = CALLS[name]
    ids, mask = IDS[:num_rows], MASK[:num_rows]
    expected = eqx.filter_jit(function)(model, ids, mask)
    for mesh in meshes:
        axes = rows_of(mesh)
        if num_rows % math.prod(mesh.shape[x] for x in axes or ()):
            axes = None
        rows = NamedSharding(mesh, PartitionSpec(axes))
        placed = jax.device_put((ids, mask), rows)
        sharded = eb.shard(model, mesh)
        where = f"{name}, {mesh}"
        found = eqx.filter_jit(function)(sharded, *placed)
        check(found, expected, f"{where}, in jit", mesh)
        if name == "beams" and mesh == meshes[-1]:
            check(function(sharded, *placed), expected, where, mesh)
            check(function(sharded, ids, mask), expected, f"{where}, of NumPy", mesh)
            assert np.allclose(many(sharded), many(model), rtol=1e-10, atol=1e-10), where


def many(model):
    found = model.generate_many(IDS, batch_size=8, max_new_tokens=4, num_beams=2)
    return np.concatenate([output.sequences_scores for _, output in found])


OTHERS = [name for name in CALLS if name not in FEW]
for name in {"few": FEW, "others": OTHERS, "all": CALLS}[sys.argv[2]]:
    run(name, [mesh_of(text, sys.argv[1]) for text in sys.argv[3:]])
sys.stdout.write("done")
