"""Question answering against HF's pipeline."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_slow

import eqx_bart as eb
from eqx_bart import tasks
from eqx_bart.tasks import question_answering


TEXTS = [
    "The café in Zürich  opened in 1907 😀.\n\n\tIt was   naïve, he said…",
    "👩‍👩‍👧 and 🇨🇭: “日本語”, crème brûlée\r\nand e\u0301 in two parts  ",
    "  two at the front",
]


@pytest.fixture
def model(recorded):
    return eb.BartForQuestionAnswering.from_pretrained(recorded("answer")[1])


RECORDED = [("answer", i) for i in range(5)] + [("no_answer", i) for i in range(2)]


@pytest.mark.parametrize("call", with_slow(*RECORDED[::2], slow=RECORDED), ids=str)
def test_answers_are_those_of_hf(call, recorded, tokenizer):
    name, number = call
    case, directory = recorded(name)
    model = eb.BartForQuestionAnswering.from_pretrained(directory)
    questions, contexts = map(list, zip(*case["questions"], strict=True))
    call = case["calls"][number]
    found = tasks.answer(
        model, questions, contexts, tokenizer=tokenizer, **call["settings"]
    )
    for answers, context, expected in zip(found, contexts, call["answers"], strict=True):
        expected = expected if isinstance(expected, list) else [expected]
        expected = [x for x in expected if x["score"] > 0]  # others are outside the context
        assert len(answers) == len(expected)
        for one, other in zip(answers, expected, strict=True):
            assert one.score == pytest.approx(other["score"], abs=1e-5)
            assert context[one.start : one.end] == one.answer
            assert (one.start, one.end, one.answer) == (
                other["start"],
                other["end"],
                other["answer"],
            )


@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_those_of_the_tokens(text, model, tokenizer):
    """What the tokens of a span say is what stands between its offsets, but for the space
    before a word, and for tokens that are a part of a character."""
    task = question_answering._Answers(
        model,
        tasks.texts.Reader(tokenizer),
        1,
        False,
        1,
        1,
        False,
        False,
        {"max_length": 99, "stride": 9},
    )
    (item,) = task.read(tasks.texts.Named(("questions", "contexts"), ("Who?", text)))
    ids, is_context = item.columns
    places = np.flatnonzero(is_context)
    compared = 0
    for i, first in enumerate(places):
        for last in places[i : i + 12]:
            said = tokenizer.decode(ids[first : last + 1])
            start, end = task._characters(item.what.encoding, int(first), int(last))
            if "\ufffd" not in said:
                assert text[start:end].strip() == said.strip()
                compared += 1
    assert compared > len(places)


def brute_force(starts, ends, is_context, max_answer_len):
    """All spans of a row, the best first, in float64."""
    choice = is_context.copy()
    choice[0] = True
    starts, ends = (np.where(choice, np.exp(x - x.max()), 0) for x in (starts, ends))
    starts, ends = starts / starts.sum(), ends / ends.sum()
    spans = [
        (starts[i] * ends[j], i, j)
        for i in range(1, len(starts))
        for j in range(i, min(i + max_answer_len, len(starts)))
        if is_context[i] and is_context[j]
    ]
    return sorted(spans, reverse=True), starts[0] * ends[0]


@pytest.mark.parametrize(("top_k", "max_answer_len"), [(1, 15), (7, 3), (500, 1)])
def test_the_best_spans_of_all(top_k, max_answer_len):
    rng = np.random.default_rng(top_k)
    starts, ends = rng.normal(0, 2, (2, 3, 20))
    is_context = np.arange(20)[None] >= np.asarray([[4], [15], [0]])
    is_context[:, 19] = False
    found = eqx.filter_jit(tasks.best_spans)(
        *(jnp.asarray(x, jnp.float32) for x in (starts, ends, is_context)[:2]),
        jnp.asarray(is_context),
        top_k=top_k,
        max_answer_len=max_answer_len,
    )
    for i in range(3):
        spans, null = brute_force(starts[i], ends[i], is_context[i], max_answer_len)
        spans = spans[:top_k]
        number = len(spans)
        np.testing.assert_allclose(found.scores[i, :number], [x for x, _, _ in spans], 1e-5)
        assert found.starts[i, :number].tolist() == [x for _, x, _ in spans]
        assert found.ends[i, :number].tolist() == [x for _, _, x in spans]
        assert not found.scores[i, number:].any()
        assert found.null_scores[i] == pytest.approx(null, rel=1e-5)


def test_one_and_an_iterable(model, tokenizer):
    one = tasks.answer(model, "Where?", "In Zürich.", tokenizer=tokenizer, top_k=2)
    pairs = [("Where?", "In Zürich."), ("Who?", "word " * 300)]
    questions, contexts = zip(*pairs, strict=True)
    found = list(
        tasks.answer(model, iter(questions), iter(contexts), tokenizer=tokenizer, top_k=2)
    )
    assert len(found) == 2
    assert [x.answer for x in found[0]] == [x.answer for x in one]
    assert {type(x) for x in one} == {tasks.Answer}


@pytest.mark.parametrize(
    ("question", "context", "settings", "message"),
    [
        ("", "In Zürich.", {}, "questions is empty"),
        ("Where?", " ", {}, "contexts is empty"),
        ("Where?", "</s>", {}, "contexts has nothing but special tokens"),
        (["Where?"], ["In Zürich.", "x"], {}, "not as many questions as contexts"),
        (["Where?"], "In Zürich.", {}, "contexts must be a text, a list of texts"),
        (
            "Where " * 200,
            "In Zürich.",
            {},
            "questions and contexts cannot be read in windows",
        ),
        ("Where?", "word " * 300, {"doc_stride": 127}, "cannot be read in windows of 128"),
        (
            "Where?",
            "In Zürich.",
            {"max_seq_len": 129},
            "max_seq_len=129, and the model reads",
        ),
        ("Where?", "In Zürich.", {"top_k": 0}, "top_k must be 1 or more"),
        ("Where?", "In Zürich.", {"max_answer_len": 0}, "max_answer_len must be 1 or more"),
        ("Where?", "In Zürich.", {"doc_stride": -1}, "doc_stride must be 0 or more"),
    ],
)
def test_bad_input(question, context, settings, message, model, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.answer(model, question, context, tokenizer=tokenizer, **settings)


def test_a_tokenizer_that_knows_no_places(model, tokenizer):
    class Slow:
        is_fast = False
        all_special_ids = tokenizer.all_special_ids
        all_special_tokens = tokenizer.all_special_tokens
        bos_token_id, eos_token_id, pad_token_id = 0, 2, 1

        def __len__(self):
            return len(tokenizer)

    with pytest.raises(ValueError, match="needs one of transformers' fast tokenizers"):
        tasks.answer(model, "Where?", "In Zürich.", tokenizer=Slow())
