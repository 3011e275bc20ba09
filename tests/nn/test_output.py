"""Outputs are dataclasses, and mappings, as HF's `ModelOutput`."""

from collections.abc import Mapping

import equinox as eqx
import numpy as np
import pytest
import torch
import transformers
from conftest import with_slow

import eqx_bart as eb


IDS = np.array([[5, 6, 2], [7, 8, 2]])
SHOW = {"output_attentions": True, "output_hidden_states": True}


@pytest.mark.parametrize("options", [{}, SHOW])
@pytest.mark.parametrize(
    "name",
    with_slow(
        "BartForSequenceClassification",
        "BartForCausalLM",
        slow=["BartModel", "BartForConditionalGeneration", "BartForQuestionAnswering"],
    ),
)
def test_the_mapping_is_hfs(name, options, config, getkey):
    theirs = getattr(transformers, name)(
        transformers.BartConfig(**config.to_dict(), attn_implementation="eager")
    ).eval()
    expected = theirs(torch.tensor(IDS), use_cache=False, **options)
    # HF's decoder by itself has an empty tuple of cross-attentions.
    names = [name for name, value in expected.items() if len(value)]
    out = eqx.nn.inference_mode(getattr(eb, name)(config, key=getkey()))(IDS, **options)
    assert [*out.keys()] == [*out] == names
    assert len(out) == len(names)
    for ours, (key, value) in zip(out.values(), out.items(), strict=True):
        assert ours is value is out[key] is getattr(out, key)
    assert all(x is y for x, y in zip(out.to_tuple(), out.values(), strict=True))
    assert isinstance(out, Mapping)
    assert [*{**out}] == names
    with pytest.raises(KeyError, match="nonsense"):
        out["nonsense"]


def test_a_field_that_is_none_is_not_in_the_mapping(config, getkey):
    out = eqx.nn.inference_mode(eb.BartModel(config, key=getkey()))(IDS)
    assert out.cross_attentions is None
    assert "cross_attentions" not in out
    assert out.get("cross_attentions", "nothing") == "nothing"
    with pytest.raises(
        KeyError, match="this Seq2SeqModelOutput has last_hidden_state, enc"
    ):
        out["cross_attentions"]
    assert out[0] is out.last_hidden_state
    assert out[:1] == (out.last_hidden_state,)


def test_outputs_are_still_pytrees(config, getkey):
    model = eqx.nn.inference_mode(eb.BartModel(config, key=getkey()))
    out = eqx.filter_jit(model)(IDS)
    assert isinstance(out, eb.Seq2SeqModelOutput)
    assert [*out] == ["last_hidden_state", "encoder_last_hidden_state"]
    assert eqx.tree_equal(out, eqx.filter_jit(model)(IDS))


def test_generated_text():
    """Transformers 5 decodes no JAX arrays."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    inputs = tokenizer(["cat", "transformer"], padding=True, return_tensors="np")
    generated = model.generate(
        inputs["input_ids"], inputs["attention_mask"], max_new_tokens=24
    )
    assert "sequences" in generated
    assert "scores" not in generated
    assert generated.decode(tokenizer) == ["K AE1 T", "T R AE0 N S F AO1 R M ER0"]
    whole = generated.decode(tokenizer, skip_special_tokens=False)
    assert whole[0].endswith("</s>")
    assert not any("<pad>" in text for text in whole)
