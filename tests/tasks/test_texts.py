"""What tasks make of their arguments, and what they say is wrong with them."""

import itertools

import pytest
import transformers

import eqx_bart as eb
from eqx_bart import tasks


@pytest.fixture
def model(recorded):
    return eb.BartForSequenceClassification.from_pretrained(
        recorded("classify_three_labels")[1]
    )


@pytest.fixture(scope="session")
def speller():
    return transformers.AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)


def test_one_and_a_list_and_an_iterable(model, tokenizer):
    texts = ["A dog barks.", "naïve", "no"]
    one = tasks.classify(model, "A dog barks.", tokenizer=tokenizer)
    many = tasks.classify(model, texts, tokenizer=tokenizer)
    assert isinstance(one, tasks.Classification)
    assert isinstance(many, list)
    assert [x.sequence for x in many] == texts
    assert many[0].labels == one.labels
    found = tasks.classify(
        model, (f"text {i}" for i in itertools.count()), tokenizer=tokenizer
    )
    assert not isinstance(found, list)
    first = list(itertools.islice(found, 3))
    assert [x.sequence for x in first] == ["text 0", "text 1", "text 2"]


def test_a_checkpoint_by_its_name(recorded, tokenizer, speller):
    target = [*speller.convert_tokens_to_ids(["K", "AE1", "T"]), 2]
    by_name = tasks.score(str(eb.BUILTIN_MODEL), "cat", target)
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    assert by_name == tasks.score(model, "cat", target, tokenizer=speller)
    directory = recorded("classify_three_labels")[1]
    weights = directory / "model.safetensors"
    by_file = tasks.classify(weights, "naïve", tokenizer=tokenizer)
    assert by_file == tasks.classify(directory, "naïve", tokenizer=tokenizer)


