"""Continuing from the cache that `generate` returns gives what the whole prompt gives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_slow
from oracle import assert_close, random_ids, random_mask

import eqx_bart as eb


@pytest.fixture
def config(config):
    return config.updated(max_position_embeddings=64, init_std=0.3)


@pytest.fixture
def model(config):
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    return eqx.nn.inference_mode(model)


def left_padded(rows):
    """Rows of ids as one array, and its mask."""
    width = max(map(len, rows))
    ids = np.array([[1] * (width - len(row)) + list(row) for row in rows])
    return ids, np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def answers(output):
    """The tokens of each row, up to its end."""
    lengths = np.asarray(output.lengths)
    return [row[:n].tolist() for row, n in zip(output.sequences, lengths, strict=True)]


def source_of(model, batch=3):
    """Ids and a mask, whose first row is padded on the left."""
    rng = np.random.default_rng(0)
    mask = random_mask(rng, batch, 9)
    mask[0, :3] = 0
    return random_ids(rng, model.config, batch, 9), mask


def test_what_is_generated_goes_on(model):
    source = source_of(model)
    settings = {"forced_eos_token_id": None, "output_attentions": True}
    first = model.generate(*source, **settings, max_new_tokens=7, output_cache=True)
    assert first.cache.num_unread(first.sequences) == 0
    going_on = model.generate(
        decoder_input_ids=first.sequences,
        cache=first.cache,
        **settings,
        max_new_tokens=9,
    )
    whole = model.generate(*source, **settings, max_new_tokens=16)
    assert np.array_equal(going_on.sequences, whole.sequences)
    for found, expected in zip(
        going_on.cross_attentions, whole.cross_attentions, strict=True
    ):
        assert_close(found, expected[:, :, 7:], 1e-5)


@pytest.mark.parametrize("seed", with_slow(0, slow=range(40)))
def test_turns_with_more_tokens_between(model, seed):
    """Rows end early, are cut anywhere, padded on either side, and go on by other tokens:
    a call with the cache gives what one without it gives."""
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 5))
    source = random_ids(rng, model.config, batch, 6), random_mask(rng, batch, 6)
    rows, cache = [[2]] * batch, None
    for turn in range(3):
        rows = [[*row, *rng.integers(0, 41, rng.integers(1, 5))] for row in rows]
        ids, mask = left_padded(rows)
        if rng.random() < 0.5:
            order = np.argsort(1 - mask, axis=1, kind="stable")  # padding goes to the right
            ids, mask = (np.take_along_axis(x, order, 1) for x in (ids, mask))
        settings = {"max_new_tokens": int(rng.integers(1, 9)), "eos_token_id": (2, 5, 6, 7)}
        if seed % 2:
            settings |= {"do_sample": True, "key": jax.random.key(turn), "top_k": 5}
        prompt = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        whole = model.generate(*source, **prompt, **settings, output_cache=True)
        if cache is not None:
            found = model.generate(**prompt, **settings, cache=cache, output_cache=True)
            assert np.array_equal(found.sequences, whole.sequences)
            assert np.array_equal(found.lengths, whole.lengths)
            whole = found
        cache, width = whole.cache, ids.shape[1]
        new = [row[width:] for row in answers(whole)]
        cut = [rng.integers(len(row) + 1) for row in new]
        rows = [[*row, *more[:end]] for row, more, end in zip(rows, new, cut, strict=True)]


@pytest.mark.parametrize("token", with_slow(0, slow=[1]))
def test_any_token_goes_on(model, token):
    """The smallest ids, too, which stand for nothing in a prompt without a mask."""
    source = source_of(model)
    settings = {"max_new_tokens": 6, "forced_eos_token_id": None, "output_logits": True}
    first = model.generate(*source, **settings, output_cache=True)
    more = [[token, 7, token, 8]] * 3
    ids = np.concatenate([first.sequences[:, :-1], more], axis=1)
    found = model.generate(decoder_input_ids=ids, cache=first.cache, **settings)
    expected = model.generate(*source, decoder_input_ids=ids, **settings)
    assert_close(found.logits, expected.logits, 1e-5)


def prefixed(model):
    """A source, a cache, and a prompt that begins with what it holds."""
    source = source_of(model)
    first = model.generate(*source, max_new_tokens=6, output_cache=True)
    prompt = np.concatenate([first.sequences, [[7, 8], [9, 7], [8, 8]]], axis=1)
    mask = np.ones_like(prompt)
    mask[:, :7] = np.arange(7) < np.asarray(first.lengths)[:, None]
    prompt = {"decoder_input_ids": prompt, "decoder_attention_mask": mask}
    return source, first.cache, prompt


@pytest.mark.parametrize(
    "settings",
    with_slow(
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.4, "min_length": 14},
        slow=[
            {"num_beams": 17, "num_return_sequences": 2},
            {"num_beams": 3, "num_return_sequences": 3},
            {"do_sample": True, "num_return_sequences": 4, "key": jax.random.key(0)},
        ],
    ),
)
def test_any_search_goes_on(model, settings):
    source, cache, prompt = prefixed(model)
    settings = settings | {"max_new_tokens": 8}
    found = model.generate(**prompt, cache=cache, **settings)
    expected = model.generate(*source, **prompt, **settings)
    assert np.array_equal(found.sequences, expected.sequences)
    if found.sequences_scores is not None:
        assert_close(found.sequences_scores, expected.sequences_scores, 1e-5)
    if settings.get("num_return_sequences", 1) == 1:
        streamed = list(model.stream(**prompt, cache=cache, **settings))
        rows = [np.concatenate(row) for row in zip(*streamed, strict=True)]
        new = [row[9:] for row in answers(expected)]
        assert [row.tolist() for row in rows] == new


def test_the_cache_is_used(model):
    _, cache, prompt = prefixed(model)
    ids = np.where(prompt["decoder_attention_mask"], prompt["decoder_input_ids"], -1)
    assert cache.num_unread(ids) < 8
    cache = jax.tree.map(lambda x: jnp.zeros_like(x) if x.ndim == 4 else x, cache)
    found, expected = (
        model.generate(**prompt, cache=x, output_logits=True).logits
        for x in (cache, prefixed(model)[1])
    )
    assert not np.allclose(found, expected)


def test_how_much_of_a_prompt_is_read(model):
    """What follows the tokens that it has in common with the cache, without the last one,
    which the first step reads."""
    source = source_of(model, 1)
    settings = {"max_new_tokens": 6, "forced_eos_token_id": None}
    cache = model.generate(*source, **settings, output_cache=True).cache
    held = np.asarray(cache.inputs.prompt)[0, :6].tolist()
    assert 0 < held[3] < 40
    prompts = {
        (*held, 9): 0,
        (*held, 9, 9): 1,
        (-1, -1, *held, 9, 9, -1): 1,
        (*held[:3],): 0,
        (*held[:3], held[3] - 1, 9): 1,
        (*held[:3], held[3] + 1, 9): 1,
        (0, *held): 6,
    }
    found = {prompt: cache.num_unread(np.array([prompt])) for prompt in prompts}
    assert found == prompts


def test_another_prompt_is_read_anew(model):
    """As far as it differs; nothing of the cache that does not belong to it is attended."""
    source, cache, prompt = prefixed(model)
    ids = prompt["decoder_input_ids"].copy()
    for column in (3, 1):
        ids[:, column] = (ids[:, column] + 7) % 41
        found = model.generate(decoder_input_ids=ids, cache=cache, max_new_tokens=5)
        expected = model.generate(*source, decoder_input_ids=ids, max_new_tokens=5)
        assert np.array_equal(found.sequences, expected.sequences)


def test_inside_jit(model):
    source = source_of(model)

    @eqx.filter_jit
    def two_turns(model, ids, mask, more):
        first = model.generate(ids, mask, max_new_tokens=6, output_cache=True)
        prompt = jnp.concatenate([first.sequences, more], axis=1)
        is_token = jnp.arange(8)[None] < first.lengths[:, None]
        is_token = jnp.concatenate([is_token[:, :7], jnp.ones_like(more, bool)], axis=1)
        prompt = {"decoder_input_ids": prompt, "decoder_attention_mask": is_token}
        settings = {"eos_token_id": (2, 5, 6), "max_new_tokens": 8}
        return (
            model.generate(**prompt, cache=first.cache, **settings),
            model.generate(ids, mask, **prompt, **settings),
            first.cache,
        )

    more = jnp.array([[7, 8], [9, 7], [8, 8]])
    found, expected, cache = two_turns(model, *source, more)
    assert np.array_equal(found.sequences, expected.sequences)
    prompt = expected.sequences[:, :9]
    outside = model.generate(decoder_input_ids=prompt, cache=cache)
    assert np.array_equal(
        outside.sequences, model.generate(*source, decoder_input_ids=prompt).sequences
    )


def test_a_cache_from_outside_goes_on_inside_jit(model):
    source, cache, prompt = prefixed(model)
    generate = eqx.filter_jit(model.generate)
    found = generate(**prompt, cache=cache, max_new_tokens=5)
    expected = model.generate(*source, **prompt, max_new_tokens=5)
    assert np.array_equal(found.sequences, expected.sequences)


def test_a_prompt_that_does_not_fit(model):
    _, cache, prompt = prefixed(model)
    ids, mask = prompt["decoder_input_ids"], prompt["decoder_attention_mask"]
    with pytest.raises(ValueError, match="is of 3 rows, and the prompt has 2"):
        model.generate(decoder_input_ids=ids[:2], cache=cache)
    generate = eqx.filter_jit(model.generate)
    with pytest.raises(ValueError, match="they are 7 wide, and the prompt is 5"):
        generate(decoder_input_ids=ids[:, :5], cache=cache)
    other = (ids + 1) % 41
    with pytest.raises(RuntimeError, match="does not begin with the tokens"):
        generate(decoder_input_ids=other, decoder_attention_mask=mask, cache=cache)
    with eb.checks("nan"):
        sequences = generate(decoder_input_ids=other, cache=cache).sequences
    assert np.all(np.asarray(sequences)[:, 9:] == -1)


def test_what_a_cache_does_not_go_with(model):
    (ids, mask), cache, prompt = prefixed(model)
    with pytest.raises(ValueError, match="without input_ids"):
        model.generate(ids, **prompt, cache=cache)
    with pytest.raises(ValueError, match="with decoder_input_ids"):
        model.generate(cache=cache)
    with pytest.raises(ValueError, match=r"output_cache=True .* but .* num_beams=2"):
        model.generate(ids, mask, num_beams=2, output_cache=True)
    with pytest.raises(ValueError, match="and num_return_sequences=2"):
        model.generate(
            ids,
            do_sample=True,
            key=jax.random.key(0),
            num_return_sequences=2,
            output_cache=True,
        )
    other = model.with_config(model.config.updated(dropout=0.3))
    with pytest.raises(ValueError, match="another model"):
        other.generate(**prompt, cache=cache)


@pytest.mark.parametrize("has_encoder", with_slow(True, slow=[False]))
def test_a_decoder_alone(config, has_encoder):
    model = eb.BartForCausalLM(config, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    rng = np.random.default_rng(1)
    source = {}
    if has_encoder:
        mask = random_mask(rng, 3, 5)
        states = rng.normal(size=(3, 5, 40)).astype(np.float32)
        source = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    prompt, mask = left_padded([[3, 4, 5], [6, 7, 8, 9, 10], [11]])
    first = model.generate(prompt, mask, **source, max_new_tokens=6, output_cache=True)
    rows = [[*row, 12, 13] for row in answers(first)]
    rows = [[x for x in row if x != 1] for row in rows]
    prompt, mask = left_padded(rows)
    found = model.generate(prompt, mask, cache=first.cache)
    expected = model.generate(prompt, mask, **source)
    assert np.array_equal(found.sequences, expected.sequences)
    if has_encoder:
        with pytest.raises(ValueError, match="without encoder_hidden_states"):
            model.generate(prompt, mask, **source, cache=first.cache)


@pytest.mark.slow
def test_slots_do_not_pile_up(model):
    """A call needs as many slots as there are tokens, however many calls there were."""
    source = source_of(model, 1)
    prompt, cache = None, None
    for _ in range(12):
        start = source if cache is None else ()
        more = {} if cache is None else {"decoder_input_ids": prompt, "cache": cache}
        output = model.generate(
            *start, **more, max_new_tokens=2, forced_eos_token_id=None, output_cache=True
        )
        cache = output.cache
        prompt = np.concatenate([output.sequences, [[7]]], axis=1)
    assert prompt.shape[1] == 37
    assert cache.past.positions.shape[1] <= 64 + 2 + 16
