"""Zero-shot classification against HF's pipeline."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_slow

import eqx_bart as eb
from eqx_bart import tasks


@pytest.mark.parametrize(
    "name", with_slow("mnli", "two", slow=["mnli", "first", "two", "last_of_two"])
)
def test_scores_are_those_of_hf(name, recorded, tokenizer):
    case, directory = recorded(f"zero_shot_{name}")
    model = eb.BartForSequenceClassification.from_pretrained(directory)
    for call in case["calls"]:
        settings = dict(call["settings"])
        labels = settings.pop("candidate_labels")
        found = tasks.zero_shot(
            model, case["texts"], labels, tokenizer=tokenizer, **settings
        )
        for one, expected in zip(found, call["answers"], strict=True):
            assert one.sequence == expected["sequence"]
            assert list(one.labels) == expected["labels"]
            np.testing.assert_allclose(one.scores, expected["scores"], 0, 1e-5)


@pytest.mark.parametrize("labels", [["Neutral", "Entailment", "Contradiction"], None])
def test_a_contradiction_is_found_by_its_name(labels, recorded, tokenizer):
    """HF takes the first label for it, which here may be another."""
    _, directory = recorded("zero_shot_mnli")
    model = eb.BartForSequenceClassification.from_pretrained(directory)
    entailment, contradiction = (2, 0) if labels is None else (1, 2)
    if labels is not None:
        model = model.with_config(model.config.updated(id2label=labels))
    found = tasks.zero_shot(model, "A dog barks.", ["animals"], tokenizer=tokenizer)
    pair = tokenizer("A dog barks.", "This example is animals.")["input_ids"]
    logits = eqx.filter_jit(model)(np.asarray([pair])).logits[0].astype(float)
    odds = np.exp(logits[entailment] - logits[contradiction])
    assert found.scores == pytest.approx([odds / (1 + odds)], rel=1e-4)


def test_scores_inside_jit():
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    for contradiction in (None, 0):
        expected = tasks.entailment_scores(logits, 2, contradiction)
        found = eqx.filter_jit(tasks.entailment_scores)(
            jnp.asarray(logits), 2, contradiction
        )
        assert expected.shape == found.shape == (2, 5)
        np.testing.assert_allclose(found, expected, 1e-5)
    np.testing.assert_allclose(tasks.entailment_scores(logits, 2).sum(-1), 1, 1e-6)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([], {}, "labels is an empty list"),
        ("politics, sport", {}, "must be a list of strings"),
        (["a", " "], {}, r"labels\[1\] is empty"),
        (["a", "b", "a"], {}, r"labels\[2\] is there twice"),
        (["a"], {"hypothesis_template": "This is so."}, "no place {}"),
        (["a"], {"hypothesis_template": "{} is {}"}, "a place that is not {}"),
        (["a"], {"hypothesis_template": "{label}"}, "a place that is not {}"),
        (["a"], {"hypothesis_template": "{"}, "a place that is not {}"),
    ],
)
def test_bad_labels(labels, settings, message, classifier):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.zero_shot(classifier, "never read", labels, **settings)


def test_a_model_of_something_else(classifier):
    sentiment = classifier.with_config(classifier.config.updated(id2label=["a", "b", "c"]))
    with pytest.raises(ValueError, match=r"labels of this config are \['a', 'b', 'c'\]"):
        tasks.zero_shot(sentiment, "never read", ["x"])
