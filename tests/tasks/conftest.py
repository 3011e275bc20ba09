"""What the tests of tasks share: BART's own tokenizer, and what HF's pipelines answered."""

import functools
import json
import pathlib

import equinox as eqx
import pytest
import recorded_models
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
    """What was recorded under a name, and the directory of the model's checkpoint."""

    @functools.cache
    def read(name):
        case = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
        directory = tmp_path_factory.mktemp(name)
        recorded_models.write(
            directory, case, lambda file, tensors: write_safetensors(file, held(tensors))
        )
        return case, directory

    return read


@pytest.fixture
def classifier(config, getkey):
    """A small model of entailment."""
    config = config.updated(id2label=["contradiction", "neutral", "entailment"])
    return eqx.nn.inference_mode(eb.BartForSequenceClassification(config, key=getkey()))


@pytest.fixture
def generator(config, getkey):
    """A small model that generates."""
    config = config.updated(init_std=0.5)
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
