"""`generate_many`: what `generate` returns for each input, however they are batched."""

import equinox as eqx
import jax
import numpy as np
import pytest

import eqx_bart as eb


KEY = jax.random.key(3)
GREEDY = {"max_new_tokens": 7}
BEAMS = GREEDY | {"num_beams": 3, "num_return_sequences": 2}
SAMPLES = GREEDY | {"do_sample": True, "num_return_sequences": 2, "key": KEY}
DRAFTS = GREEDY | {"prompt_lookup_num_tokens": 3}
RECORDS = {
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_token_log_probs": True,
}


@pytest.fixture
def model(config, getkey):
    config = eb.BartConfig.from_dict(config.to_dict() | {"max_position_embeddings": 64})
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


@pytest.fixture
def decoder(config, getkey):
    return eqx.nn.inference_mode(eb.BartForCausalLM(config, key=getkey()))


def inputs_of(*lengths):
    """Inputs of these lengths, the last one twice more."""
    rng = np.random.default_rng(list(lengths))
    inputs = [rng.integers(3, 41, n).tolist() for n in lengths]
    return [*inputs, inputs[-1], inputs[-1]]


def assert_same(found, expected):
    found, expected = (jax.tree.leaves_with_path(x) for x in (found, expected))
    for (path, x), (other_path, y) in zip(found, expected, strict=True):
        assert path == other_path
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, 1e-4, 1e-5, err_msg=str(path))


def in_one_batch(model, inputs, **settings):
    ids = np.zeros((len(inputs), max(map(len, inputs))), int)
    mask = np.arange(ids.shape[1])[None] < np.asarray([[len(x)] for x in inputs])
    ids[mask] = np.concatenate(inputs)
    return model.generate(ids, mask, **settings)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("settings", [GREEDY | RECORDS, BEAMS | RECORDS, DRAFTS | RECORDS])
def test_each_is_answered_as_alone(model, settings, in_order):
    inputs = inputs_of(*range(1, 12), 40, 30, 35, 3)
    found = list(model.generate_many(inputs, batch_size=4, in_order=in_order, **settings))
    numbers = [number for number, _ in found]
    assert (numbers == sorted(numbers)) == in_order
    assert sorted(numbers) == list(range(len(inputs)))
    for number, output in found:
        expected = model.generate(np.asarray([inputs[number]]), **settings)
        assert_same(output, expected)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("settings", [SAMPLES, SAMPLES | BEAMS, SAMPLES | DRAFTS])
def test_samples_are_those_of_one_batch(model, settings, batch_size):
    inputs = inputs_of(*range(1, 12), 40, 30, 35, 3)
    expected = in_one_batch(model, inputs, **settings).sequences
    found = model.generate_many(inputs, batch_size=batch_size, **settings)
    rows = np.concatenate([output.sequences for _, output in found])
    np.testing.assert_array_equal(rows, expected)
    assert len({row.tobytes() for row in rows[-6:]}) > 1


def test_prompts_of_many_lengths(decoder):
    inputs = inputs_of(3, 1, 5, 2, 4, 7)
    for number, output in decoder.generate_many(inputs, batch_size=3, max_new_tokens=4):
        expected = decoder.generate(np.asarray([inputs[number]]), max_new_tokens=4)
        assert_same(output, expected)
