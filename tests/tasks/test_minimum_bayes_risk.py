"""The answer of minimum Bayes risk, by hand and over samples of a model."""

import difflib
import itertools
import math

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

import eqx_bart as eb
from eqx_bart.tasks import generate_minimum_risk, minimum_risk


def overlap(candidate, reference):
    return len({*candidate} & {*reference}) / len({*candidate})


def test_the_greatest_expected_utility():
    """By hand: of "ab", "ac", "ad", "bc" each but "ad" shares a half with three."""
    best = minimum_risk(["ad", "ab", "ac", "bc"], overlap)
    assert best.utilities == (0.5, 0.625, 0.625, 0.5)
    assert (best.answer, best.index) == ("ab", 1)  # the first of equals


def test_a_metric_has_a_direction():
    """The candidate comes first: precision and recall choose other answers."""
    candidates, references = ["a", "abc"], ["ab", "ac"]
    precise = minimum_risk(candidates, overlap, references=references)
    assert (precise.answer, precise.utilities) == ("a", (1.0, pytest.approx(2 / 3)))
    found = minimum_risk(candidates, lambda c, r: overlap(r, c), references=references)
    assert (found.answer, found.utilities) == ("abc", (0.5, 1.0))


def test_with_the_metric_of_equality_the_commonest_wins():
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = rng.integers(0, 4, 15).tolist()
        counts = np.bincount(drawn)
        best = minimum_risk(drawn, lambda a, b: float(a == b))
        assert counts[best.answer] == counts.max()
        assert max(best.utilities) == pytest.approx(counts.max() / 15)


def test_weights_are_as_many_copies():
    weights = [2, 0, 3, 1]
    texts = ["abc", "xyz", "abd", "bde"]
    copies = [text for text, n in zip(texts, weights, strict=True) for _ in range(n)]
    weighted = minimum_risk(texts, overlap, weights=weights)
    copied = minimum_risk(texts, overlap, references=copies)
    assert weighted.answer == copied.answer
    assert weighted.utilities == pytest.approx(copied.utilities, rel=1e-12)
    halved = minimum_risk(texts, overlap, weights=[weight / 2 for weight in weights])
    assert halved == weighted


def test_what_is_not_text():
    best = minimum_risk([[1, 2], [2, 3], [9, 9]], lambda a, b: float(np.dot(a, b)))
    assert best.answer == [9, 9]


@pytest.mark.parametrize(
    ("candidates", "others", "message"),
    [
        ([], {}, "there are 0 and 0"),
        (["a"], {"references": []}, "there are 1 and 0"),
        (["a"], {"weights": [1, 2]}, "2 weights for 1 references"),
        (["a", "b"], {"weights": [-1, 2]}, r"0 or more and not all 0: \[-1, 2\]"),
        (["a", "b"], {"weights": [0, 0]}, "not all 0"),
        (["a", "b"], {"weights": [math.nan, 1]}, "not all 0"),
    ],
)
def test_what_is_refused(candidates, others, message):
    with pytest.raises(ValueError, match=message):
        minimum_risk(candidates, overlap, **others)


def test_a_metric_without_a_number():
    with pytest.raises(ValueError, match="NaN for the candidate 'b'"):
        minimum_risk(["a", "b"], lambda a, b: math.nan if a > b else 1.0)


def similarity(candidate, reference):
    return difflib.SequenceMatcher(None, candidate, reference, autojunk=False).ratio()


def test_over_samples_of_a_model():
    """The answers are those over the samples of each text alone."""
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)
    texts, call = ["attention", "equinox"], {"key": jax.random.key(3), "max_new_tokens": 16}
    asked = {"num_samples": 8, "temperature": 1.5, "tokenizer": tokenizer}
    found = generate_minimum_risk(model, texts, similarity, **asked, **call)
    for text, best in zip(texts, found, strict=True):
        samples = model.generate(
            np.array([tokenizer(text)["input_ids"]]),
            do_sample=True,
            top_k=0,
            temperature=1.5,
            num_return_sequences=8,
            **call,
        ).decode(tokenizer)
        assert len({*samples}) > 2
        table = [[similarity(a, b) for b in samples] for a in samples]
        assert best.utilities == pytest.approx(np.mean(table, axis=1))
        assert best.answer == samples[best.index]
        assert all(x <= max(best.utilities) for x in itertools.chain(best.utilities))
    few = {"num_samples": 2, "top_k": 1}  # as greedy search, where every sample is the same
    greedy = generate_minimum_risk(eb.BUILTIN_MODEL, texts[0], similarity, **few, **call)
    assert greedy.utilities == (1.0, 1.0)
