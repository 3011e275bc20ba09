"""Whole texts in the place of those with masks."""

import equinox as eqx
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart import tasks


TEXT = "Le <mask> était fermé;\nnous <mask> 🥞."


@pytest.fixture
def model(recorded):
    return eb.BartForConditionalGeneration.from_pretrained(recorded("fill_mask")[1])


def only(tokenizer, *texts):
    """A processor that allows these texts alone."""
    answers = [tokenizer(text)["input_ids"] for text in texts]
    return [eb.PrefixConstrainedLogitsProcessor(answers, prompt=[2])]


def test_what_stands_for_each_mask(model, tokenizer):
    answers = [
        "Le café était fermé;\nnous avons mangé une crêpe 🥞.",
        "Le était fermé;\nnous 🥞.",
        "Le café est fermé;\nnous sommes ici 🥞.",
    ]
    found = tasks.infill(
        model,
        TEXT,
        logits_processors=only(tokenizer, *answers),
        num_beams=3,
        num_return_sequences=3,
        tokenizer=tokenizer,
    )
    fillings = {one.sequence: one.fillings for one in found}
    assert fillings == {
        answers[0]: (" café", " avons mangé une crêpe"),
        answers[1]: ("", ""),
        answers[2]: None,
    }
    for one in found:
        log_prob = tasks.score(model, TEXT, one.sequence, tokenizer=tokenizer).sum
        assert one.log_prob == pytest.approx(log_prob, rel=1e-4)
        assert one.score == pytest.approx(np.exp(log_prob), rel=0.1)


@pytest.mark.slow
def test_texts_are_those_of_generate(model, tokenizer):
    texts = [TEXT, "<mask> is  red", "a <mask>"]
    settings = {"num_beams": 2, "max_new_tokens": 9}
    found = tasks.infill(model, texts, tokenizer=tokenizer, **settings)
    inputs = tokenizer(texts, padding=True, return_tensors="np")
    expected = model.generate(inputs["input_ids"], inputs["attention_mask"], **settings)
    sums = np.asarray(expected.sequences_scores) * (np.asarray(expected.lengths) - 1)
    for (one,), text, log_prob in zip(found, expected.decode(tokenizer), sums, strict=True):
        assert one.sequence == text
        assert one.log_prob == pytest.approx(log_prob, rel=1e-4)
    again = tasks.infill(model, iter(texts), tokenizer=tokenizer, **settings)
    assert list(again) == found


def test_room_for_an_answer(model, tokenizer, monkeypatch):
    """As long as the text, and more; never the 20 tokens of HF."""
    seen = []

    def spied(self, ids, **settings):
        list(ids)
        seen.append(settings["max_new_tokens"])
        return iter(())

    monkeypatch.setattr(type(model), "generate_many", spied)
    tasks.infill(model, [TEXT, "word <mask> " * 20], tokenizer=tokenizer)
    tasks.infill(model, ["word <mask> " * 50], tokenizer=tokenizer)
    list(tasks.infill(model, iter([TEXT]), tokenizer=tokenizer))
    assert seen == [43 + 32, 128, 128]


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (["a <mask>", "none"], {}, r"texts\[1\] has no mask: write '<mask>'"),
        (["a <mask>", "word <mask> " * 70], {}, r"texts\[1\] has 143 tokens"),
        ("a <mask>", {"num_beam": 2}, "num_beam"),
        ("a <mask>", {"num_beams": 0}, "num_beams"),
    ],
)
def test_bad_input(texts, settings, message, model, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.infill(model, texts, tokenizer=tokenizer, **settings)


def test_training_mode(model, tokenizer):
    training = eqx.nn.inference_mode(model, value=False)
    with pytest.raises(RuntimeError, match="not for training mode"):
        tasks.infill(training, TEXT, tokenizer=tokenizer)
