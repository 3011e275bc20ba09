"""Which parameters are trained, in which precision, at what memory."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import leaves

import eqx_bart as eb


def test_trainable(config, getkey):
    model = eb.BartForConditionalGeneration(config, key=getkey())
    count = len(leaves(model))
    chosen = eqx.filter(model, eb.trainable(model))
    assert len(leaves(chosen)) == len(jax.tree.leaves(chosen)) == count
    parts = eqx.filter(model, eb.trainable(model, freeze_embeds=True))
    assert parts.model.shared.weight is None
    assert parts.model.encoder.embed_positions.weight is None
    assert parts.model.decoder.embed_positions.weight is None
    assert len(leaves(parts)) == count - 3
    parts = eqx.filter(model, eb.trainable(model, freeze_encoder=True))
    assert not leaves(parts.model.encoder)
    assert len(leaves(parts)) == count - len(leaves(model.model.encoder))


def test_mixed_precision(config, getkey):
    model = eb.BartForConditionalGeneration(config, key=getkey())
    model = eqx.nn.inference_mode(model)
    ids, labels = np.array([[5, 6, 7, 2]]), np.array([[8, 9, 2]])

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model, dtype):
        return eb.seq2seq_loss(eb.cast(model, dtype), ids, None, labels).mean

    exact, exact_grads = loss(model, "float32")
    rough, grads = loss(model, "bfloat16")
    assert rough.dtype == jnp.float32
    assert 0 < abs(rough - exact) < 0.02
    assert {x.dtype for x in leaves(grads)} == {jnp.dtype("float32")}
    a, b = (np.concatenate([np.ravel(x) for x in leaves(g)]) for g in (grads, exact_grads))
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.99
    with pytest.raises(ValueError, match="dtype must be a floating dtype; it is int8"):
        eb.cast(model, "int8")


def test_checkpointing_keeps_less(config, getkey):
    config = dataclasses.replace(config, encoder_layers=4, decoder_layers=4)
    model = eb.BartForConditionalGeneration(config, key=getkey())
    ids = np.tile(np.arange(3, 13), (16, 1))

    def kept(model, **options):
        parameters, others = eqx.partition(model, eqx.is_inexact_array)

        def loss(parameters):
            model = eqx.combine(parameters, others)
            key = jax.random.key(0)
            return eb.seq2seq_loss(model, ids, None, ids, key=key, **options).mean

        pullback = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], parameters)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

    whole = kept(model)
    inputs = kept(eb.gradient_checkpointing(model))
    products = kept(
        eb.gradient_checkpointing(model, policy=jax.checkpoint_policies.dots_saveable)
    )
    assert inputs < 0.6 * whole
    assert inputs < products < whole
    assert kept(eb.gradient_checkpointing(eb.gradient_checkpointing(model), False)) == whole


@pytest.mark.slow
def test_checkpointing_needs_less_memory_on_a_cpu(config, getkey):
    sizes = {"encoder_layers": 4, "decoder_layers": 4}
    config = dataclasses.replace(config, **sizes)
    model = eb.BartForConditionalGeneration(config, key=getkey())
    ids = np.tile(np.arange(3, 13), (64, 1))

    def needed(model):
        parameters, others = eqx.partition(model, eqx.is_inexact_array)

        def loss(parameters):
            model = eqx.combine(parameters, others)
            return eb.seq2seq_loss(model, ids, None, ids, key=jax.random.key(0)).mean

        program = (
            jax.jit(jax.grad(loss))
            .lower(parameters)
            .compile({"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"})
        )
        return program.memory_analysis().temp_size_in_bytes

    assert needed(eb.gradient_checkpointing(model)) < 0.6 * needed(model)


def test_parts_are_frozen_wherever_they_are(config, getkey):
    class Tagger(eqx.Module):
        trunk: eb.BartModel
        head: eqx.nn.Linear

    head = eqx.nn.Linear(40, 3, key=getkey())
    tagger = Tagger(eb.BartModel(config, key=getkey()), head)
    chosen = eb.trainable(tagger, freeze_encoder=True)
    assert not any(jax.tree.leaves(chosen.trunk.encoder))
    assert chosen.trunk.shared.weight
    assert chosen.head.weight
    chosen = eb.trainable(tagger, freeze_embeds=True)
    assert not chosen.trunk.shared.weight
    assert not chosen.trunk.encoder.embed_positions.weight
    assert chosen.trunk.encoder.layernorm_embedding.weight
    adapted = eb.trainable(eb.lora(tagger, 4, key=getkey()))
    assert adapted.head.weight  # it is new, and has no adapter
    attention = adapted.trunk.decoder.layers[0].self_attn
    assert attention.q_proj.lora_A
    assert not attention.q_proj.base_layer.weight
    assert not adapted.trunk.shared.weight
    with pytest.raises(ValueError, match="the model has no BartEncoder"):
        eb.trainable(head, freeze_encoder=True)
