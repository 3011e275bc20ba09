"""`BartConfig` and `GenerationConfig`: reading files of any age, writing, refusing."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest
import transformers

import eqx_bart as eb


CONFIGS = (
    "bart-base-finetuned",
    "bart-large-cnn",
    "bart-large-cnn-samsum-4.6.1",
    "bart-large-mnli",
    "distilbart-mnli-12-3",
    "mini-bart-g2p",
    "tiny-random-bart",
    "tiny-random-BartForConditionalGeneration",
)


def test_defaults_are_those_of_hf():
    ours, theirs = eb.BartConfig().to_dict(), transformers.BartConfig().to_dict()
    assert {k: v for k, v in ours.items() if k not in ("id2label", "label2id")} == {
        k: theirs[k] for k in ours if k not in ("id2label", "label2id")
    }
    assert len(ours["id2label"]) == len(theirs["id2label"]) == 3


@pytest.mark.parametrize("name", CONFIGS)
def test_real_configs(name, shared_data, tmp_path):
    file = shared_data / "configs" / f"{name}.config.json"
    config = eb.BartConfig.from_pretrained(file)
    values = json.loads(file.read_text())
    theirs = transformers.BartConfig.from_dict(values)
    for field in dataclasses.fields(config):
        if field.name not in ("extra", "id2label", "dtype"):
            assert getattr(config, field.name) == getattr(theirs, field.name), field.name
    assert str(config.dtype) == str(theirs.dtype).removeprefix("torch.")
    assert config.id2label == theirs.id2label
    hash(config)

    written = config.to_dict()
    renamed = ("num_hidden_layers", "classif_dropout", "_num_labels", "torch_dtype")
    assert {k: written[k] for k in values if k not in renamed} == {
        k: v for k, v in values.items() if k not in renamed
    }
    config.save_pretrained(tmp_path)
    assert eb.BartConfig.from_pretrained(tmp_path) == config
    assert transformers.BartConfig.from_pretrained(tmp_path).d_model == config.d_model


def test_legacy_names():
    config = eb.BartConfig.from_dict(
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "classif_dropout": 0.25,
            "_num_labels": 7,
            "torch_dtype": "float16",
        }
    )
    assert (config.d_model, config.encoder_layers) == (32, 3)
    assert (config.classifier_dropout, config.num_labels) == (0.25, 7)
    assert config.dtype == "float16"
    stale = {"_num_labels": 3, "id2label": {"0": "a", "1": "b"}}
    assert eb.BartConfig.from_dict(stale).num_labels == 2
    config = eb.BartConfig.from_dict({"classif_dropout": 0.1, "classifier_dropout": 0.0})
    assert config.classifier_dropout == 0


def test_settings_by_name_go_before_those_of_the_config():
    config = eb.GenerationConfig(max_new_tokens=9, pad_token_id=1, num_beams=4)
    updated = config.updated(eb.GenerationConfig(bos_token_id=0), {"num_beams": 1})
    assert updated.to_dict() == {
        "max_new_tokens": 9,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "num_beams": 1,
    }
    assert config.updated(None, {"max_length": 4}).max_new_tokens is None
    assert config.updated(None, {"temperature": 0.5}).temperature == 0.5
    with pytest.raises(TypeError, match="setting 'temprature'; do you mean"):
        config.updated(None, {"temprature": 0.5})


def test_integers_of_numpy_are_integers():
    config = eb.BartConfig(vocab_size=np.int64(60), eos_token_id=[np.int32(2), 3])
    assert config == eb.BartConfig(vocab_size=60, eos_token_id=(2, 3))
    assert type(config.vocab_size) is int
    generation = eb.GenerationConfig(max_new_tokens=np.int64(3), eos_token_id=[2])
    assert generation == eb.GenerationConfig(max_new_tokens=3, eos_token_id=(2,))


def test_unknown_keys_are_kept_and_belong_to_the_config():
    values = {"prefix": " ", "task_specific_params": {"summarization": {"num_beams": 4}}}
    config = eb.BartConfig.from_dict(values)
    values["task_specific_params"]["summarization"]["num_beams"] = 5
    assert config.extra["task_specific_params"] == {"summarization": {"num_beams": 4}}
    assert config.to_dict()["prefix"] == " "
    assert config != eb.BartConfig()
    assert config == eb.BartConfig.from_dict(config.to_dict())


def test_labels(tmp_path):
    assert eb.BartConfig(num_labels=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert eb.BartConfig(id2label=("no", "yes")).num_labels == 2
    assert dataclasses.replace(eb.BartConfig(), num_labels=5).id2label[4] == "LABEL_4"
    named = {"id2label": {"1": "yes", "0": "no"}, "label2id": {"no": 0, "yes": 1}}
    config = eb.BartConfig.from_dict(named)
    assert config.id2label == {0: "no", 1: "yes"}
    assert config.to_dict()["label2id"] == {"no": 0, "yes": 1}
    config.save_pretrained(tmp_path)
    assert eb.BartConfig.from_pretrained(tmp_path, num_labels=4).num_labels == 4
    assert eb.BartConfig.from_pretrained(tmp_path, num_labels=2) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be a positive integer; it is 0"),
        ({"d_model": 12.5}, "d_model must be a positive integer; it is 12.5"),
        (
            {"encoder_attention_heads": 3},
            "encoder_attention_heads must divide d_model=1024",
        ),
        (
            {"decoder_attention_heads": 7},
            "decoder_attention_heads must divide d_model=1024",
        ),
        ({"activation_function": "gleu"}, "activation_function must be one of gelu"),
        ({"dropout": 1.5}, r"dropout must lie in \[0, 1\]; it is 1.5"),
        ({"encoder_layerdrop": "0.1"}, "encoder_layerdrop must lie in"),
        ({"init_std": float("nan")}, "init_std must be 0 or more"),
        ({"scale_embedding": "no"}, "scale_embedding must be true or false; it is 'no'"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id must be a token id, an integer, or"),
        ({"pad_token_id": True}, "pad_token_id must be a token id, an integer, or none"),
        ({"id2label": {"a": "b"}}, "id2label has a key that is no id"),
        ({"model_type": "t5"}, "not the config of a BART: model_type is 't5'"),
        ({"normalize_before": True}, "not the config of a BART: normalize_before"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        eb.BartConfig.from_dict(values)


SOME_READ = {
    "classifier": [
        ({"num_labels": 3, "id2label": {"0": "a"}}, "id2label must name each of the num_l"),
        ({"num_labels": 0}, "num_labels must be a positive integer"),
        ({"num_labels": 10**9}, "num_labels must be a positive integer, at most 1000000"),
        ({"classifier_dropout": 2}, r"classifier_dropout must lie in \[0, 1\]; it is 2.0"),
    ],
    "its loss": [({"problem_type": "guess"}, "problem_type must be one of regression")],
    "loading in its dtype": [
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, .*, or none; .* .int8")
    ],
    "a smaller vocabulary": [
        ({"eos_token_id": 39}, "eos_token_id must be an id below vocab_size=20, or none"),
        ({"bos_token_id": -1}, "bos_token_id must be an id below vocab_size=20, or none"),
    ],
    "nothing": [
        ({"id2label": {"0": 0, "1": 1}}, None),
        ({"id2label": {"0": None, "1": []}}, None),
        ({"id2label": {"1": "low", "2": "high"}}, None),
        ({"id2label": {}}, None),
        ({"eos_token_id": [2, 999], "forced_eos_token_id": []}, None),
        ({"decoder_start_token_id": 999, "bos_token_id": 999}, None),
        ({"pad_token_id": -1}, None),
        ({"dropout": 1.0, "activation_dropout": 1, "encoder_layerdrop": 1.0}, None),
    ],
}


@pytest.mark.parametrize(
    ("reader", "values", "message"),
    [(reader, *case) for reader, cases in SOME_READ.items() for case in cases],
)
def test_what_only_some_read_is_checked_by_them(reader, values, message, config, tmp_path):
    """HF loads all of these."""
    model = eb.BartModel(config, key=jax.random.key(0))
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    loaded = eb.BartModel.from_pretrained(tmp_path, dtype="float32")
    assert eb.BartConfig.from_dict(loaded.config.to_dict()) == loaded.config
    ids = np.array([[5, 6, 7]])
    eqx.nn.inference_mode(loaded)(ids, decoder_input_ids=ids)
    read = {
        "classifier": lambda: eb.BartForSequenceClassification(
            loaded.config, key=jax.random.key(0)
        ),
        "its loss": lambda: eb.classification_loss(
            eqx.nn.inference_mode(
                eb.BartForSequenceClassification(loaded.config, key=jax.random.key(0))
            ),
            np.array([[5, 6, 2]]),
            None,
            np.array([1]),
        ),
        "loading in its dtype": lambda: eb.BartModel.from_pretrained(tmp_path),
        "a smaller vocabulary": lambda: loaded.resize_token_embeddings(20),
    }
    if reader in read:
        with pytest.raises(ValueError, match=message):
            read[reader]()


def test_padding_outside_the_vocabulary(config):
    """HF: an `AssertionError` for too high an id; one below 0 counts from the end."""
    too_high = dataclasses.replace(config, pad_token_id=41)
    with pytest.raises(ValueError, match="pad_token_id=41 is outside the vocabulary of 41"):
        eb.BartModel(too_high, key=jax.random.key(0))
    last = dataclasses.replace(config, pad_token_id=-1)
    assert eb.BartModel(last, key=jax.random.key(0)).shared.padding_idx == 40


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"hidden_size": 80}, {"d_model": 80}),
        ({"num_hidden_layers": 3}, {"encoder_layers": 3, "decoder_layers": 2}),
        ({"num_attention_heads": 5}, {"encoder_attention_heads": 5}),
        ({"classif_dropout": 0.3}, {"classifier_dropout": 0.3}),
        ({"torch_dtype": "float16"}, {"dtype": "float16"}),
        ({"pad_token_id": None}, {"pad_token_id": None}),
        (
            {"num_labels": 4},
            {"num_labels": 4, "id2label": {i: f"LABEL_{i}" for i in range(4)}},
        ),
        (
            {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "num_labels": 2},
            {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "extra": {}},
        ),
    ],
)
def test_overrides_by_any_name_of_hfs(overrides, expected, config, tmp_path):
    config.save_pretrained(tmp_path)
    for changed in (
        eb.BartConfig.from_pretrained(tmp_path, **overrides),
        config.updated(**overrides),
    ):
        assert changed == dataclasses.replace(config, **expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dropuot": 0.3}, "no setting 'dropuot'; do you mean 'dropout'"),
        ({"hiden_size": 3}, "no setting 'hiden_size'; do you mean 'hidden_size'"),
        ({"extra": {}}, "no setting 'extra'"),
        ({"num_beams": 4}, "no setting 'num_beams'.* belong to generation_config"),
        ({"d_model": 48, "hidden_size": 48}, "hidden_size and d_model are one setting"),
    ],
)
def test_an_unknown_override_is_an_error(overrides, message, config, getkey, tmp_path):
    model = eb.BartModel(config, key=getkey())
    model.save_pretrained(tmp_path)
    for call in (
        lambda: config.updated(**overrides),
        lambda: eb.BartConfig.from_pretrained(tmp_path, **overrides),
        lambda: eb.BartModel.from_pretrained(tmp_path, **overrides),
        lambda: eb.BartModel.from_pretrained(tmp_path, config=config, **overrides),
    ):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("text", ["{", "[]", '"bart"', "[" * 100_000])
def test_bad_files_are_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        eb.BartConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no config.json at "):
        eb.BartConfig.from_pretrained(tmp_path)
    with pytest.raises(eb.CheckpointError, match=r"no file or directory .*nowhere"):
        eb.BartConfig.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["bart-large-cnn", "bart-large-xsum", "bart-base-finetuned"]
)
def test_real_generation_configs(name, shared_data, tmp_path):
    file = shared_data / "configs" / f"{name}.generation_config.json"
    config = eb.GenerationConfig.from_pretrained(file)
    assert config.to_dict() == json.loads(file.read_text())
    config.save_pretrained(tmp_path)
    assert eb.GenerationConfig.from_pretrained(tmp_path) == config
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert theirs.forced_eos_token_id == config.forced_eos_token_id


def test_generation_settings_of_an_old_config(shared_data):
    file = shared_data / "configs" / "bart-large-cnn-samsum-4.6.1.config.json"
    config = eb.BartConfig.from_pretrained(file)
    generation = eb.GenerationConfig.from_model_config(config)
    assert (generation.max_length, generation.forced_bos_token_id) == (142, 0)
    assert (generation.num_beams, generation.length_penalty) == (4, 2.0)
    old = eb.BartConfig.from_dict({"force_bos_token_to_be_generated": True})
    assert eb.GenerationConfig.from_model_config(old).forced_bos_token_id == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length must be an integer, 1 or more; it is 0"),
        ({"max_new_tokens": "9"}, "max_new_tokens must be an integer"),
        ({"pad_token_id": "1"}, "pad_token_id must be a token id"),
        ({"eos_token_id": [2, None, -3]}, "eos_token_id must be a token id"),
    ],
)
def test_bad_generation_settings_are_named_where_they_are_used(values, message):
    config = eb.GenerationConfig.from_dict(values)
    with pytest.raises(ValueError, match=message):
        config.settled(prompt_length=1, vocab_size=60, max_positions=20)


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["FlaxBartModel"], "BartModel"),
        (["Mine", "BartModel"], "Mine"),
        ([], None),
        (None, None),
        (5, None),
        ("BartModel", None),
    ],
)
def test_the_class_that_saved_it(architectures, expected):
    config = eb.BartConfig.from_dict({"architectures": architectures})
    assert config.architecture == expected
