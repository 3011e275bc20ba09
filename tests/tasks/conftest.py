"""What the tests of tasks share: BART's own tokenizer, and what HF's pipelines answered."""

import functools
import json
import pathlib

import equinox as eqx
import jax
import pytest
import recorded_models
from conftest import SMALL
from held import held

import eqx_bart as eb
from eqx_bart.files.safetensors import write_safetensors


RECORDED = pathlib.Path(__file__).parent / "recorded"


@pytest.fixture(scope="session")
def tokenizer(shared_data):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "bart-tokenizer")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """What was recorded under a name, and the directory of the model's checkpoint: the
    built-in one, if no weights are recorded."""

    @functools.cache
    def read(name):
        case = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
        if "shapes" not in case:
            return case, eb.BUILTIN_MODEL
        directory = tmp_path_factory.mktemp(name)
        recorded_models.write(
            directory, case, lambda file, tensors: write_safetensors(file, held(tensors))
        )
        return case, directory

    return read


@pytest.fixture(scope="session")
def classifier():
    """A small model of entailment."""
    return small(eb.BartForSequenceClassification)


@pytest.fixture(scope="session")
def generator():
    """A small model that generates."""
    return small(eb.BartForConditionalGeneration)


def small(kind):
    labels = ["contradiction", "neutral", "entailment"]
    config = SMALL.updated(decoder_layers=1, init_std=0.35, id2label=labels)
    model = eqx.filter_jit(lambda key: kind(config, key=key))(jax.random.key(0))
    return eqx.nn.inference_mode(model)
