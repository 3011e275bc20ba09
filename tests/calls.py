"""What models are asked to do on a mesh: functions of a model, ids and their mask."""

import equinox as eqx
import jax
import jax.numpy as jnp

import eqx_bart as eb


def call(model, ids, mask):
    return model(ids, mask, output_attentions=True, output_hidden_states=True)


def cached(model, ids, mask):
    encoded = model.encode(ids, mask)
    cache = model.init_cache(encoded, 8, mask)
    first, cache = model.decode(ids[:, :2], cache)
    second, cache = model.decode(ids[:, 2:3], cache, mask[:, 2:3])
    return encoded, first, second, cache


def decoder_cached(model, ids, mask):
    return model.decode(ids, model.init_cache(len(ids), 8), mask)


def seq2seq(model, ids, mask, **options):
    return eb.seq2seq_loss(model, ids, mask, ids, **options)


def packed_seq2seq(model, ids, mask, **options):
    """The same tokens as two examples a row."""
    segment_ids = mask * jnp.asarray([[1, 1, 1, 2, 2]])
    segments = {"segment_ids": segment_ids, "decoder_segment_ids": segment_ids}
    return eb.seq2seq_loss(model, ids, None, ids, **segments, **options)


def distillation(model, ids, mask, **options):
    """From a teacher with other weights."""
    teacher = jax.tree.map(lambda x: 0.5 * x if eqx.is_inexact_array(x) else x, model)
    return eb.distillation_loss(model, teacher, ids, mask, ids, alpha_hid=1.0, **options)


def classification(model, ids, mask):
    return eb.classification_loss(model, ids, mask, ids[:, 0] % 3)


def question_answering(model, ids, mask):
    return eb.question_answering_loss(model, ids, mask, ids[:, 0] % 3, ids[:, 1] % 5)


def gradient(loss):
    """The mean of a loss, and its gradient by what is trained."""

    def value_and_grad(model, ids, mask):
        trained, rest = eqx.partition(model, eb.trainable(model))
        return eqx.filter_value_and_grad(
            lambda trained: loss(eqx.combine(trained, rest), ids, mask).mean
        )(trained)

    return value_and_grad


def generation(**settings):
    """Generation of four tokens, with a key if it draws."""

    def generate(model, ids, mask):
        key = jax.random.key(0) if settings.get("do_sample") else None
        return model.generate(ids, mask, max_new_tokens=4, key=key, **settings)

    return generate
