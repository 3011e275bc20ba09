"""Whoever writes what Hugging Face's BART takes is told what to write here."""

import pathlib

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
import transformers

import eqx_bart as eb
from eqx_bart.hf_names import answer, FLAX, PYTORCH


README = pathlib.Path(__file__).parents[1] / "README.md"
IDS = np.array([[5, 6, 2], [7, 8, 2]])


@pytest.fixture
def model(config, getkey):
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


@pytest.mark.parametrize(("name", "rows"), [("HF Flax", FLAX), ("HF PyTorch", PYTORCH)])
def test_the_readme_has_the_table(name, rows):
    lines = [(name, "eqx-bart"), ("---", "---"), *rows]
    table = "\n".join(f"| {theirs} | {ours} |" for theirs, ours in lines)
    has_table = f"\n\n{table}\n\n" in README.read_text()
    assert has_table


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("logits_processor", "`logits_processors="),
        ("logits_warper", "`logits_processors="),
        ("prng_key", "key=key"),
        ("params", "`model(ids, mask)`"),
        ("streamer", "model.stream"),
        ("stopping_criteria", "model.step"),
        ("assistant_model", "model.step"),
        ("prefix_allowed_tokens_fn", "PrefixConstrainedLogitsProcessor"),
        ("inputs", "`input_ids=ids`"),
        ("past_key_values", "model.decode(ids, cache)"),
        ("token_type_ids", "BART has no token types"),
    ],
)
def test_arguments_of_generate(name, hint, model):
    for method in (model.generate, model.stream, model.init_generation):
        with pytest.raises(TypeError) as error:
            method(IDS, **{name: None})
        assert repr(name) in str(error.value)
        assert hint in str(error.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("labels", "eb.seq2seq_loss"),
        ("start_positions", "eb.question_answering_loss"),
        ("params", "`model(ids, mask)`"),
        ("dropout_rng", "key=key"),
        ("train", "inference_mode(model, False)"),
        ("past_key_values", "model.decode(ids, cache)"),
        ("use_cache", "model.decode(ids, cache)"),
        ("head_mask", "without these"),
        ("token_type_ids", "BART has no token types"),
    ],
)
def test_arguments_of_a_call(name, hint, model):
    for call in (model, model.encode, model.decode):
        with pytest.raises(TypeError) as error:
            call(IDS, **{name: None})
        assert repr(name) in str(error.value)
        assert hint in str(error.value)


@pytest.mark.parametrize("name", ["from_pt", "device_map", "low_cpu_mem_usage"])
def test_arguments_of_from_pretrained(name):
    with pytest.raises(
        TypeError, match=rf"'{name}'\. For Hugging Face's .*{name}.*, write"
    ):
        eb.BartModel.from_pretrained(eb.BUILTIN_MODEL, **{name: True})


def test_a_name_that_is_nobodys(model):
    with pytest.raises(
        TypeError, match="no argument 'attention_masks'; do you mean 'atten"
    ):
        model(IDS, attention_masks=None)
    with pytest.raises(TypeError, match="'num_beems'; do you mean 'num_beams'"):
        model.generate(IDS, num_beems=2)
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        _ = model.nonsense
    assert not hasattr(model, "eval")


#: What a model of HF's has that ours answers. The others are internal, or deprecated.
ATTRIBUTES = [
    "eval",
    "train",
    "training",
    "to",
    "cuda",
    "cpu",
    "half",
    "float",
    "double",
    "bfloat16",
    "device",
    "parameters",
    "named_parameters",
    "state_dict",
    "load_state_dict",
    "zero_grad",
    "requires_grad_",
    "forward",
    "gradient_checkpointing_enable",
    "get_encoder",
    "get_decoder",
    "get_input_embeddings",
    "get_output_embeddings",
    "add_adapter",
    "push_to_hub",
    "compile",
    "tie_weights",
]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name, model):
    assert hasattr(transformers.BartForConditionalGeneration, name) or name == "training"
    with pytest.raises(AttributeError, match=r"For Hugging Face's .*, write"):
        getattr(model, name)


def test_attributes_of_flax():
    assert "eqx.is_inexact_array" in answer("params", is_attribute=True)
    assert "bfloat16" in answer("to_bf16", is_attribute=True)


def test_a_property_that_fails_says_why(model):
    class Broken(eb.BartForConditionalGeneration):
        @property
        def projection(self):
            return self.model.no_such_part

    with pytest.raises(AttributeError, match="no_such_part"):
        _ = Broken(model.config, key=jax.random.key(0)).projection


def test_main_input_name():
    """HF's `test_model_main_input_name`."""
    for name in ("BartModel", "BartForCausalLM", "BartForSequenceClassification"):
        ours, theirs = getattr(eb, name), getattr(transformers, name)
        assert ours.main_input_name == theirs.main_input_name


def test_what_is_no_array(model):
    with pytest.raises(
        TypeError, match=r"input_ids is a list.* numpy.asarray\(input_ids\)"
    ):
        model([[5, 6, 2]])
    with pytest.raises(TypeError, match="attention_mask is a list"):
        model.generate(IDS, attention_mask=[[1, 1, 1]])
    with pytest.raises(TypeError, match=r"input_ids\.numpy\(force=True\)"):
        model.encode(torch.tensor(IDS))
    with pytest.raises(TypeError, match=r"as \*\*input_ids"):
        model.generate({"input_ids": IDS})
    with pytest.raises(TypeError, match="labels is a list"):
        eb.seq2seq_loss(model, IDS, None, [[5, 6]])
    with pytest.raises(TypeError, match="input_ids is a list"):
        eb.shift_tokens_right([[5, 6]], 1, 2)