def test_what_is_too_long_is_cut_where_that_is_wanted(model, tokenizer):
    long = "word " * 300
    ids = tokenizer(long)["input_ids"]
    cut = tasks.classify(model, long, tokenizer=tokenizer, truncation=True)
    assert cut.scores == tasks.classify(model, [*ids[:127], 2]).scores
    both = tasks.classify(model, long, "end", tokenizer=tokenizer, truncation=True)
    end = tokenizer("", "end")["input_ids"][1:]
    assert both.scores == tasks.classify(model, [*ids[: 128 - len(end)], *end]).scores
    with pytest.raises(ValueError, match="texts cannot be read by the tokenizer"):
        tasks.classify(model, "short", long, tokenizer=tokenizer, truncation=True)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("", "texts is empty"),
        (["good", " \n"], r"texts\[1\] is empty"),
        ([], "texts is an empty list"),
        (["good", None], r"texts\[1\] must be a string; it is None"),
        (["good", "</s><pad> <mask>"], r"texts\[1\] has nothing but special tokens"),
        (
            ["good", "word " * 130],
            r"texts\[1\] has 13\d tokens, and the model reads at most",
        ),
        (["good", "\ud800"], r"texts\[1\] cannot be read by the tokenizer"),
        ({"text": "good"}, "must be a text, a list of texts or another iterable"),
        (b"good", "must be a text, a list of texts or another iterable"),
        (3, "must be a text, a list of texts or another iterable"),
    ],
)
def test_bad_texts(texts, message, model, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.classify(model, texts, tokenizer=tokenizer)


def test_what_is_wrong_in_an_iterable_is_raised_after_the_answers_before(model, tokenizer):
    found = tasks.classify(model, iter(["good", "bad", ""]), tokenizer=tokenizer)
    assert [next(found).sequence, next(found).sequence] == ["good", "bad"]
    with pytest.raises(ValueError, match=r"texts\[2\] is empty"):
        next(found)


@pytest.mark.parametrize("wrong", [None, "", "word " * 130])
def test_inputs_of_which_some_are_wrong(wrong, model, tokenizer):
    """What cannot be read is told under the name that was given; the rest is answered."""
    named = [
        tasks.texts.Named((f"line {i}",), (x,)) for i, x in enumerate(["a", wrong, "b"])
    ]
    errors = []
    inputs = tasks.texts.Inputs(named, lambda error: errors.append(str(error)))
    found = tasks.classify(model, inputs, tokenizer=tokenizer)
    assert [x.sequence for x in found] == ["a", "b"]
    assert len(errors) == 1
    assert errors[0].startswith("line 1 ")


def test_characters_that_are_no_tokens(speller):
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    with pytest.raises(ValueError, match=r"sources\[0\] has characters .*: 'é' 'ï'"):
        tasks.score(model, ["naïvé"], [[74, 2]], tokenizer=speller)


def test_parts_that_do_not_belong_together(model, tokenizer):
    with pytest.raises(ValueError, match="not as many texts as text_pairs"):
        tasks.classify(model, ["a", "b"], ["c"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="not as many texts as text_pairs"):
        list(tasks.classify(model, iter(["a"]), iter(["c", "d"]), tokenizer=tokenizer))
    with pytest.raises(TypeError, match="text_pairs must be a text, a list of texts"):
        tasks.classify(model, ["a", "b"], "c", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"candidates\[0\] must be a list of texts"):
        tasks.rank(eb.BUILTIN_MODEL, ["a"], ["b"])


def test_the_tokenizer_of_another_model(model, speller, tokenizer, classifier):
    with pytest.raises(TypeError, match="there is no tokenizer: pass tokenizer"):
        tasks.classify(model, "good")
    with pytest.raises(ValueError, match="has 50265 tokens, and the model's vocabulary 41"):
        tasks.classify(classifier, "good", tokenizer=tokenizer)
    other = model.with_config(model.config.updated(eos_token_id=3))
    with pytest.raises(
        ValueError, match=r"eos_token_id of the tokenizer is 2, and the .* 3"
    ):
        tasks.classify(other, "good", tokenizer=tokenizer)
    one_less = model.resize_token_embeddings(50264)
    found = tasks.classify(one_less, "good", tokenizer=tokenizer)  # as bart-large-cnn's
    assert found == tasks.classify(model, "good", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="texts has the token 50264"):
        tasks.classify(one_less, "good <mask>", tokenizer=tokenizer)


def test_a_model_with_another_head(model, recorded, tokenizer, generator):
    with pytest.raises(TypeError, match="model of classify is BartForConditionalGen"):
        tasks.classify(generator, "good", tokenizer=tokenizer)
    directory = recorded("classify_three_labels")[1]
    message = "the checkpoint of a BartForSequenceClassification, which has not the head"
    with pytest.raises(ValueError, match=message):
        tasks.score(directory, "good", "better")
    with pytest.raises(ValueError, match="checkpoint of a BartForConditionalGeneration"):
        tasks.classify(eb.BUILTIN_MODEL, "good")


def test_a_mistaken_name_of_an_argument(model):
    with pytest.raises(TypeError, match="do you mean 'truncation'"):
        tasks.classify(model, "good", truncatoin=True)


def test_progress(model, tokenizer, capsys):
    tasks.classify(model, ["good"] * 3, tokenizer=tokenizer, progress=True)
    assert "Classifying" in capsys.readouterr().out


def test_the_same_program_serves_again(model, tokenizer, monkeypatch):
    traced = []
    call = type(model).__call__
    monkeypatch.setattr(
        type(model), "__call__", lambda *x, **y: traced.append(1) or call(*x, **y)
    )
    for text in ("good", "better", "A dog barks."):
        tasks.classify(model, text, tokenizer=tokenizer)
    tasks.zero_shot(
        model.with_config(model.config.updated(id2label=["no", "maybe", "entailment"])),
        "A dog barks.",
        ["x"],
        tokenizer=tokenizer,
    )
    assert len(traced) <= 2
