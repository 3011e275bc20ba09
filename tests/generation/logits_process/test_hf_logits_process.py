"""The kinds of examples by which HF explains its processors, in its
`generation/test_logits_process.py` and `test_flax_logits_process.py`, with numbers that can
be checked by hand. `test_against_hf.py` beside this compares with HF's on random ones.

`tests/test_hf_suites.py` says where each of their methods is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_bart.generation import logits_process as ours


LOWEST, HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max
X = -np.inf


def apply(processor, scores, tokens=((0,),), length=None):
    tokens = np.asarray(tokens)
    length = tokens.shape[1] if length is None else length
    scores = jnp.asarray(scores, jnp.float32)
    before = np.array(scores)
    found = processor(
        jnp.asarray(tokens), scores, jnp.full((len(tokens), 1), length, jnp.int32)
    )
    assert np.array_equal(scores, before, equal_nan=True)  # nothing is changed in place
    return np.asarray(found)


def kept(processor, probabilities):
    """The tokens that a warper keeps in each row."""
    found = apply(processor, np.log(probabilities), np.zeros((len(probabilities), 1), int))
    return [np.flatnonzero(row > X).tolist() for row in found]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ours.TopKLogitsWarper(2), [[0, 1], [2, 3]]),
        (ours.TopPLogitsWarper(0.75), [[0, 1], [1, 2, 3]]),
        (ours.MinPLogitsWarper(0.4), [[0, 1], [1, 2, 3]]),
        (ours.TypicalLogitsWarper(0.25), [[1], [2]]),
        (ours.EpsilonLogitsWarper(0.15), [[0, 1], [1, 2, 3]]),
        (ours.EtaLogitsWarper(0.15), [[0, 1], [1, 2, 3]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_warpers_keep(processor, expected):
    """HF's `test_top_k_dist_warper`, `test_top_p_dist_warper`, `test_min_p_dist_warper`,
    `test_typical_dist_warper`, `test_epsilon_dist_warper`, `test_eta_dist_warper`.

    The entropy of the first row is 1.16 nats, so 0.3, which is 1.20, is its most typical;
    that of the second is 1.28, to which 0.3 is nearest, too."""
    rows = [[0.5, 0.3, 0.12, 0.08], [0.1, 0.2, 0.3, 0.4]]
    assert kept(processor, rows) == expected


@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_temperature(temperature):
    """HF's `test_temperature_dist_warper`: what is even stays even, peaks sharpen below 1
    and flatten above."""
    scores = np.array([[0.1] * 5, [0.1, 0.4, 0.1, -0.9, 0.1]])
    before = jax.nn.softmax(scores)
    found = apply(ours.TemperatureLogitsWarper(temperature), scores, [[0], [0]])
    after = jax.nn.softmax(found)
    assert np.allclose(after[0], before[0])
    sign = 1 if temperature < 1 else -1
    assert sign * (after[1].max() - before[1].max()) > 0
    assert sign * (after[1].min() - before[1].min()) < 0


@pytest.mark.parametrize(
    ("processor", "tokens", "expected"),
    [
        (  # what was positive is divided by 2, what was negative multiplied
            ours.RepetitionPenaltyLogitsProcessor(2.0),
            [[0, 3, 3], [2, 2, 2]],
            [[0.5, -1, 2, -8], [1, -1, 1, -4]],
        ),
        (
            ours.EncoderRepetitionPenaltyLogitsProcessor(
                2.0, np.array([[0, 3, -1], [2, 2, 2]])
            ),
            [[1], [1]],
            [[2, -1, 2, -2], [1, -1, 4, -4]],
        ),
        (  # 0 1 came before in both; after 1 0 came 2, and after 1 2 nothing
            ours.NoRepeatNGramLogitsProcessor(2),
            [[0, 1, 3, 0], [1, 2, 1, 1]],
            [[1, X, 2, -4], [1, X, X, -4]],
        ),
        (
            ours.NoRepeatNGramLogitsProcessor(3),
            [[1, 2, 3, 1, 2], [3, 2, 1, 1, 2]],
            [[1, -1, 2, X], [1, -1, 2, -4]],
        ),
        (  # shorter than an n-gram
            ours.NoRepeatNGramLogitsProcessor(4),
            [[1, 1], [2, 2]],
            [[1, -1, 2, -4]] * 2,
        ),
        (
            ours.EncoderNoRepeatNGramLogitsProcessor(
                2, np.array([[1, 0, 1, 3], [0, 2, 2, -1]])
            ),
            [[2, 1], [1, 2]],
            [[X, -1, 2, X], [1, -1, X, -4]],
        ),
        (
            ours.SequenceBiasLogitsProcessor(
                [((0,), 5.0), ((2, 3), -5.0), ((1, 2, 1), 7.0), ((0, 0, 0, 1), 9.0)]
            ),
            [[1, 2], [0, 3]],
            [[6, 6, 2, -9], [6, -1, 2, -4]],
        ),
        (  # a word of one token is forbidden, one of two after its first
            ours.SequenceBiasLogitsProcessor([((1,), X), ((3, 2), X)]),
            [[1, 2], [0, 3]],
            [[1, X, 2, -4], [1, X, X, -4]],
        ),
        (
            ours.SuppressTokensLogitsProcessor([0, 3]),
            [[1], [1]],
            [[X, -1, 2, X]] * 2,
        ),
    ],
)
def test_what_processors_make_of_tokens(processor, tokens, expected):
    """HF's `test_repetition_penalty_dist_process`,
    `test_encoder_repetition_penalty_dist_process`, `test_no_repeat_ngram_dist_processor`,
    `test_no_repeat_ngram_dist_processor_banned_token_reappears`,
    `test_no_repeat_ngram_dist_processor_sequence_shorter_than_ngram`,
    `test_encoder_no_repeat_ngram_dist_processor`, `test_bias_dist_processor`,
    `test_no_bad_words_dist_processor`."""
    found = apply(processor, [[1, -1, 2, -4]] * 2, tokens)
    assert np.allclose(found, expected)
    places = [[*row, 3, 0] for row in tokens]  # which are not decided yet
    found = apply(processor, [[1, -1, 2, -4]] * 2, places, len(tokens[0]))
    assert np.allclose(found, expected)


FIRST = [X, 0, X, X]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ours.MinLengthLogitsProcessor(3, 1), {1: [1, X, 2, -4], 2: [1, X, 2, -4]}),
        (ours.MinLengthLogitsProcessor(3, [1, 2]), {1: [1, X, X, -4], 2: [1, X, X, -4]}),
        (ours.ForcedBOSTokenLogitsProcessor(1), {1: FIRST}),
        (ours.ForcedEOSTokenLogitsProcessor(4, 1), {3: FIRST}),
        (ours.SuppressTokensAtBeginLogitsProcessor([0], 2), {2: [X, -1, 2, -4]}),
        (  # from 2 on, |score| (2 ** i - 1) is added, which raises a negative score
            ours.ExponentialDecayLengthPenalty(2, 2.0, [1]),
            {3: [1, 0, 2, -4], 4: [1, 2, 2, -4]},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_processors_make_of_lengths(processor, expected):
    """HF's `test_min_length_dist_processor`, `test_new_min_length_dist_processor`,
    `test_forced_bos_token_logits_processor`, `test_forced_eos_token_logits_processor`,
    `test_exponential_decay_length_penalty`."""
    for length in (1, 2, 3, 4):
        found = apply(processor, [[1, -1, 2, -4]], [[2, 3, 0, 1]], length)
        assert np.allclose(found, [expected.get(length, [1, -1, 2, -4])]), length


def test_numbers_that_are_none():
    """HF's `test_remove_nan_inf_logits_processor`."""
    found = apply(ours.InfNanRemoveLogitsProcessor(), [[0.5, np.nan, np.inf, -np.inf]])
    assert found.tolist() == [[0.5, 0.0, HIGHEST, LOWEST]]


