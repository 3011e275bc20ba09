"""Errors of what users call are short, and begin with the mistake."""

import inspect
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import eqx_bart as eb


IDS = np.array([[5, 6, 2], [7, 8, 2]])


@pytest.fixture
def model(config, getkey):
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


@pytest.mark.parametrize(
    ("wrong", "first"),
    [
        (
            lambda m: m(IDS, np.ones((2, 4), int)),
            "attention_mask of Seq2SeqModel.__call__ is i64[2,4](numpy); it must be "
            "Mask[batch source], where batch=2, source=3.",
        ),
        (
            lambda m: eb.seq2seq_loss(m, IDS, None, np.zeros((3, 5), int)),
            "labels of seq2seq_loss is i64[3,5](numpy); it must be Integer[batch target], "
            "where batch=2, source=3.",
        ),
        (
            lambda m: m.generate(IDS.astype(float)),
            "input_ids of BartForConditionalGeneration.generate is f64[2,3](numpy); it "
            "must be Integer[batch source].",
        ),
        (
            lambda _: eb.cross_entropy(jnp.ones((2, 5)), np.zeros(3, int)),
            "labels of cross_entropy is i64[3](numpy); it must be Integer[*batch], where "
            "classes=5, batch=(2,).",
        ),
    ],
)
def test_shapes(wrong, first, model):
    for call in (wrong, eqx.filter_jit(wrong)):
        with pytest.raises(jaxtyping.TypeCheckError) as error:
            call(model)
        lines = str(error.value).splitlines()
        assert lines[0] == first
        assert len(lines) < 40


def test_a_large_model_is_not_printed():
    large = eqx.filter_eval_shape(
        eb.BartForConditionalGeneration, eb.BartConfig(), key=jax.random.key(0)
    )
    with pytest.raises(jaxtyping.TypeCheckError) as error:
        eb.seq2seq_loss(large, IDS, np.ones((2, 4), int), IDS)
    message = str(error.value)
    assert "'model': BartForConditionalGeneration(...)" in message
    assert "'labels': i64[2,3](numpy)" in message
    assert len(message.splitlines()) < 40


def test_jit_of_what_is_no_function(model, config, getkey):
    decoder = eqx.nn.inference_mode(eb.BartForCausalLM(config, key=getkey()))
    for function in (
        model,
        model.encode,
        model.decode,
        model.generate,
        model.step,
        decoder,
        decoder.generate,
        decoder.init_cache,
    ):
        with pytest.raises(TypeError, match=r"equinox\.filter_jit"):
            jax.jit(function)(IDS)
    with pytest.raises(TypeError, match=r"equinox\.filter_jit"):
        jax.jit(lambda model, ids: model(ids))(model, IDS)


def test_a_model_whose_flags_are_arrays(model):
    with pytest.raises(
        TypeError, match=r"equinox\.filter_shard instead of jax\.device_put"
    ):
        eqx.filter_jit(jax.device_put(model))(IDS)
    moved = eqx.filter_shard(model, jax.devices()[0])
    assert np.array_equal(
        eqx.filter_jit(moved)(IDS).logits, eqx.filter_jit(model)(IDS).logits
    )


def test_methods_are_still_methods(model):
    """`explained` replaces Equinox's bound methods, which are pytrees."""
    encode = model.encode
    assert encode == model.encode
    assert encode.__name__ == "encode"
    assert encode.__doc__ == eb.BartForConditionalGeneration.encode.__doc__
    assert [*inspect.signature(encode).parameters][:2] == ["input_ids", "attention_mask"]
    assert [*inspect.signature(model).parameters][:2] == ["input_ids", "attention_mask"]
    assert len(jax.tree.leaves(encode)) == len(jax.tree.leaves(model))
    expected = encode(IDS).last_hidden_state
    for same in (eqx.filter_jit(encode), eqx.nn.inference_mode(encode), jax.vmap(encode)):
        ids = IDS if same is not jax.vmap else IDS[None]
        if isinstance(same, eqx.Module):
            assert np.allclose(same(ids).last_hidden_state, expected, atol=1e-5)
    vmapped = jax.vmap(encode)(IDS[None])
    assert np.allclose(vmapped.last_hidden_state[0], expected, atol=1e-5)
    copied = pickle.loads(pickle.dumps(model))  # noqa: S301  # its own bytes
    assert np.array_equal(copied.encode(IDS).last_hidden_state, expected)


def test_modules_without_arrays_have_a_hash(model):
    static = eqx.partition(model, eqx.is_array)[1]
    assert isinstance(hash(static), int)


def test_generation_in_training_mode(model):
    training = eqx.nn.inference_mode(model, value=False)
    for method in (training.generate, training.init_generation):
        with pytest.raises(RuntimeError, match=r"equinox\.nn\.inference_mode\(model\)"):
            method(IDS, max_new_tokens=2)
    with pytest.raises(RuntimeError, match="inference_mode"):
        next(training.stream(IDS, max_new_tokens=2))
    with pytest.raises(RuntimeError, match="inference_mode"):
        eqx.filter_jit(lambda m: m.generate(IDS, max_new_tokens=2))(training)


def test_without_dropout_there_is_no_training_mode(config, getkey):
    config = config.updated(dropout=0.0)
    model = eb.BartForConditionalGeneration(config, key=getkey())
    sequences = model.generate(IDS, max_new_tokens=2).sequences
    same = eqx.nn.inference_mode(model).generate(IDS, max_new_tokens=2).sequences
    assert np.array_equal(sequences, same)
