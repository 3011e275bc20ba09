"""All five models against HF's PyTorch BART, over random configs, weights and inputs."""

import dataclasses
import itertools

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from conftest import with_slow
from oracle import (
    assert_close,
    assert_outputs_close,
    CLASSES,
    convert,
    random_config,
    random_ids,
    random_mask,
    random_model,
    tolerance,
)

import eqx_bart as eb


def random_inputs(rng, config, name):
    """The same arguments for us and for HF."""
    batch = int(rng.integers(1, 4))
    source = int(rng.integers(3, config.max_position_embeddings))
    target = int(rng.integers(2, config.max_position_embeddings))
    inputs = {}
    has_ids = name == "BartForSequenceClassification" or rng.integers(3) > 0
    if has_ids:
        inputs["input_ids"] = random_ids(rng, config, batch, source)
    else:
        inputs["inputs_embeds"] = rng.normal(size=(batch, source, config.d_model))
    if rng.integers(4):
        inputs["attention_mask"] = random_mask(rng, batch, source)
    if name == "BartForCausalLM":
        if rng.integers(2):
            states = rng.normal(size=(batch, target, config.d_model))
            inputs["encoder_hidden_states"] = states
            inputs["encoder_attention_mask"] = random_mask(rng, batch, target)
        return inputs
    if has_ids and (rng.integers(2) or name == "BartForSequenceClassification"):
        return inputs
    if rng.integers(2):
        inputs["decoder_input_ids"] = random_ids(rng, config, batch, target)
    else:
        embeds = rng.normal(size=(batch, target, config.d_model))
        inputs["decoder_inputs_embeds"] = embeds
    if rng.integers(2):
        inputs["decoder_attention_mask"] = random_mask(rng, batch, target)
    return inputs


def both(inputs, dtype):
    """The inputs as PyTorch tensors and as JAX arrays."""
    tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    return tensors, {k: jax.numpy.asarray(v.numpy()) for k, v in tensors.items()}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", with_slow(0, 1, slow=range(50)))
def test_all_outputs(seed, name, request):
    if seed % 10 == 0:
        request.getfixturevalue("full_compilation")
    rng = np.random.default_rng([seed, *name.encode()])
    config = random_config(rng)
    dtype = torch.float64 if seed % 3 == 0 else torch.float32
    theirs = random_model(name, config, seed, dtype)
    with jax.enable_x64(dtype == torch.float64):
        ours = convert(theirs)
        tensors, arrays = both(random_inputs(rng, config, name), dtype)
        call = ours if seed % 10 == 0 else eqx.filter_jit(ours)
        options = {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            expected = theirs(**tensors, **options, use_cache=False)
        outputs = call(**arrays, **options)
    assert_outputs_close(outputs, expected, tolerance(dtype))


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "BartForCausalLM"])
@pytest.mark.parametrize("seed", with_slow(1, slow=range(6)))
def test_cached_decoding_in_any_split(seed, name):
    rng = np.random.default_rng([seed, *name.encode(), 1])
    config = random_config(rng)
    dtype = torch.float64 if seed % 2 else torch.float32
    theirs = random_model(name, config, seed, dtype)
    batch, source, length = 2, 5, 9
    ids = random_ids(rng, config, batch, length)
    mask = random_mask(rng, batch, length)
    mask[:, 0] = 1
    encoder_mask = random_mask(rng, batch, source)
    with jax.enable_x64(dtype == torch.float64):
        ours = convert(theirs)
        if name == "BartForCausalLM":
            states = torch.from_numpy(rng.normal(size=(batch, source, config.d_model)))
            states = states.to(dtype)
            cache = ours.init_cache(
                batch, length + 1, jax.numpy.asarray(states.numpy()), encoder_mask
            )
            arguments = {"input_ids": ids, "attention_mask": mask}
            arguments |= {"encoder_attention_mask": encoder_mask}
        else:
            inputs = random_ids(rng, config, batch, source)
            encoded = ours.encode(inputs, encoder_mask)
            cache = ours.init_cache(encoded, length + 1, encoder_mask)
            states = None
            arguments = {"input_ids": inputs, "attention_mask": encoder_mask}
            arguments |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        tensors, _ = both(arguments, dtype)
        if states is not None:
            tensors["encoder_hidden_states"] = states
        with torch.no_grad():
            expected = theirs(**tensors, use_cache=False).logits
        cuts = sorted({0, length, *(int(i) for i in rng.integers(1, length, 2))})
        logits = []
        decode = eqx.filter_jit(lambda model, *arguments: model.decode(*arguments))
        decode = type(ours).decode if seed == 0 else decode
        for start, end in itertools.pairwise(cuts):
            outputs, cache = decode(ours, ids[:, start:end], cache, mask[:, start:end])
            logits.append(outputs.logits)
        assert_close(np.concatenate(logits, axis=1), expected, tolerance(dtype))
        assert int(cache.length) == length


