"""`generate_many`: what `generate` returns for each input, however they are batched."""

import itertools

import equinox as eqx
import jax
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart.generation.many import padded_length
from eqx_bart.generation.programs import _program, MOST_PROGRAMS


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


@pytest.mark.parametrize(
    "settings",
    [BEAMS | RECORDS, pytest.param(DRAFTS | RECORDS, marks=pytest.mark.slow)],
)
def test_each_is_answered_as_alone(model, settings):
    inputs = inputs_of(*range(1, 12), 24, 20, 3)
    found = dict(model.generate_many(inputs, batch_size=4, in_order=False, **settings))
    assert sorted(found) == list(range(len(inputs)))
    for number, output in found.items():
        expected = model.generate(np.asarray([inputs[number]]), **settings)
        assert_same(output, expected)


def test_no_end_of_inputs(model):
    inputs = (inputs_of(1 + i % 5)[0] for i in itertools.count())
    found = model.generate_many(inputs, batch_size=2, **GREEDY)
    first = [number for number, _ in itertools.islice(found, 70)]
    assert first == list(range(70))


def test_no_inputs(model):
    assert list(model.generate_many([], **GREEDY)) == []


def test_what_cannot_be_read_is_raised_after_the_answers_before(model):
    def inputs():
        yield from inputs_of(3, 9, 5)
        yield [3, 41]
        yield [4]

    found = model.generate_many(inputs(), batch_size=2, **GREEDY)
    assert [next(found)[0] for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="of the vocabulary") as raised:
        next(found)
    assert raised.value.__notes__ == ["It is input 5 of generate_many, counted from 0."]


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ([[]], {}, "empty"),
        ([[[3, 4]]], {}, r"shape \(1, 2\)"),
        ([["a"]], {}, "input_ids"),
        (["a text"], {}, "such as an entry of"),
        ("a text", {}, "not a str"),
        ({"input_ids": [[3]]}, {}, "not a dict"),
        ([[3]], {"batch_size": 0}, "batch_size=0"),
        ([[3]], {"output_cache": True}, "gives no cache"),
        ([[3]], {"do_sample": True}, "needs a key"),
        ([[3]], {"num_beam": 2}, "num_beam"),
    ],
)
def test_bad_input(model, inputs, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        list(model.generate_many(inputs, **GREEDY | settings))


def test_lengths_that_count_the_prompt(decoder):
    with pytest.raises(ValueError, match="Pass max_new_tokens"):
        list(decoder.generate_many([[3, 4], [5]], max_length=8))
    found = decoder.generate_many([[3, 4], [6, 5]], max_length=8)
    assert [output.sequences.shape for _, output in found] == [(1, 8), (1, 8)]


def test_a_constraint_for_all_inputs_or_for_each(model):
    answers = [[5, 6, 2], [7, 2]]
    for_all = eb.PrefixConstrainedLogitsProcessor(answers, [2])
    for _, output in model.generate_many(inputs_of(3, 4), logits_processors=[for_all]):
        assert output.sequences[0, 1 : output.lengths[0]].tolist() in answers
    by_input = eb.PrefixConstrainedLogitsProcessor(by_input=[answers] * 4, prompt=[2])
    with pytest.raises(ValueError, match="generate_many"):
        list(model.generate_many(inputs_of(3, 4), logits_processors=[by_input]))


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 16])
@pytest.mark.parametrize(
    "settings",
    [pytest.param(SAMPLES | BEAMS, marks=pytest.mark.slow), SAMPLES | DRAFTS],
)
def test_samples_are_those_of_one_batch(model, settings, batch_size):
    inputs = inputs_of(*range(1, 12), 3)
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


@pytest.mark.parametrize("longest", [5, 16, 100, 255, 600, 1000, 1024])
def test_sources_are_padded_to_few_lengths(longest):
    limit = max(longest, 1000)
    found = {n: padded_length(n, longest, limit) for n in range(1, longest + 1)}
    assert len({*found.values()}) <= 12
    for length, padded in found.items():
        assert length <= padded <= limit
        assert padded <= max(1.25 * length, length + longest / 8, length + 16)


@pytest.mark.slow
def test_few_programs_for_inputs_of_every_length(config):
    """Each is compiled once, whatever comes after it, and none has to make room."""
    config = config.updated(max_position_embeddings=1024)
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(3, 41, n) for n in rng.integers(1, 1025, 3 * 512)]
    _program.cache_clear()
    for _ in model.generate_many(inputs, batch_size=16, max_new_tokens=3):
        pass
    assert _program.cache_info().misses <= MOST_PROGRAMS
