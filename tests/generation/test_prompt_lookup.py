"""Drafts change how soon an answer comes, and nothing else."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import with_slow
from oracle import assert_close, convert, random_config, random_model

import eqx_bart as eb
from eqx_bart.generation.prompt_lookup import PromptLookup


SETTINGS = [
    {},
    {"output_scores": True, "output_logits": True, "output_attentions": True},
    {"do_sample": True, "top_k": 5, "temperature": 0.3},
    {"do_sample": True, "num_return_sequences": 3, "temperature": 0.2},
    {"no_repeat_ngram_size": 4, "repetition_penalty": 1.1, "min_new_tokens": 9},
    {"encoder_no_repeat_ngram_size": 3, "encoder_repetition_penalty": 2.0},
    {"sequence_bias": (((5, 6), 2.0), ((7,), -1.0)), "bad_words_ids": ((4, 4, 4),)},
    {"exponential_decay_length_penalty": (4, 1.3), "begin_suppress_tokens": (5,)},
    {"suppress_tokens": (9,), "renormalize_logits": True, "forced_eos_token_id": 2},
]


def model_of(seed, architecture="BartForConditionalGeneration"):
    """A random model that often repeats itself."""
    rng = np.random.default_rng([seed, 31])
    config = random_config(rng)
    config.vocab_size, config.max_position_embeddings = 40, 48
    config.forced_eos_token_id = None
    theirs = random_model(architecture, config, seed, torch.float32)
    return convert(theirs), rng


def source_of(rng, batch, length):
    """Tokens that come again, with padding on either side."""
    ids = np.tile(rng.integers(4, 10, (batch, 5)), (1, 1 + length // 5))[:, :length]
    mask = np.ones_like(ids)
    for row in mask[1:]:
        row[: rng.integers(0, 3)] = 0
        row[length - rng.integers(0, 3) :] = 0
    return ids, mask


def steps(model, *args, **settings):
    """How many steps `generate` would take."""
    state, count = model.init_generation(*args, **settings), 0
    step = eqx.filter_jit(model.step)
    while not state.is_done:
        state, count = step(state), count + 1
    return count


def check(model, *args, num_drafts, **settings):
    """Compares what `generate` gives with drafts and without."""
    plain = model.generate(*args, **settings)
    compare(model.generate(*args, prompt_lookup_num_tokens=num_drafts, **settings), plain)


def compare(found, plain):
    assert np.array_equal(found.sequences, plain.sequences)
    assert np.array_equal(found.lengths, plain.lengths)
    for name in ("token_log_probs", "cross_attentions"):
        expected, got = getattr(plain, name), getattr(found, name)
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
        for a, b in pairs:
            assert_close(a, b, 2e-5)
    if plain.scores is None:
        return
    for a, b in ((found.scores, plain.scores), (found.logits, plain.logits)):
        begin = plain.sequences.shape[1] - len(b)
        # What is recorded of steps after the end of a row has no meaning.
        is_live = np.arange(begin, begin + len(b))[:, None] < np.asarray(plain.lengths)
        a, b = np.asarray(a)[is_live], np.asarray(b)[is_live]
        is_finite = np.isfinite(b)
        assert np.array_equal(is_finite, np.isfinite(a))
        assert_close(np.where(is_finite, a, 0), np.where(is_finite, b, 0), 2e-5)


@pytest.mark.parametrize("settings", with_slow(SETTINGS[3], slow=SETTINGS), ids=str)
@pytest.mark.parametrize("num_drafts", with_slow(5, slow=[1]))
def test_tokens_and_scores_are_those_without_drafts(settings, num_drafts):
    seed = SETTINGS.index(settings)
    model, rng = model_of(seed)
    ids, mask = source_of(rng, 4, 11)
    settings = {"max_new_tokens": 24, "output_token_log_probs": True, **settings}
    if settings.get("do_sample"):
        settings["key"] = jax.random.key(seed)
    check(model, ids, mask, num_drafts=num_drafts, **settings)


def test_right_drafts_save_steps_and_wrong_ones_are_given_up():
    model, rng = model_of(1)
    ids, mask = source_of(rng, 1, 11)
    settings = {"max_new_tokens": 40, "eos_token_id": None}
    assert steps(model, ids, mask, **settings) == 40
    # A random model with so few tokens soon says one thing over and over.
    assert steps(model, ids, mask, prompt_lookup_num_tokens=5, **settings) < 35


@pytest.mark.parametrize("seed", with_slow(0, slow=range(4)))
def test_a_decoder_alone_with_prompts_of_several_lengths(seed):
    model, rng = model_of(seed, "BartForCausalLM")
    ids, mask = source_of(rng, 3, 9)
    settings = {"max_new_tokens": 21, "output_token_log_probs": True}
    check(model, ids, mask, num_drafts=4, **settings)


def test_up_to_the_last_position():
    model, rng = model_of(2)
    ids, mask = source_of(rng, 2, 8)
    settings = {"max_length": 49, "eos_token_id": None}
    check(model, ids, mask, num_drafts=7, **settings)


def test_a_cache_goes_on_after_drafts():
    model, rng = model_of(3)
    ids, mask = source_of(rng, 3, 8)
    settings = {"prompt_lookup_num_tokens": 4, "output_cache": True}
    first = model.generate(ids, mask, max_new_tokens=11, **settings)
    going_on = {"decoder_input_ids": first.sequences, "max_new_tokens": 9}
    places = np.arange(first.sequences.shape[1])[None]
    going_on["decoder_attention_mask"] = places < np.asarray(first.lengths)[:, None]
    compare(
        model.generate(cache=first.cache, **going_on, prompt_lookup_num_tokens=3),
        model.generate(ids, mask, **going_on),
    )


def test_a_stream_yields_what_is_right():
    model, rng = model_of(4)
    ids, mask = source_of(rng, 3, 8)
    plain = model.generate(ids, mask, max_new_tokens=17)
    rows = [[] for _ in ids]
    for parts in model.stream(ids, mask, max_new_tokens=17, prompt_lookup_num_tokens=5):
        for row, part in zip(rows, parts, strict=True):
            row.extend(part.tolist())
    lengths = plain.lengths.tolist()
    expected = [row[1:n] for row, n in zip(plain.sequences.tolist(), lengths, strict=True)]
    assert rows == expected


def proposed(source, own, num_tokens, ngram_size, copied):
    """The continuation of the longest match, by search: where a copy goes on, or the first.
    Without any, how the copy goes on."""
    history = [*source, -1, *own]
    goes_on = len(own) + copied
    best, begin = 0, None
    if 0 <= goes_on < len(history) and history[goes_on] >= 0:
        begin = goes_on
    for i in sorted(range(len(history)), key=lambda i: i != goes_on):
        n = 0
        while (
            n < min(ngram_size, i, len(own))
            and history[i - 1 - n] == own[-1 - n]
            and own[-1 - n] >= 0
        ):
            n += 1
        if history[i] >= 0 and n > best:
            best, begin = n, i
    drafts = [] if begin is None else history[begin : begin + num_tokens]
    drafts = drafts[: drafts.index(-1)] if -1 in drafts else drafts
    return drafts + [-1] * (num_tokens - len(drafts))


@pytest.mark.parametrize("seed", with_slow(*range(4), slow=range(40)))
def test_drafts_are_the_continuation_of_the_longest_match(seed):
    rng = np.random.default_rng(seed)
    batch, rows, width = rng.integers(1, 4, 3)
    source = rng.integers(-1, 4, (batch, rng.integers(0, 12)))
    own = rng.integers(0, 4, (batch, rows, 9))
    own[:, :, : rng.integers(0, 3)] = -1
    lengths = rng.integers(3, 10, (batch, rows))
    first = PromptLookup.init(
        jnp.asarray(source, jnp.int32),
        jnp.asarray(own, jnp.int32),
        jnp.asarray(lengths, jnp.int32),
        num_tokens=int(width),
        ngram_size=int(rng.integers(1, 4)),
    )
    copied = rng.integers(-12, 12, (batch, rows))
    copying = dataclasses.replace(first, copied=jnp.asarray(copied, jnp.int32))
    copying = copying.with_drafts(jnp.asarray(own), jnp.asarray(lengths, jnp.int32))
    for lookup in (first, copying):
        for i in range(batch):
            for j in range(rows):
                expected = proposed(
                    source[i].tolist(),
                    own[i, j, : lengths[i, j]].tolist(),
                    width,
                    lookup.ngram_size,
                    int(lookup.copied[i, j]),
                )
                assert lookup.drafts[i, j].tolist() == expected


class Replay(eb.LogitsProcessor):
    """Forces answers, `[batch, steps]`, after a prompt of one token."""

    answers: jax.Array

    def __call__(self, input_ids, scores, length):
        answers = jnp.repeat(self.answers, len(scores) // len(self.answers), axis=0)
        token = jnp.take_along_axis(answers, length - 1, axis=1, mode="clip")
        return jnp.where(jnp.arange(scores.shape[1])[None] == token, 0.0, -jnp.inf)


def test_a_copy_goes_on_after_a_token_that_differs():
    model, rng = model_of(7)
    source = np.tile(4 + rng.permutation(18), (2, 2))[:, :30], np.ones((2, 30), int)
    others = np.setdiff1d(np.arange(22, 40), model.config.decoder_start_token_id)
    answers = source[0].copy()
    answers[0, 3::6], answers[1, 4::6] = rng.permutation(others)[:10].reshape(2, 5)
    settings = {"max_new_tokens": 30, "eos_token_id": None}
    settings["logits_processors"] = [Replay(jnp.asarray(answers))]
    assert np.array_equal(model.generate(*source, **settings).sequences[:, 1:], answers)
    check(model, *source, num_drafts=5, **settings)
    # The first token, those up to the first that differs, and five times five drafts.
    assert steps(model, *source, prompt_lookup_num_tokens=5, **settings) == 7


def test_beams_do_without_drafts():
    model, rng = model_of(5)
    ids, _ = source_of(rng, 2, 8)
    message = r"prompt_lookup_num_tokens=3 .*without beams, and num_beams=2"
    with pytest.raises(ValueError, match=message):
        model.generate(ids, num_beams=2, prompt_lookup_num_tokens=3)


def test_inside_jit_and_vmap():
    model, rng = model_of(6)
    ids, _ = source_of(rng, 4, 10)
    plain = model.generate(ids, max_new_tokens=12)

    def answer(ids):
        settings = {"max_new_tokens": 12, "prompt_lookup_num_tokens": 3}
        return model.generate(ids, **settings).sequences

    assert np.array_equal(jax.jit(answer)(jnp.asarray(ids)), plain.sequences)
    one_by_one = jax.vmap(lambda row: answer(row[None])[0])(jnp.asarray(ids))
    assert np.array_equal(one_by_one, plain.sequences)


def test_a_checkpoint_may_ask_for_drafts():
    config = eb.GenerationConfig.from_dict({"prompt_lookup_num_tokens": 10})
    assert config.settled(1, 9, 9).prompt_lookup_num_tokens == 10
