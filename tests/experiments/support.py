"""What every experiment has to show of its model."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from oracle import assert_close, assert_same, assert_same_leaves

import eqx_bart as eb


CONFIG = eb.BartConfig(
    vocab_size=37,
    max_position_embeddings=24,
    d_model=48,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=8,
    decoder_attention_heads=8,
    encoder_ffn_dim=56,
    decoder_ffn_dim=40,
    init_std=0.2,
    forced_eos_token_id=None,
)
IDS = np.array([[0, 5, 9, 17, 2], [0, 23, 2, 1, 1]])
MASK = CONFIG.pad_token_id != IDS
LABELS = np.array([[7, 11, 30, 2], [8, 4, 2, -100]])
QUICKLY = {"xla_backend_optimization_level": 0}


def checkpoint(directory, config=CONFIG):
    """A small BART, saved and loaded again: what an experiment starts from."""
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model.save_pretrained(directory)
    return eb.BartForConditionalGeneration.from_pretrained(directory)


def beam_search(logits, start, num_beams, num_tokens, eos, pad):
    """Beam search for one input, without a cache: `logits` is of `[rows, length]` ids. As
    HF's with `early_stopping=False` and a length penalty of 1."""
    running, finished = [([start], 0.0)], []
    for step in range(1, num_tokens + 1):
        rows = np.asarray(logits(np.array([ids for ids, _ in running]))[:, -1])
        log_probs = rows - np.log(np.sum(np.exp(rows), axis=-1, keepdims=True))
        candidates = sorted(
            (
                ([*ids, token], score + float(log_probs[i, token]))
                for i, (ids, score) in enumerate(running)
                for token in range(log_probs.shape[1])
            ),
            key=lambda candidate: -candidate[1],
        )[: 2 * num_beams]
        for ids, score in candidates[:num_beams]:
            if ids[-1] == eos or step == num_tokens:
                finished.append((ids, score / step))
        finished = sorted(finished, key=lambda x: -x[1])[:num_beams]
        running = [x for x in candidates if x[0][-1] != eos][:num_beams]
        is_full = len(finished) == num_beams
        if is_full and running[0][1] / step <= finished[-1][1]:
            break
    best = finished[0][0]
    return [*best, *[pad] * (num_tokens + 1 - len(best))]


def check_beams(model, num_tokens=5, num_beams=4, ids=IDS, mask=MASK, uncached=None):
    """That beams find what a search without a cache does."""
    config = model.config
    start, ends = config.decoder_start_token_id, (config.eos_token_id, config.pad_token_id)
    call = eqx.filter_jit(uncached or model)

    def logits(row, decoder_ids):
        padding = num_beams - len(decoder_ids), num_tokens - decoder_ids.shape[1]
        padded = np.pad(decoder_ids, [(0, n) for n in padding])
        sources = (np.repeat(x[row : row + 1], num_beams, axis=0) for x in (ids, mask))
        return call(*sources, padded).logits[: len(decoder_ids), : decoder_ids.shape[1]]

    found = model.generate(ids, mask, num_beams=num_beams, max_new_tokens=num_tokens)
    for row in range(len(ids)):
        of_row = functools.partial(logits, row)
        expected = beam_search(of_row, start, num_beams, num_tokens, *ends)
        assert found.sequences[row].tolist() == expected, row


def check_continued(model, ids=IDS, mask=MASK):
    """That generation goes on from its own cache as it does without."""
    settings = {"max_new_tokens": 4, "eos_token_id": ()}
    first = model.generate(ids, mask, **settings, output_cache=True)
    prompt = np.concatenate([first.sequences, ids[:, :3]], axis=1)
    found = model.generate(decoder_input_ids=prompt, cache=first.cache, **settings)
    expected = model.generate(ids, mask, decoder_input_ids=prompt, **settings)
    assert np.array_equal(found.sequences, expected.sequences)


def check_saved(model, directory):
    """That the class of `model` reads what it saves, and nobody takes it for a BART."""
    cls = type(model)
    model.save_pretrained(directory)
    loaded = cls.from_pretrained(directory)
    assert_same(loaded, model)
    out = eqx.filter_jit(loaded)(IDS, MASK).to_tuple()[0]
    assert_close(out, eqx.filter_jit(model)(IDS, MASK).to_tuple()[0], 1e-6)
    with pytest.raises(eb.CheckpointError, match=f"checkpoint of a {cls.__name__}"):
        eb.BartForConditionalGeneration.from_pretrained(directory)
    with pytest.raises(ValueError, match="eqx_bart"):
        transformers.AutoModelForSeq2SeqLM.from_pretrained(directory)


def default_loss(model, key=None):
    return eb.seq2seq_loss(model, IDS, MASK, LABELS, key=key).mean


def check_gradients(model, new, loss=default_loss):
    """That gradients reach `new(model)`, all of the new arrays, and are those that finite
    differences give, in float64."""
    with jax.enable_x64(True):
        model = eb.cast(model, "float64")
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)

        # Their compilation is most of the time that this takes.
        @functools.partial(jax.jit, compiler_options=QUICKLY)
        @jax.value_and_grad
        def value_and_grad(parameters):
            return loss(eqx.combine(parameters, rest))

        grads = value_and_grad(parameters)[1]
        for leaf in jax.tree.leaves(eqx.filter(new(grads), eqx.is_inexact_array)):
            assert np.any(np.asarray(leaf) != 0)
        leaves, tree = jax.tree.flatten(parameters)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        direction = jax.tree.unflatten(
            tree,
            [
                jax.random.normal(k, x.shape, x.dtype)
                for k, x in zip(keys, leaves, strict=True)
            ],
        )
        step = 1e-6

        def moved(sign):
            return jax.tree.map(lambda x, d: x + sign * step * d, parameters, direction)

        above, below = (value_and_grad(moved(sign))[0] for sign in (1, -1))
        numeric = (above - below) / (2 * step)
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), grads, direction)
        exact = sum(jax.tree.leaves(products))
        assert abs(numeric - exact) < 1e-6 * max(1, abs(exact))


def check_training(model, loss=default_loss):
    """That it works in bfloat16, and the same under gradient checkpointing."""

    @functools.partial(eqx.filter_jit, compiler_options=QUICKLY)
    @eqx.filter_value_and_grad
    def value_and_grad(model):
        return loss(model)

    value, grads = value_and_grad(model)
    again, same = value_and_grad(eb.gradient_checkpointing(model))
    assert_close(again, value, 1e-5)
    assert_same_leaves(same, grads, 1e-4)
    half = eqx.filter_jit(eb.cast(model, "bfloat16"))(IDS, MASK).to_tuple()[0]
    assert half.dtype == jnp.bfloat16
    whole = eqx.filter_jit(model)(IDS, MASK).to_tuple()[0]
    assert_close(half.astype("float32"), whole, 0.1)


def check_all(model, new, directory, loss=default_loss):
    """All of the above, and that all ways of decoding agree."""
    eb.testing.check_decoding(model, IDS, MASK)
    check_beams(model)
    check_continued(model)
    check_saved(model, directory)
    check_gradients(model, new, loss)
    check_training(model, loss)
