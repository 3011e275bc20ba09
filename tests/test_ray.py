"""The recipe of the guide "Many documents" for Ray Data."""

import json

import pytest
from transformers import AutoTokenizer

import eqx_bart as eb


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


# --8<-- [start:recipe]
class Summaries:
    """What an actor of Ray holds: a model, which answers a batch at a time."""

    def __init__(self, checkpoint):
        self.model = eb.BartForConditionalGeneration.from_pretrained(checkpoint)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def __call__(self, batch):
        inputs = self.tokenizer(
            batch["text"].tolist(), padding=True, truncation=True, return_tensors="np"
        )
        generated = self.model.generate(inputs["input_ids"], inputs["attention_mask"])
        return {**batch, "output": generated.decode(self.tokenizer)}


def summarise(documents, checkpoint, num_models, **resources):
    """The documents, a dataset of Ray with a column `text`, with a column `output`."""
    import ray.data

    return documents.map_batches(
        Summaries,
        fn_constructor_args=[checkpoint],
        batch_size=32,
        compute=ray.data.ActorPoolStrategy(size=num_models),
        **resources,  # num_gpus=1: a GPU for each model
    )


# --8<-- [end:recipe]


def test_ray_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # it would write to the home directory
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    words = ["hello", "cat", "phonological", "dog", "a"] * 20
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        documents = ray.data.read_json(str(file))
        rows = summarise(documents, str(eb.BUILTIN_MODEL), num_models=1).take_all()
    finally:
        ray.shutdown()
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)
    inputs = tokenizer(words[:5], padding=True, return_tensors="np")
    generated = model.generate(inputs["input_ids"], inputs["attention_mask"])
    outputs = dict(zip(words, generated.decode(tokenizer), strict=False))
    assert sorted(row["text"] for row in rows) == sorted(words)
    assert all(row["output"] == outputs[row["text"]] for row in rows)