def test_encoder_outputs_replace_a_run_of_the_encoder():
    rng = np.random.default_rng(0)
    config = random_config(rng)
    theirs = random_model("BartForConditionalGeneration", config, 0, torch.float32)
    ours = convert(theirs)
    states = rng.normal(size=(2, 6, config.d_model)).astype(np.float32)
    ids, mask = random_ids(rng, config, 2, 4), random_mask(rng, 2, 6)
    with torch.no_grad():
        expected = theirs(
            encoder_outputs=(torch.from_numpy(states),),
            attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(ids),
        )
    encoder_outputs = eb.BaseModelOutput(jax.numpy.asarray(states))
    outputs = ours(
        attention_mask=mask, decoder_input_ids=ids, encoder_outputs=encoder_outputs
    )
    assert_close(outputs.logits, expected.logits, 1e-5)
    outputs = ours.decode(ids, encoder_outputs=encoder_outputs, encoder_attention_mask=mask)
    assert_close(outputs.logits, expected.logits, 1e-5)


def test_position_ids_choose_the_rows_of_the_table(config, getkey):
    model = eqx.nn.inference_mode(eb.BartModel(config, key=getkey()))
    ids = np.array([[5, 6, 7, 8, 9]])
    order = np.array([[4, 1, 9, 0, 2]])

    def permuted(table):
        return table.at[2:7].set(table[2 + order[0]])

    def tables(model):
        return (
            model.encoder.embed_positions.weight,
            model.decoder.embed_positions.weight,
        )

    call = eqx.filter_jit(lambda model, *args, **kwargs: model(*args, **kwargs))
    decode = eqx.filter_jit(model.decode)
    expected = call(eqx.tree_at(tables, model, replace_fn=permuted), ids)
    outputs = call(model, ids, position_ids=order, decoder_position_ids=order)
    assert_close(outputs.last_hidden_state, expected.last_hidden_state, 1e-6)
    cache = model.init_cache(model.encode(ids), 5)
    _, cache = decode(ids[:, :2], cache, None, order[:, :2])
    outputs, _ = decode(ids[:, 2:], cache, None, order[:, 2:])
    expected = decode(ids, decoder_position_ids=order, encoder_outputs=model.encode(ids))
    assert_close(outputs.last_hidden_state, expected.last_hidden_state[:, 2:], 1e-5)


@pytest.mark.parametrize("name", with_slow("BartForSequenceClassification", slow=CLASSES))
def test_inside_vmap_grad_and_checkpoint(name, config, getkey):
    config = dataclasses.replace(config, decoder_layers=1)
    model = eqx.nn.inference_mode(CLASSES[name](config, key=getkey()))
    ids = np.array([[[5, 2, 7, 2]], [[9, 2, 11, 2]]])

    def loss(model, ids):
        outputs = jax.tree.leaves(model(ids))
        return sum(jax.numpy.sum(x) for x in outputs)

    @eqx.filter_jit
    def mapped(model, ids):
        grads = eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))(model, ids)
        return jax.tree.map(lambda g: g.sum(0), grads)

    @eqx.filter_jit
    def plain(model, ids):
        return eqx.filter_grad(eqx.filter_checkpoint(loss))(model, ids.reshape(2, 4))

    expected = jax.tree.leaves(plain(model, ids))
    scale = max(float(abs(x).max()) for x in expected)
    for a, b in zip(jax.tree.leaves(mapped(model, ids)), expected, strict=True):
        assert np.allclose(a, b, atol=1e-5 * scale)


def test_a_row_of_padding_is_finite(config, getkey):
    model = eqx.nn.inference_mode(eb.BartModel(config, key=getkey()))
    ids = np.array([[5, 6, 7], [5, 6, 7]])
    mask = np.array([[0, 0, 0], [1, 1, 0]])

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss_and_grads(model):
        out = model(ids, mask, ids, mask)
        return jax.numpy.sum(out.last_hidden_state**2)

    value, grads = loss_and_grads(model)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype, config, getkey):
    model = eqx.nn.inference_mode(
        eb.BartForConditionalGeneration(
            dataclasses.replace(config, init_std=0.1), key=getkey()
        )
    )
    half = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, model)
    ids = np.array([[5, 6, 7, 8]])
    mask = np.array([[1, 1, 1, 0]])
    call = eqx.filter_jit(half)
    outputs = call(ids, mask, output_hidden_states=True, output_attentions=True)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jax.numpy.dtype(dtype)}
    assert_close(outputs.logits.astype("float32"), model(ids, mask).logits, 0.05)
