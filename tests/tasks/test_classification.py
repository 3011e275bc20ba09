"""Classification against HF's pipelines."""

import equinox as eqx
import numpy as np
import pytest
from conftest import with_slow
from oracle import assert_close

import eqx_bart as eb
from eqx_bart import tasks
from eqx_bart.tasks import classification


KINDS = ["three_labels", "one_label", "multi_label", "regression"]


@pytest.mark.parametrize("name", with_slow(*KINDS[::3], slow=KINDS))
def test_scores_are_those_of_hf(name, recorded, tokenizer):
    case, directory = recorded(f"classify_{name}")
    model = eb.BartForSequenceClassification.from_pretrained(directory)
    texts = [x for x in case["texts"] if isinstance(x, str)]
    pairs = [(x["text"], x["text_pair"]) for x in case["texts"] if isinstance(x, dict)]
    assert texts
    assert pairs
    found = tasks.classify(model, texts, tokenizer=tokenizer)
    firsts, seconds = map(list, zip(*pairs, strict=True))
    found += tasks.classify(model, firsts, seconds, tokenizer=tokenizer)
    for one, expected in zip(found, case["answers"], strict=True):
        assert list(one.labels) == [x["label"] for x in expected]
        assert_close(one.scores, [x["score"] for x in expected], 1e-5)
        assert (one.label, one.score) == (one.labels[0], one.scores[0])


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        ("none", [-200.0, 0.0, 1.0]),
        ("sigmoid", [0.0, 0.5, 1 / (1 + np.exp(-1))]),
        ("softmax", [0.0, 1 / (1 + np.e), np.e / (1 + np.e)]),
    ],
)
def test_what_makes_scores_of_logits(function, scores):
    logits = np.asarray([-200.0, 0.0, 1.0], np.float32)
    np.testing.assert_allclose(tasks.label_scores(logits, function), scores, 1e-6, 1e-30)


def test_the_function_may_be_chosen(recorded, tokenizer):
    _, directory = recorded("classify_three_labels")
    model = eb.BartForSequenceClassification.from_pretrained(directory)
    found = tasks.classify(model, "naïve", tokenizer=tokenizer, function_to_apply="none")
    ids = np.asarray([tokenizer("naïve")["input_ids"]])
    logits = np.sort(eqx.filter_jit(model)(ids).logits[0])[::-1]
    np.testing.assert_allclose(found.scores, logits, 1e-5)
    with pytest.raises(ValueError, match="must be one of softmax, sigmoid, none"):
        tasks.classify(model, "naïve", tokenizer=tokenizer, function_to_apply="tanh")


def test_texts_with_other_numbers_of_ends(classifier):
    """HF refuses a batch of them; alone they are read up to the last end."""
    rows = [[5, 6, 2], [5, 2, 7, 8, 2], [9, 2], [5, 6, 2, 2, 9, 2]]
    together = tasks.classify(classifier, rows)
    alone = [tasks.classify(classifier, row) for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.labels == other.labels
        np.testing.assert_allclose(one.scores, other.scores, 1e-5)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "function"),
    [
        (None, 1, "sigmoid"),
        (None, 2, "softmax"),
        ("multi_label_classification", 2, "sigmoid"),
        ("single_label_classification", 2, "softmax"),
        ("regression", 1, "none"),
    ],
)
def test_the_function_of_a_config(problem_type, num_labels, function):
    config = eb.BartConfig(problem_type=problem_type, num_labels=num_labels)
    assert classification._function(config, None) == function
