"""Log-likelihoods against a forward pass, and against the axioms."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import with_slow
from oracle import convert, random_config, random_model

import eqx_bart as eb
from eqx_bart import tasks
from eqx_bart.tasks import scoring


def pairs(config, number, seed=0):
    """Sources and targets of many lengths."""
    rng = np.random.default_rng(seed)
    limit = config.max_position_embeddings
    ids = [i for i in range(config.vocab_size) if i != config.pad_token_id]
    sizes = rng.integers(1, limit + 1, (number, 2))
    return [[rng.choice(ids, n).tolist() for n in pair] for pair in sizes]


@pytest.mark.parametrize("seed", with_slow(0, slow=range(4)))
def test_log_probs_are_those_of_hf_in_float64(seed):
    config = random_config(np.random.default_rng(seed))
    theirs = random_model("BartForConditionalGeneration", config, seed, torch.float32)
    ours, theirs = convert(theirs), theirs.double()
    rows = pairs(config, 6)
    found = tasks.score(ours, *map(list, zip(*rows, strict=True)), batch_size=4)
    for (source, target), one in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([source]), labels=torch.tensor([target])).logits[0]
        expected = logits.log_softmax(-1)[range(len(target)), target].numpy()
        assert one.tokens == tuple(target)
        np.testing.assert_allclose(one.token_log_probs, expected, 1e-4, 1e-5)
        assert one.sum == pytest.approx(expected.sum(), rel=1e-4)
        assert one.mean == pytest.approx(expected.mean(), rel=1e-4)
        assert one.normalised(0.5) == pytest.approx(one.sum / len(target) ** 0.5)


def mean_loss(model, source, target):
    loss = eqx.filter_jit(eb.seq2seq_loss)
    return float(loss(model, np.asarray([source]), None, np.asarray([target])).mean)


def test_the_mean_is_the_loss(generator):
    source, target = [5, 6, 7, 2], [0, 9, 8, 2]
    loss = eb.seq2seq_loss(generator, np.asarray([source]), None, np.asarray([target]))
    assert tasks.score(generator, source, target).mean == pytest.approx(
        -float(loss.mean), 1e-5
    )


def test_all_targets_of_a_length_have_probability_1(getkey):
    config = eb.BartConfig(
        vocab_size=5,
        max_position_embeddings=8,
        d_model=4,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        init_std=1.0,
    )
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    targets = [list(x) for x in itertools.product(range(5), repeat=3)]
    scores = tasks.score(model, [[0, 3, 2]] * len(targets), targets, batch_size=128)
    assert np.exp([x.sum for x in scores]).sum() == pytest.approx(1, abs=1e-5)
    # Those that end within 3 tokens, and the beginnings of those that do not.
    ended = {tuple(x[: x.index(2) + 1]) if 2 in x else tuple(x) for x in targets}
    scores = tasks.score(model, [[0, 3, 2]] * len(ended), list(map(list, ended)))
    assert len(ended) < len(targets)
    assert np.exp([x.sum for x in scores]).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("chunk", with_slow(24, slow=[1]))
def test_a_few_tokens_at_a_time(chunk, generator, monkeypatch):
    rows = list(map(list, zip(*pairs(generator.config, 5), strict=True)))
    whole = tasks.score(generator, *rows)
    monkeypatch.setattr(scoring, "_CHUNK", chunk)
    another = functools.partial(scoring._log_probs)  # which is another program
    monkeypatch.setattr(scoring, "_log_probs", another)
    for one, expected in zip(tasks.score(generator, *rows), whole, strict=True):
        np.testing.assert_allclose(one.token_log_probs, expected.token_log_probs, 1e-5)


def test_candidates_are_scored_as_pairs(generator):
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 41, n).tolist() for n in (3, 12, 5)]
    candidates = [
        [rng.integers(3, 41, n).tolist() for n in lengths]
        for lengths in ((4,), (1, 7, 12, 2, 3), (5, 5, 2))
    ]
    pairs = [(s, x) for s, many in zip(sources, candidates, strict=True) for x in many]
    alone = iter(tasks.score(generator, *map(list, zip(*pairs, strict=True))))
    alone = [list(itertools.islice(alone, len(many))) for many in candidates]
    for power in (0.0, 1.0, 2.0):
        found = tasks.rank(generator, sources, candidates, length_penalty=power)
        for given, scores, ranked in zip(candidates, alone, found, strict=True):
            assert sorted(x.index for x in ranked) == list(range(len(given)))
            order = [x.score.normalised(power) for x in ranked]
            assert order == sorted(order, reverse=True)
            for one in ranked:
                assert one.candidate == given[one.index]
                expected = scores[one.index].token_log_probs
                np.testing.assert_allclose(one.score.token_log_probs, expected, 1e-4)


def test_candidates_of_a_head_of_ones_own(generator):
    """One that reads the source and the attention gets a row of each for each candidate."""

    class Copying(eb.models.AbstractLMHead):
        needs_attentions = True

        def __call__(self, decoded, source, projection):
            logits = projection(decoded.last_hidden_state)
            weights = decoded.cross_attentions[-1].mean(axis=1)
            chosen = jax.nn.one_hot(source.input_ids, logits.shape[-1])
            return logits + 5 * weights @ chosen

    model = eqx.tree_at(lambda x: x.head, generator, Copying(), is_leaf=lambda x: x is None)
    source, candidates = [5, 6, 7, 2], [[5, 6, 2], [9, 8, 2]]
    for one in tasks.rank(model, source, candidates):
        expected = -mean_loss(model, source, one.candidate)
        assert one.score.mean == pytest.approx(expected, 1e-4)
        assert one.score.mean != pytest.approx(-mean_loss(generator, source, one.candidate))


def test_the_encoder_runs_once_for_a_source(generator, monkeypatch):
    sizes = []
    encode = type(generator).encode
    monkeypatch.setattr(
        type(generator),
        "encode",
        lambda self, ids, mask: sizes.append(ids.shape) or encode(self, ids, mask),
    )
    tasks.rank(generator, [[5, 6, 2], [5, 2]], [[[7, 2]] * 4] * 2)
    assert sizes == [(2, 12)]


def test_inside_jit(generator):
    ids, labels = jnp.asarray([[5, 6, 7, 2]]), jnp.asarray([[0, 9, 2, -100]])
    found = eqx.filter_jit(tasks.token_log_probs)(generator, ids, None, labels)
    expected = tasks.score(generator, [5, 6, 7, 2], [0, 9, 2])
    np.testing.assert_allclose(found[0], [*expected.token_log_probs, 0], 1e-5)
    labels = jnp.asarray([[[0, 9, 2], [7, 2, -100]]])
    found = eqx.filter_jit(tasks.token_log_probs)(generator, ids, None, labels)
    np.testing.assert_allclose(found[0, 0], expected.token_log_probs, 1e-5)
    with pytest.raises(ValueError, match=r"labels\[0, 1\] is 41"):
        tasks.token_log_probs(generator, ids, None, np.asarray([[0, 41]]))
