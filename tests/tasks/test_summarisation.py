"""Summaries against those of HF's pipeline, and long texts in windows."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import with_slow

import eqx_bart as eb
from eqx_bart import tasks


NAMES = ("nothing", "old", "both", "prefix", "own_beams", "task_length")
STORY = (
    "Dr. Smith left the café at 5 p.m. on Tuesday. He went home, which took 3.5 hours! "
    "“Why so late?” asked his wife (who had waited).\n\nHe did not know…\nNobody did. "
)
SHORT = {"max_length": 9, "min_length": 0, "num_beams": 1}


@pytest.fixture(scope="module")
def model(recorded):
    """One with the settings of bart-large-cnn, which reads 300 tokens."""
    return eb.BartForConditionalGeneration.from_pretrained(recorded("summarise_old")[1])


@pytest.mark.parametrize("name", with_slow("old", slow=NAMES))
def test_summaries_are_those_of_hf(name, recorded, tokenizer):
    case, directory = recorded(f"summarise_{name}")
    for call in case["calls"]:
        # What HF's pipeline must be told, lest its defaults override the checkpoint's own.
        settings = {} if name in ("own_beams", "task_length") else call["settings"]
        found = tasks.summarise(
            directory, case["texts"], tokenizer=tokenizer, long="truncate", **settings
        )
        for text, one, answer in zip(case["texts"], found, call["answers"], strict=True):
            assert list(one.summary_token_ids) == answer["summary_token_ids"]
            assert one.summary_text == answer["summary_text"]
            assert one.source == text
            (window,) = one.windows
            assert window.summary_text == one.summary_text
            assert one.merged is None


def test_summaries_of_a_trained_checkpoint_are_those_of_hf(recorded):
    """Its summaries of words are their phonemes."""
    case, checkpoint = recorded("summarise_words")
    for call in case["calls"]:
        found = tasks.summarise(checkpoint, case["texts"], **call["settings"])
        for one, answer in zip(found, call["answers"], strict=True):
            assert list(one.summary_token_ids) == answer["summary_token_ids"]
            assert one.summary_text == answer["summary_text"]


def test_long_texts_are_read_in_windows(model, tokenizer):
    short, long = STORY, STORY * 16
    sources = [short, long, "naïve"]
    with pytest.warns(
        UserWarning, match=r"texts\[1\] has 8\d\d tokens.* at most 300"
    ) as all_:
        found = tasks.summarise(model, sources, tokenizer=tokenizer, **SHORT)
    assert len(all_) == 1
    assert [x.source for x in found] == sources
    assert [len(x.windows) for x in found] == [1, 3, 1]
    _, one, _ = found
    for window in one.windows:
        part = one.source[window.start : window.end]
        alone = tasks.summarise(model, part, tokenizer=tokenizer, **SHORT)
        assert alone.summary_token_ids == window.summary_token_ids
        assert alone.summary_text == window.summary_text
    joined = " ".join(x.summary_text.strip() for x in one.windows)
    merged = tasks.summarise(model, joined, tokenizer=tokenizer, **SHORT)
    assert one.merged == merged
    assert one.summary_text == merged.summary_text
    assert one.summary_token_ids == merged.summary_token_ids
    assert (
        tasks.summarise(model, sources, tokenizer=tokenizer, long="windows", **SHORT)
        == found
    )


def test_every_window_is_what_generate_answers(model, tokenizer):
    one = tasks.summarise(model, STORY * 16, tokenizer=tokenizer, long="windows", **SHORT)
    for window in one.windows:
        ids = tokenizer(" " + one.source[window.start : window.end])["input_ids"]
        own = {"length_penalty": 0.5, "early_stopping": True} | SHORT
        output = model.generate(np.asarray([ids]), **own)
        expected = output.sequences[0, : int(output.lengths[0])]
        assert list(window.summary_token_ids) == expected.tolist()


@pytest.mark.slow
def test_summaries_are_merged_until_there_is_one(model, tokenizer):
    text = STORY * 90
    settings = {"max_length": 100, "min_length": 60, "num_beams": 1, "do_sample": False}
    one = tasks.summarise(
        model, text, tokenizer=tokenizer, long="windows", no_repeat_ngram_size=0, **settings
    )
    numbers, last = list[int](), one
    while last is not None:
        numbers.append(len(last.windows))
        assert last.summary_text == one.summary_text
        assert last.summary_token_ids == one.summary_token_ids
        inner = last.merged
        if inner is not None:
            texts = [x.summary_text.strip() for x in last.windows]
            assert inner.source == " ".join(texts)
        last = inner
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[-1] == 1
    assert len(numbers) > 2


def test_summaries_that_do_not_get_shorter(model, tokenizer):
    """They are joined, and the other texts are answered."""
    settings = SHORT | {"max_length": 300, "min_length": 290}
    asked = {"tokenizer": tokenizer, "long": "windows", **settings}
    message = r"2 windows of texts\[0\] have \d+ tokens, which take [2-9] windows"
    with pytest.warns(UserWarning, match=message):
        one, other = tasks.summarise(model, [STORY * 8, "It rained."], **asked)
    first, second = one.windows
    assert one.merged is None
    assert one.summary_text == f"{first.summary_text.strip()} {second.summary_text.strip()}"
    assert one.summary_token_ids == first.summary_token_ids + second.summary_token_ids
    assert other == tasks.summarise(model, "It rained.", **asked)


def test_what_is_long_is_read_as_one_chooses(model, tokenizer):
    text = STORY * 8
    one = tasks.summarise(model, text, tokenizer=tokenizer, long="truncate", **SHORT)
    (window,) = one.windows
    assert window.start == 0
    ids = tokenizer(" " + text, truncation=True, max_length=300)["input_ids"]
    assert (
        one.summary_token_ids
        == tasks.summarise(model, ids, tokenizer=tokenizer, **SHORT).summary_token_ids
    )
    read = tokenizer.decode(ids, skip_special_tokens=True)
    assert read[:-1] == " " + text[: window.end - 1]  # the last is read in part
    for source in (text, tokenizer(text)["input_ids"]):
        with pytest.raises(ValueError, match=r"texts\[1\] has 42\d tokens, .* at most 300"):
            tasks.summarise(model, ["x", source], tokenizer=tokenizer, long="error")
    with pytest.raises(ValueError, match="long must be one of windows, truncate, error"):
        tasks.summarise(model, text, tokenizer=tokenizer, long="both")


def test_one_and_a_list_and_an_iterable(model, tokenizer):
    assert tasks.summarize is tasks.summarise
    texts = ["A dog barks.", STORY * 16, "naïve"]
    settings = {"tokenizer": tokenizer, "long": "windows", "batch_size": 2, **SHORT}
    many = tasks.summarise(model, texts, **settings)
    assert isinstance(many, list)
    assert [tasks.summarise(model, x, **settings) for x in texts] == many
    read = list[int]()
    endless = (read.append(i) or texts[i % 3] for i in itertools.count())
    found = tasks.summarise(model, endless, **settings | {"batch_size": 1})
    assert read == []
    assert list(itertools.islice(found, 5)) == [*many, *many[:2]]
    assert len(read) == 32


def test_what_is_wrong_in_an_iterable_is_raised_after_the_answers_before(model, tokenizer):
    found = tasks.summarise(
        model, iter(["good", "naïve", " "]), tokenizer=tokenizer, **SHORT
    )
    assert [next(found).source, next(found).source] == ["good", "naïve"]
    with pytest.raises(ValueError, match=r"texts\[2\] is empty"):
        next(found)


def test_a_warning_for_an_iterable_once(model, tokenizer):
    long = (STORY * 8 for _ in range(3))
    with pytest.warns(UserWarning, match=r"texts\[0\] has 42\d tokens") as found:
        list(tasks.summarise(model, long, tokenizer=tokenizer, batch_size=1, **SHORT))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["good", " \n"], r"texts\[1\] is empty"),
        (["good", "</s><pad> <mask>"], r"texts\[1\] has nothing but special tokens"),
        (["good", "\ud800"], r"texts\[1\] cannot be read by the tokenizer"),
        (["good", [5, 50265]], r"texts\[1\] has the token 50265"),
        ({"text": "good"}, "must be a text, a list of texts or another iterable"),
    ],
)
def test_bad_texts(texts, message, model, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.summarise(model, texts, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_beam": 2}, "no argument or setting 'num_beam'"),
        ({"num_return_sequences": 2}, "summarise gives one summary of each text"),
        ({"max_length": 1000}, "would make 1000 tokens"),
        ({"tokenizer": None}, "pass tokenizer"),
    ],
)
def test_bad_settings(settings, message, model, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.summarise(model, "good", **{"tokenizer": tokenizer} | settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"task_specific_params": ["summarization"]},
            "must have the settings of each task",
        ),
        ({"task_specific_params": {"summarization": 3}}, "must have the settings of each"),
        ({"prefix": 3}, "prefix must be a string; it is 3"),
    ],
)
def test_bad_configs(values, message, model, tokenizer):
    odd = model.with_config(dataclasses.replace(model.config, extra=values))
    with pytest.raises(ValueError, match=message):
        tasks.summarise(odd, "good", tokenizer=tokenizer)


def test_progress(model, tokenizer, capsys):
    tasks.summarise(model, "good", tokenizer=tokenizer, progress=True, **SHORT)
    assert "Generating" in capsys.readouterr().out


@pytest.mark.slow
def test_samples(model, tokenizer, getkey):
    settings = {"tokenizer": tokenizer, "do_sample": True, "long": "windows", **SHORT}
    with pytest.raises(ValueError, match="needs a key"):
        tasks.summarise(model, "good", **settings)
    one, other = (
        tasks.summarise(model, STORY * 8, key=key, **settings)
        for key in (getkey(), getkey())
    )
    assert len(one.windows) == 2
    assert one.windows != other.windows
