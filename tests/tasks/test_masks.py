"""Masks against HF's pipeline."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_slow

import eqx_bart as eb
from eqx_bart import tasks


@pytest.fixture
def model(recorded):
    return eb.BartForConditionalGeneration.from_pretrained(recorded("fill_mask")[1])


@pytest.mark.parametrize("number", with_slow(0, 2, slow=[1]))
def test_fillings_are_those_of_hf(number, model, recorded, tokenizer):
    case, _ = recorded("fill_mask")
    call = case["calls"][number]
    found = tasks.fill_mask(model, case["texts"], tokenizer=tokenizer, **call["settings"])
    for one, expected in zip(found, call["answers"], strict=True):
        expected = expected if isinstance(expected[0], list) else [expected]
        assert len(one) == len(expected)
        for fillings, others in zip(one, expected, strict=True):
            assert [x.token for x in fillings] == [x["token"] for x in others]
            assert [x.token_str for x in fillings] == [x["token_str"] for x in others]
            assert [x.sequence for x in fillings] == [x["sequence"] for x in others]
            scores = [x["score"] for x in others]
            np.testing.assert_allclose([x.score for x in fillings], scores, 0, 1e-5)


def test_one_text_and_one_mask(model, tokenizer):
    ((best,),) = tasks.fill_mask(model, "a <mask> b", top_k=1, tokenizer=tokenizer)
    assert best.sequence.replace(best.token_str, "") == "a b"
    ((one,),) = tasks.fill_mask(
        model, "a <mask> b", targets=[best.token_str], tokenizer=tokenizer
    )
    assert one.token == best.token
    assert one.score == pytest.approx(best.score)


@pytest.mark.parametrize("has_head", [False, True])
def test_log_probs_are_those_of_a_call(has_head, generator):
    class Half(eb.models.AbstractLMHead):
        needs_attentions = True

        def __call__(self, decoded, source, projection):
            assert decoded.cross_attentions is not None
            return projection(decoded.last_hidden_state) / 2

    if has_head:
        generator = eqx.tree_at(
            lambda x: x.head, generator, Half(), is_leaf=lambda x: x is None
        )
    ids, positions = (
        jnp.asarray([[5, 6, 7, 2], [8, 9, 2, 1]]),
        jnp.asarray([[1, 3], [2, 0]]),
    )
    mask = jnp.asarray([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = eqx.filter_jit(tasks.mask_log_probs)(generator, ids, mask, positions)
    logits = eqx.filter_jit(generator)(ids, mask).logits
    expected = jax.nn.log_softmax(logits[jnp.arange(2)[:, None], positions], axis=-1)
    np.testing.assert_allclose(found, expected, 1e-4, 1e-5)
    with pytest.raises(ValueError, match=r"positions\[0, 0\] is 4"):
        tasks.mask_log_probs(generator, ids[:1], None, jnp.asarray([[4]]))


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (["a <mask>", "none"], {}, r"texts\[1\] has no mask: write '<mask>'"),
        ("<mask>", {}, "nothing but special tokens"),
        ([5, 6, 50264, 2], {}, "texts must be a string"),
        ("a <mask>", {"top_k": 0}, "top_k=0"),
        ("a <mask>", {"targets": []}, "targets is an empty list"),
        ("a <mask>", {"targets": "city"}, "must be a list of strings"),
        ("a <mask>", {"targets": [" city", "kilometre"]}, r"targets\[1\], .* is 3 tokens"),
        ("a <mask>", {"targets": [""]}, r"targets\[0\] is empty"),
    ],
)
def test_bad_input(texts, settings, message, model, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.fill_mask(model, texts, tokenizer=tokenizer, **settings)


def test_a_tokenizer_without_a_mask():
    with pytest.raises(ValueError, match="has no mask token"):
        tasks.fill_mask(eb.BUILTIN_MODEL, "cat")