def test_normalisation():
    """HF's `test_normalization`."""
    scores = np.array([[-23.0, -29.0, 47.0], [1.0, 2.0, X]])
    found = apply(ours.LogitNormalization(), scores, [[0], [0]])
    assert np.allclose(np.exp(found).sum(1), 1)
    assert np.allclose(np.exp(found), jax.nn.softmax(scores))


def test_prefixes():
    """HF's `test_prefix_constrained_logits_processor`: each input has its own."""
    scores, tokens = [[1, -1, 2, -4]] * 2, [[9, 0], [9, 3]]
    by_input = [[[0, 1], [0, 2]], [[3, 0], [3, 3]]]
    processor = ours.PrefixConstrainedLogitsProcessor(by_input=by_input, prompt=[9])
    assert np.array_equal(apply(processor, scores, tokens), [[X, -1, 2, X], [1, X, X, -4]])


def test_all_is_allowed_after_a_prefix():
    processor = ours.PrefixConstrainedLogitsProcessor([[1, 2], [1, 3]], prompt=[9])
    for length, expected in (
        (2, [[X, X, 2, -4]]),
        (3, [[1, -1, 2, -4]]),
        (4, [[1, -1, 2, -4]]),
    ):
        assert np.array_equal(
            apply(processor, [[1, -1, 2, -4]], [[9, 1, 3, 0]], length), expected
        )


@pytest.mark.parametrize("is_jitted", [False, True])
def test_one_after_the_other(is_jitted):
    """HF's `test_processor_list`, `test_processor_list_jitted`: processors are functions
    of arrays, and go one after the other inside `jit` as outside."""
    processors = [
        ours.MinLengthLogitsProcessor(10, 0),
        ours.TemperatureLogitsWarper(0.5),
        ours.RepetitionPenaltyLogitsProcessor(2.0),
        ours.NoRepeatNGramLogitsProcessor(2),
        ours.SequenceBiasLogitsProcessor([((1,), X)]),
        ours.TopPLogitsWarper(0.8),
    ]

    def run(processors, tokens, scores, length):
        for processor in processors:
            scores = processor(tokens, scores, length)
        return scores

    tokens = np.array([[3, 2, 3, 0]])
    run = eqx.filter_jit(run) if is_jitted else run
    scores = jnp.asarray([[9.0, 9.0, 1.0, 2.0, 1.0, -3.0]])
    found = run(
        processors, jnp.asarray(tokens), scores, jnp.full((len(tokens), 1), 3, jnp.int32)
    )
    # 0 may not come yet, 1 never, 2 not after 3 again; 3 is twice 2, halved as it was seen
    assert np.allclose(found, [[X, X, X, 2.0, 2.0, X]])
