"""What sampling promises: exact joint distributions, and draws that know nothing of each
other.

Seeds are fixed, so that a test passes or fails for good. Where something changes no more
than the draws, each comparison of counts fails by chance with probability `ALARM`.
"""

import itertools

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.stats
import torch
import transformers

import eqx_bart as eb


ALARM = 1e-4
VOCAB, PAD, EOS = 6, 1, 2
SOURCES = np.array([[5, 3, 0, 4], [3, 3, 5, 0], [4, 0, 0, 3]])

WARPERS = {
    "temperature": (1.7, transformers.TemperatureLogitsWarper),
    "top_k": (4, transformers.TopKLogitsWarper),
    "top_p": (0.9, transformers.TopPLogitsWarper),
}


@pytest.fixture(scope="module")
def model():
    """A model so small that all its answers can be counted, and far from uniform."""
    config = eb.BartConfig(
        vocab_size=VOCAB,
        max_position_embeddings=8,
        d_model=8,
        encoder_layers=1,
        encoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=8,
        init_std=0.6,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )
    key = jax.random.key(1)
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=key))


def exact(model, source, steps, warpers=(), eos=EOS):
    """The probability of each sequence of tokens: an array with an axis for each step."""
    tokens = np.array(list(itertools.product(range(VOCAB), repeat=steps)))
    prefixes = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=EOS)
    sources = np.repeat(source[None], len(tokens), axis=0)
    logits = eqx.filter_jit(model)(sources, decoder_input_ids=prefixes).logits
    scores = torch.from_numpy(np.array(logits, float)).reshape(-1, VOCAB)
    for warper in warpers:
        scores = warper(None, scores)
    probabilities = torch.softmax(scores, -1).numpy().reshape(*tokens.shape, VOCAB)
    chosen = np.take_along_axis(probabilities, tokens[..., None], axis=-1)[..., 0]
    is_end = tokens == eos
    is_after = np.cumsum(is_end, axis=1) > is_end
    chosen = np.where(is_after, tokens == PAD, chosen)
    return np.prod(chosen, axis=1).reshape((VOCAB,) * steps)


def sample(model, sources, seed, steps, **settings):
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": steps} | settings
    return model.generate(sources, key=jax.random.key(seed), **settings)


def assert_distributed(drawn, probabilities):
    """That the rows of `drawn` are places of an array, by their probabilities."""
    counts = np.zeros(probabilities.shape, int)
    np.add.at(counts, tuple(np.asarray(drawn).T), 1)
    expected = len(drawn) * probabilities
    assert np.isclose(expected.sum(), counts.sum())
    assert np.all(counts[probabilities == 0] == 0)
    is_rare = expected < 5
    cells = np.array([[*x[~is_rare], x[is_rare].sum()] for x in (counts, expected)])
    cells = cells[:, cells[1] > 5]
    assert cells.shape[1] >= 10
    statistic = np.sum((cells[0] - cells[1]) ** 2 / cells[1])
    assert scipy.stats.chi2.sf(statistic, cells.shape[1] - 1) > ALARM


@pytest.mark.parametrize("names", [(), tuple(WARPERS)])
def test_the_joint_distribution_of_three_steps(model, names):
    """Of samples of equal inputs: if one drew the same noise at each step, or two from the
    same key, there would be too many of some sequences."""
    settings = {name: WARPERS[name][0] for name in names}
    warpers = [WARPERS[name][1](value) for name, value in settings.items()]
    joint = exact(model, SOURCES[0], 3, warpers)
    sources = np.repeat(SOURCES[:1], 512, axis=0)
    settings |= {"num_return_sequences": 16, "output_token_log_probs": True}
    output = sample(model, sources, 0, 3, **settings)
    drawn = np.asarray(output.sequences)[:, 1:]
    assert_distributed(drawn, joint)
    log_probs = np.sum(output.token_log_probs, axis=1)
    assert np.allclose(log_probs, np.log(joint[tuple(drawn.T)]), atol=1e-4)


def test_draws_know_nothing_of_each_other(model):
    """Of the next sample, of the next input, whether it is the same or another, and of
    another key."""
    sources = np.tile(np.repeat(SOURCES, 2, axis=0), (86, 1))[:512]
    first = [
        np.asarray(
            sample(model, sources, seed, 1, num_return_sequences=16).sequences[:, 1]
        ).reshape(512, 16)
        for seed in (0, 1)
    ]
    exact_first = np.stack([exact(model, source, 1) for source in SOURCES])
    probabilities = exact_first[np.arange(512) // 2 % 3]

    def assert_independent(a, b, which_a, which_b):
        """That the pairs of two arrays of draws are as likely as both separately."""
        drawn = np.stack([np.ravel(a), np.ravel(b)], axis=1)
        pairs = probabilities[which_a][:, :, None] * probabilities[which_b][:, None]
        assert_distributed(drawn, pairs.mean(axis=0))

    every, same, other = np.arange(512), np.arange(0, 512, 2), np.arange(1, 511, 2)
    assert_independent(first[0][:, ::2], first[0][:, 1::2], every, every)
    assert_independent(first[0][same], first[0][same + 1], same, same + 1)
    assert_independent(first[0][other], first[0][other + 1], other, other + 1)
    assert_independent(first[0], first[1], every, every)


def test_beam_sampling_of_two_steps(model):
    """Of the four tokens that are drawn first, two beams go on; of their continuations, two
    are drawn; and the best wins."""
    temperature, settings = 1.5, {"num_beams": 2, "eos_token_id": None}
    first = np.log(exact(model, SOURCES[0], 1, eos=None)) / temperature
    totals = np.log(exact(model, SOURCES[0], 2, eos=None)) / temperature
    joint = np.zeros_like(totals)
    for drawn, probability in in_order(first, 4):
        beams = sorted(drawn, key=lambda token: -first[token])[:2]
        for pair, then in in_order(totals[beams].ravel(), 2):
            beam, token = divmod(max(pair, key=lambda i: totals[beams].ravel()[i]), VOCAB)
            joint[beams[beam], token] += probability * then
    sources = np.repeat(SOURCES[:1], 2048, axis=0)
    settings["temperature"] = temperature
    outputs = [sample(model, sources, seed, 2, **settings) for seed in range(4)]
    drawn = np.concatenate([output.sequences[:, 1:] for output in outputs])
    assert_distributed(drawn, joint)


def in_order(scores, count):
    """The ways to draw so many without replacement, each with its probability."""
    weights = np.exp(scores)
    for drawn in itertools.permutations(range(len(scores)), count):
        left = weights.sum() - np.cumsum([0, *weights[list(drawn[:-1])]])
        yield drawn, np.prod(weights[list(drawn)] / left)


def test_a_row_draws_the_same_in_any_batch(model):
    """At any place, and among any others; rows that are alike count from the first."""
    which = np.random.default_rng(0).integers(0, 3, 20)

    def draw(sources):
        output = sample(model, sources, 3, 5, num_return_sequences=3)
        return np.asarray(output.sequences).reshape(len(sources), 3, -1)

    together = draw(SOURCES[which])
    for i in range(3):
        is_same = which == i
        assert np.array_equal(together[is_same], draw(SOURCES[which[is_same]]))
    assert len(np.unique(together.reshape(60, -1), axis=0)) > 30
