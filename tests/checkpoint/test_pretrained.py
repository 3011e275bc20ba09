"""Checkpoints: to and from HF's PyTorch BART, and what is refused."""

import dataclasses
import json
import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from conftest import with_slow
from oracle import (
    assert_close,
    assert_same,
    CLASSES,
    convert,
    random_config,
    random_ids,
    random_model,
)

import eqx_bart as eb
from eqx_bart.checkpoint.loading import to_tensors
from eqx_bart.checkpoint.names import canonical, named_leaves, OTHER, rule_for, WEIGHT_MAP


@pytest.fixture
def saved(config, getkey, tmp_path):
    """A model with random weights, and the directory where it is saved."""
    model = eb.BartForConditionalGeneration(config, key=getkey())
    model = eqx.tree_at(
        lambda m: m.final_logits_bias,
        model,
        type(model.final_logits_bias)(jax.random.normal(getkey(), (1, config.vocab_size))),
    )
    model = eqx.nn.inference_mode(model)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def rewrite(directory, change):
    """Applies `change` to the dict of the tensors in `directory`."""
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("tied", with_slow(True, slow=[False]))
@pytest.mark.parametrize("name", CLASSES)
def test_to_hf_and_back(name, tied, tmp_path):
    config = random_config(np.random.default_rng(0))
    config.tie_word_embeddings = tied
    theirs = random_model(name, config, 0, torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = CLASSES[name].from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, report = type(theirs).from_pretrained(
            tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
        )
    assert not any(
        report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    expected = theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert_same(CLASSES[name].from_pretrained(tmp_path / "ours"), ours)

    ids = random_ids(np.random.default_rng(1), config, 2, 6)
    with torch.no_grad():
        outputs = again.eval()(torch.from_numpy(ids))
    assert_close(ours(ids).to_tuple()[0], outputs[0], 1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_every_array_has_one_rule_and_every_rule_an_array(name, tied, config):
    config = eb.BartConfig.from_dict(config.to_dict() | {"tie_word_embeddings": tied})
    model = eqx.filter_eval_shape(CLASSES[name], config, key=jax.random.key(0))
    names = [canonical(path) for path in _paths(model)]
    assert len(names) == len(set(names))
    heads = ("lm_head", "final_logits_bias", "classification_head", "qa_outputs")
    trunk = [n for n in names if not n.startswith(heads)]
    assert all(rule_for(path) in WEIGHT_MAP for path in trunk)
    assert all(
        sum(re.fullmatch(rule.pattern, n) is not None for rule in WEIGHT_MAP) < 2
        for n in names
    )


def test_every_rule_has_an_array(config):
    config = eb.BartConfig.from_dict(config.to_dict() | {"tie_word_embeddings": False})
    used = set()
    for cls in CLASSES.values():
        model = eqx.filter_eval_shape(cls, config, key=jax.random.key(0))
        for form in (model, eqx.filter_eval_shape(eb.quantize, model)):
            used |= {rule_for(canonical(path)) for path in _paths(form)}
    assert used == {*WEIGHT_MAP, OTHER}
    assert rule_for("encoder.layers.0.fc3.weight") is OTHER


def _paths(model):
    return [leaf.name for leaf in named_leaves(model) if leaf.is_weight]


def test_a_model_is_loaded_for_inference(saved):
    model, directory = saved
    loaded = eb.BartForConditionalGeneration.from_pretrained(directory)
    assert_same(model, loaded)
    settings = (eqx.filter(m, eqx.is_array, inverse=True) for m in (model, loaded))
    assert len({tuple(jax.tree.leaves(s)) for s in settings}) == 1
    assert loaded.generation_config == model.generation_config


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float16, "float32"])
def test_dtype(dtype, saved):
    model, directory = saved
    loaded = eb.BartForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    weights = eqx.filter(loaded, eqx.is_inexact_array)
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype(dtype)}
    assert loaded.final_logits_bias.dtype == jnp.dtype(dtype)
    for x, y in zip(jax.tree.leaves(weights), arrays_inexact(model), strict=True):
        assert np.array_equal(x, y.astype(dtype))
    loaded.save_pretrained(directory / "cast")
    again = eb.BartForConditionalGeneration.from_pretrained(directory / "cast")
    assert_same(loaded, again)
    config = json.loads((directory / "cast" / "config.json").read_text())
    assert config["dtype"] == str(jnp.dtype(dtype))


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_the_dtype_of_the_config(dtype, name, saved):
    _, directory = saved
    rewrite(directory, lambda t: t.update({k: v.astype("f2") for k, v in t.items()}))
    config = json.loads((directory / "config.json").read_text())
    del config["dtype"]
    (directory / "config.json").write_text(json.dumps({**config, name: dtype}))
    ours = eb.BartForConditionalGeneration.from_pretrained(directory)
    theirs = transformers.BartForConditionalGeneration.from_pretrained(directory)
    for x in arrays_inexact(ours):
        assert f"torch.{x.dtype}" == str(theirs.dtype) == f"torch.{dtype or 'float16'}"


def arrays_inexact(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def test_a_model_in_numpy_is_saved_whole(saved):
    model, directory = saved
    jax.device_get(model).save_pretrained(directory / "numpy")
    loaded = eb.BartForConditionalGeneration.from_pretrained(directory / "numpy")
    assert_same(model, loaded)


def test_float64_needs_64_bit_mode(saved):
    model, directory = saved
    rewrite(directory, lambda t: t.update({k: v.astype("f8") for k, v in t.items()}))
    dataclasses.replace(model.config, dtype="float64").save_pretrained(directory)
    with pytest.raises(eb.CheckpointError, match="enable jax_enable_x64, or pass dtype"):
        eb.BartForConditionalGeneration.from_pretrained(directory)
    loaded = eb.BartForConditionalGeneration.from_pretrained(directory, dtype="float32")
    assert_same(model, loaded)
    with jax.enable_x64(True):
        loaded = eb.BartForConditionalGeneration.from_pretrained(directory)
        assert arrays_inexact(loaded)[0].dtype == np.float64
    with pytest.raises(ValueError, match="dtype must be a floating dtype"):
        eb.BartForConditionalGeneration.from_pretrained(directory, dtype="int8")


def test_shards(saved):
    model, directory = saved
    tensors = to_tensors(model)
    names = sorted(tensors)
    files = {
        name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)
    }
    for file in set(files.values()):
        part = {
            n: np.ascontiguousarray(tensors[n].load()) for n in names if files[n] == file
        }
        safetensors.numpy.save_file(part, directory / file)
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert_same(model, eb.BartForConditionalGeneration.from_pretrained(directory))

    index.write_text(json.dumps({"weight_map": {**files, "x": "../away.safetensors"}}))
    with pytest.raises(eb.CheckpointError, match=r"names the shard '../away.safetensors'"):
        eb.BartForConditionalGeneration.from_pretrained(directory)
    index.write_text(json.dumps({"weight_map": {**files, "x": files[names[0]]}}))
    with pytest.raises(eb.CheckpointError, match="disagree about x"):
        eb.BartForConditionalGeneration.from_pretrained(directory)
    index.unlink()
    with pytest.raises(eb.CheckpointError, match="has no weights: it holds none of"):
        eb.BartForConditionalGeneration.from_pretrained(directory)


def test_a_trunk_and_heads_for_one_another(saved, getkey, tmp_path):
    model, directory = saved
    bare = eb.BartModel.from_pretrained(directory)
    assert_same(bare, model.model)
    bare.save_pretrained(tmp_path / "bare")
    with pytest.warns(
        UserWarning, match=r"lacks all or part of classification_head\.dense"
    ) as record:
        classifier = eb.BartForSequenceClassification.from_pretrained(
            tmp_path / "bare", key=getkey()
        )
    assert len(record) == 1
    assert_same(classifier.model, bare)
    assert float(jnp.std(classifier.classification_head.dense.weight)) > 0
    with pytest.raises(
        eb.CheckpointError, match=r"lacks all or part of qa_outputs.*pass key="
    ):
        eb.BartForQuestionAnswering.from_pretrained(tmp_path / "bare")
    again = eb.BartForConditionalGeneration.from_pretrained(tmp_path / "bare")
    assert not np.any(again.final_logits_bias.value)
    assert_same(again.model, bare)
    decoder = eb.BartForCausalLM.from_pretrained(directory)
    assert np.array_equal(decoder.model.decoder.embed_tokens.weight, bare.shared.weight)
    config = eb.BartConfig.from_pretrained(directory, num_labels=5)
    with pytest.warns(UserWarning, match="drawn at random from key"):
        classifier = eb.BartForSequenceClassification.from_pretrained(
            directory, config=config, key=getkey()
        )
    assert classifier.classification_head.out_proj.weight.shape == (40, 5)


@pytest.mark.parametrize(
    "name",
    [
        "model.shared.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_tied_embeddings_under_any_name(name, saved):
    model, directory = saved

    def rename(tensors):
        tensors[name] = tensors.pop("model.shared.weight")

    rewrite(directory, rename)
    assert_same(model, eb.BartForConditionalGeneration.from_pretrained(directory))


def test_tied_embeddings_may_be_stored_twice_but_not_differ(saved):
    model, directory = saved
    copy = np.array(model.model.shared.weight)
    rewrite(directory, lambda t: t.update({"lm_head.weight": copy}))
    assert_same(model, eb.BartForConditionalGeneration.from_pretrained(directory))
    other = copy + np.eye(*copy.shape, 5, copy.dtype)
    for differs in (other, copy[:-1], copy.astype(np.float64)):
        rewrite(directory, lambda t, x=differs: t.update({"lm_head.weight": x}))
        with pytest.raises(
            eb.CheckpointError, match=r"lm_head.weight: differs from model.shared"
        ):
            eb.BartForConditionalGeneration.from_pretrained(directory)


def test_final_logits_bias_may_be_missing_or_of_another_width(saved):
    model, directory = saved
    bias = np.array(model.final_logits_bias.value)
    rewrite(directory, lambda t: t.update(final_logits_bias=bias[0]))
    assert_same(model, eb.BartForConditionalGeneration.from_pretrained(directory))
    rewrite(directory, lambda t: t.update(final_logits_bias=bias[:, :30]))
    with pytest.warns(
        UserWarning, match="final_logits_bias is 30 wide and the vocabulary 41"
    ):
        loaded = eb.BartForConditionalGeneration.from_pretrained(directory)
    assert np.array_equal(loaded.final_logits_bias.value[:, :30], bias[:, :30])
    assert not np.any(loaded.final_logits_bias.value[:, 30:])
    rewrite(directory, lambda t: t.pop("final_logits_bias"))
    loaded = eb.BartForConditionalGeneration.from_pretrained(directory)
    assert not np.any(loaded.final_logits_bias.value)


def test_all_problems_are_reported_together(saved):
    _, directory = saved

    def spoil(tensors):
        del tensors["model.encoder.layers.0.fc1.bias"]
        tensors["model.decoder.layers.1.fc1.weight"] = np.zeros((3, 40), np.float32)
        tensors["model.encoder.layers.7.fc1.bias"] = np.zeros(3, np.float32)

    rewrite(directory, spoil)
    with pytest.raises(eb.CheckpointError) as error:
        eb.BartForConditionalGeneration.from_pretrained(directory)
    message = str(error.value)
    assert "does not fit BartForConditionalGeneration" in message
    assert "encoder.layers.0.fc1.bias: missing" in message
    assert (
        "decoder.layers.1.fc1.weight: the checkpoint has the shape [3, 40], the config "
        "calls for [36, 40]"
    ) in message
    assert "encoder.layers.7.fc1.bias: unexpected" in message
    assert "ignore_mismatched_sizes" not in message


def test_what_is_of_no_use_is_named(saved):
    model, directory = saved
    one = np.ones(1, np.float32)
    rewrite(directory, lambda t: t.update({"model.encoder.version": one}))
    assert_same(model, eb.BartForConditionalGeneration.from_pretrained(directory))
    rewrite(directory, lambda t: t.update({"my_head.weight": one}))
    with pytest.warns(UserWarning, match="no use for these tensors.*my_head.weight"):
        loaded = eb.BartForConditionalGeneration.from_pretrained(directory)
    assert_same(model, loaded)


def test_a_broken_file_is_named(saved):
    model, directory = saved
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(eb.CheckpointError, match=r"model.safetensors is not a safetensors"):
        eb.BartForConditionalGeneration.from_pretrained(directory)
    model.save_pretrained(directory)
    integers = {"model.shared.weight": np.zeros((41, 40), np.int32)}
    rewrite(directory, lambda t: t.update(integers))
    with pytest.raises(eb.CheckpointError, match=r"shared.weight is stored as int32"):
        eb.BartForConditionalGeneration.from_pretrained(directory)


def test_importing_needs_neither_torch_nor_transformers():
    import subprocess
    import sys

    code = "import sys, eqx_bart; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "set()"


def test_transformers_reads_the_config(saved):
    _, directory = saved
    config = transformers.AutoConfig.from_pretrained(directory)
    assert config.architectures == ["BartForConditionalGeneration"]
    assert config.dtype == torch.float32


@pytest.mark.parametrize(("change", "tied"), [(-3, True), (5, False)])
@pytest.mark.parametrize("name", CLASSES)
def test_resize_token_embeddings(change, name, tied, tmp_path):
    config = random_config(np.random.default_rng(0))
    config.tie_word_embeddings = tied
    config.vocab_size += 4  # above the special tokens, so that it may shrink
    theirs = random_model(name, config, 0, torch.float32)
    ours = convert(theirs)
    size = config.vocab_size + change
    before = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    theirs.resize_token_embeddings(size, mean_resizing=True)
    ours = ours.resize_token_embeddings(size, mean_resizing=True)
    assert ours.config.vocab_size == size
    ours.save_pretrained(tmp_path)
    again = type(theirs).from_pretrained(tmp_path)
    expected = theirs.state_dict()
    kept = config.vocab_size + min(change, 0)
    for key, tensor in again.state_dict().items():
        if not re.search("embed_tokens|shared|lm_head", key):
            assert torch.equal(tensor, expected[key]), key
            continue
        assert torch.equal(tensor[:kept], before[key][:kept]), key
        # HF draws new rows from a narrow distribution around the mean; and it puts the
        # shared table in place of the encoder's and the decoder's own.
        if tied or "embed_tokens" not in key or name == "BartForCausalLM":
            assert torch.allclose(tensor, expected[key], atol=1e-3), key
    assert_same(CLASSES[name].from_pretrained(tmp_path), ours)


def test_resized_token_embeddings_are_drawn(saved, getkey):
    model, _ = saved
    size = 4041
    with pytest.raises(ValueError, match=r"From 41 to 4041 tokens.*pass key="):
        model.resize_token_embeddings(size)
    larger = model.resize_token_embeddings(size, key=getkey())
    new = np.asarray(larger.model.shared.weight[41:])
    assert abs(new.std() / model.config.init_std - 1) < 0.02
    assert abs(new.mean()) < 1e-3
    assert larger.final_logits_bias.shape == (1, size)
    logits = larger(np.array([[5, 6, 2]])).logits
    assert logits.shape == (1, 3, size)
    assert_close(logits[..., :41], model(np.array([[5, 6, 2]])).logits, 1e-6)
    assert_same(larger.resize_token_embeddings(41), model)
    with pytest.raises(ValueError, match="eos_token_id must be an id below vocab_size=2"):
        model.resize_token_embeddings(2)


@pytest.mark.parametrize("size", [37, 45])
def test_another_vocabulary_than_the_config(size, saved, getkey):
    model, directory = saved
    config = eb.BartConfig.from_pretrained(directory, vocab_size=size)
    load = eb.BartForConditionalGeneration.from_pretrained
    message = r"shared.weight: the checkpoint has the shape \[41, 40\].*ignore_mismatched"
    with pytest.raises(eb.CheckpointError, match=message):
        load(directory, config=config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load(directory, config=config, ignore_mismatched_sizes=True, key=getkey())
    words = " ".join(str(w.message) for w in caught)
    assert "final_logits_bias is 41 wide" in words
    assert ("shared.weight: drawn at random" in words) == (size > 41)
    assert loaded.model.shared.weight.shape == (size, 40)
    both = min(size, 41)
    assert np.array_equal(
        loaded.model.shared.weight[:both], model.model.shared.weight[:both]
    )
    assert size == 37 or 0 < float(jnp.std(loaded.model.shared.weight[both:])) < 0.03
    assert np.array_equal(
        loaded.final_logits_bias.value[:, :both], model.final_logits_bias.value[:, :both]
    )
    if size > 41:
        with pytest.raises(eb.CheckpointError, match=r"lacks all or part.*pass key="):
            load(directory, config=config, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("shape", [(41, 39), (41 * 40,), (41, 40, 1)])
def test_only_the_vocabulary_may_be_of_another_size(shape, saved, getkey):
    _, directory = saved
    table = np.zeros(shape, np.float32)
    rewrite(directory, lambda t: t.update({"model.shared.weight": table}))
    with pytest.raises(eb.CheckpointError, match=re.escape(f"shape {list(shape)}")):
        eb.BartForConditionalGeneration.from_pretrained(
            directory, vocab_size=37, ignore_mismatched_sizes=True, key=getkey()
        )


def test_another_head_than_the_config(config, getkey, tmp_path):
    model = eb.BartForSequenceClassification(config, key=getkey())
    model.save_pretrained(tmp_path)
    other = eb.BartConfig.from_pretrained(tmp_path, num_labels=7)
    load = eb.BartForSequenceClassification.from_pretrained
    message = r"out_proj.weight: .*shape \[3, 40\].*ignore_mismatched"
    with pytest.raises(eb.CheckpointError, match=message):
        load(tmp_path, config=other)
    with pytest.warns(UserWarning, match=r"out_proj.*drawn at random"):
        loaded = load(tmp_path, config=other, ignore_mismatched_sizes=True, key=getkey())
    assert loaded.classification_head.out_proj.weight.shape == (40, 7)
    assert_same(loaded.classification_head.dense, model.classification_head.dense)
    assert_same(loaded.model, model.model)


def test_a_new_head_in_one_call(saved, getkey):
    model, directory = saved
    load = eb.BartForSequenceClassification.from_pretrained
    names = {0: "bad", 1: "fair", 2: "good", 3: "fine", 4: "best"}
    with pytest.warns(UserWarning, match=r"classification_head.*drawn at random"):
        classifier = load(
            directory, id2label=names, torch_dtype="bfloat16", revision=None, key=getkey()
        )
    assert classifier.config.id2label == names
    assert classifier.classification_head.out_proj.weight.shape == (40, 5)
    assert classifier.model.shared.weight.dtype == jnp.bfloat16
    assert_same(
        classifier.model.shared.weight, model.model.shared.weight.astype("bfloat16")
    )
    given = dataclasses.replace(model.config, dropout=0.25)
    with pytest.warns(UserWarning, match=r"drawn at random"):
        classifier = load(directory, config=given, num_labels=2, key=getkey())
    assert (classifier.config.num_labels, classifier.config.dropout) == (2, 0.25)


def test_a_head_says_how_many_labels_where_the_config_is_silent(tmp_path):
    """HF writes no labels if there are two, and cannot read its own file back."""
    config = random_config(np.random.default_rng(0))
    config.num_labels = 2
    theirs = random_model("BartForSequenceClassification", config, 0, torch.float32)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    assert not {"num_labels", "id2label"} & values.keys()
    ids = random_ids(np.random.default_rng(1), config, 2, 6)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits
    load = eb.BartForSequenceClassification.from_pretrained
    ours = load(tmp_path)
    assert ours.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert_close(ours(ids).logits, expected, 1e-5)
    with pytest.raises(eb.CheckpointError, match=r"out_proj.weight: .* shape \[2, "):
        load(tmp_path, num_labels=4)
    for said in ({"num_labels": 3}, {"id2label": {"0": "a", "1": "b", "2": "c"}}):
        file.write_text(json.dumps(values | said))
        with pytest.raises(eb.CheckpointError, match=r"out_proj.weight: .* shape \[2, "):
            load(tmp_path)


def test_settings_of_a_model_are_changed_for_good(saved):
    model, directory = saved
    ids = np.array([[5, 6, 7, 2]])
    changed = eb.GenerationConfig(num_beams=3, max_new_tokens=5)
    loaded = eb.BartForConditionalGeneration.from_pretrained(
        directory, generation_config=changed
    )
    in_memory = model.with_generation_config(changed)
    start = model.config.decoder_start_token_id
    for new in (loaded, in_memory):
        own = new.generation_config
        assert (own.num_beams, own.max_new_tokens) == (3, 5)
        assert own.decoder_start_token_id == start  # the checkpoint's
        assert np.array_equal(
            new.generate(ids).sequences,
            model.generate(ids, num_beams=3, max_new_tokens=5).sequences,
        )
    by_name = in_memory.with_generation_config(num_beams=1, max_new_tokens=None)
    assert by_name.generation_config == model.with_generation_config(
        num_beams=1
    ).generation_config.updated(None, {"max_new_tokens": None})
    in_memory.save_pretrained(directory)
    again = eb.BartForConditionalGeneration.from_pretrained(directory)
    assert again.generation_config == in_memory.generation_config
    with pytest.raises(TypeError, match="no argument or setting 'beams'"):
        model.with_generation_config(beams=2)
    with pytest.raises(TypeError, match="no setting 'generation_config'"):
        eb.BartModel.from_pretrained(directory, generation_config=changed)


def wrapped(inside):
    """A name in a model whose layers are wrapped one by one."""
    return re.sub(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module.", inside)


RENAMED = {
    "module.": lambda n: f"module.{n}",
    "_orig_mod.": lambda n: f"_orig_mod.{n}",
    "model.": lambda n: f"model.{n}",
    "bart.": lambda n: f"bart.{n}",
    "two": lambda n: f"module.net.{n}",
    "inner": wrapped,
    "all": lambda n: f"module._orig_mod.model.{wrapped(n)}",
}


@pytest.mark.parametrize("how", RENAMED)
@pytest.mark.parametrize("name", ["BartModel", "BartForConditionalGeneration"])
def test_names_with_a_prefix(name, how, config, getkey, tmp_path):
    model = eqx.nn.inference_mode(CLASSES[name](config, key=getkey()))
    model.save_pretrained(tmp_path)
    loss = {"loss.weight": np.ones(3, np.float32)}  # a module beside the model

    def rename(tensors):
        renamed = {RENAMED[how](n): tensors.pop(n) for n in list(tensors)}
        tensors.update(renamed | loss)

    rewrite(tmp_path, rename)
    with pytest.warns(UserWarning, match=r"no use for these tensors.*loss\.weight"):
        assert_same(CLASSES[name].from_pretrained(tmp_path), model)


def test_a_trunk_in_a_module_of_ones_own(config, getkey, tmp_path):
    model = eqx.nn.inference_mode(eb.BartModel(config, key=getkey()))
    model.save_pretrained(tmp_path)
    out = np.ones((2, 24), np.float32)
    rewrite(
        tmp_path,
        lambda t: t.update(
            {f"bart.{n}": t.pop(n) for n in list(t)} | {"classifier.weight": out}
        ),
    )
    with pytest.warns(UserWarning, match=r"no use for .*: classifier\.weight\."):
        loaded = eb.BartForConditionalGeneration.from_pretrained(tmp_path)
    assert_same(loaded.model, model)


def test_two_models_in_one_file_are_not_mixed(saved):
    _, directory = saved

    def double(tensors):
        for name in list(tensors):
            tensors[f"student.{name}"] = tensors.pop(name)
            tensors[f"teacher.{name}"] = 2 * tensors[f"student.{name}"]

    rewrite(directory, double)
    with pytest.raises(eb.CheckpointError, match=r"begin with 'student\.', .*'teacher\.'"):
        eb.BartForConditionalGeneration.from_pretrained(directory)


def test_an_average_beside_the_weights_is_left_out(saved):
    model, directory = saved
    rewrite(directory, lambda t: t.update({f"ema.{n}": 2 * x for n, x in list(t.items())}))
    with pytest.warns(UserWarning, match=r"no use for .*: ema\..* and \d\d more"):
        loaded = eb.BartForConditionalGeneration.from_pretrained(directory)
    assert_same(loaded, model)


@pytest.mark.parametrize("change", ["other names", "more layers", "no names"])
def test_what_does_not_fit_is_said_briefly_in_the_names_of_the_file(change, saved):
    _, directory = saved
    overrides = {}
    if change == "more layers":
        overrides = {"encoder_layers": 30, "decoder_layers": 30}
    elif change == "other names":
        rewrite(
            directory,
            lambda t: t.update({n.replace("layers", "blocks"): t.pop(n) for n in list(t)}),
        )
    else:
        rewrite(directory, lambda t: t.update({f"{hash(n)}": t.pop(n) for n in list(t)}))
    names = list(safetensors.numpy.load_file(directory / "model.safetensors"))
    with pytest.raises(eb.CheckpointError) as error:
        eb.BartForConditionalGeneration.from_pretrained(directory, **overrides)
    message = str(error.value)
    assert message.count("\n") < 30
    assert f"the checkpoint has {len(names)} tensors: " in message
    assert sum(name in message for name in names) > 5


def test_a_run_of_a_training_framework(saved):
    """What Lightning saves, but for its own classes: these are refused by name."""
    model, directory = saved
    theirs = transformers.BartForConditionalGeneration.from_pretrained(directory)
    optimizer = torch.optim.AdamW(theirs.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    ids = torch.tensor([[5, 6, 2]])
    theirs(ids, labels=ids).loss.backward()
    theirs.zero_grad()
    optimizer.step()
    run = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{n}": x for n, x in theirs.state_dict().items()},
        "loops": {
            "fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
    }
    file = directory / "last.ckpt"
    torch.save(run, file)
    assert_same(eb.BartForConditionalGeneration.from_pretrained(file), model)
    torch.save(run | {"hyper_parameters": {"device": torch.device("cpu")}}, file)
    with pytest.raises(
        eb.CheckpointError, match=r"torch\.device, .*save the weights alone"
    ):
        eb.BartForConditionalGeneration.from_pretrained(file)


def test_empty_tensors_are_placeholders(saved, getkey):
    _, directory = saved
    rewrite(directory, lambda t: t.update({n: x.ravel()[:0] for n, x in t.items()}))
    for more in ({}, {"ignore_mismatched_sizes": True, "key": getkey()}):
        with pytest.raises(eb.CheckpointError) as error:
            eb.BartForConditionalGeneration.from_pretrained(directory, **more)
        message = str(error.value)
        assert r"model.shared.weight: empty, of the shape [0]" in message
        assert "zero_to_fp32.py" in message
        assert "ignore_mismatched_sizes" not in message
        assert message.count("\n") < 15


@pytest.mark.parametrize("size", [7, 30])
@pytest.mark.parametrize("name", ["BartModel", "BartForCausalLM"])
def test_resize_position_embeddings(name, size, tmp_path):
    config = random_config(np.random.default_rng(0))
    config.max_position_embeddings = 12
    theirs = random_model(name, config, 0, torch.float32)
    ours = convert(theirs)
    resized = ours.resize_position_embeddings(size, copy=True)
    assert resized.config.max_position_embeddings == size
    resized.save_pretrained(tmp_path)
    again = type(theirs).from_pretrained(tmp_path, attn_implementation="eager").eval()
    before = theirs.state_dict()
    for key, tensor in again.state_dict().items():
        if "embed_positions" not in key:
            assert torch.equal(tensor, before[key]), key
            continue
        offset, old = before[key][:2], before[key][2:]
        copies = torch.cat([offset, *[old] * (1 + size // 12)])[: size + 2]
        assert torch.equal(tensor, copies), key
    ids = random_ids(np.random.default_rng(1), config, 2, size)
    with torch.no_grad():
        expected = again(torch.from_numpy(ids))[0]
    assert_close(resized(ids).to_tuple()[0], expected, 1e-5)
    if size < 12:
        with pytest.raises(ValueError, match=f"max_position_embeddings is {size}"):
            resized(ids[:, [*range(size), 0]])


def test_new_positions_are_drawn(saved, getkey):
    model, directory = saved
    ids = np.array([[5, 6, 7, 2]])
    with pytest.raises(ValueError, match=r"From 12 to 900 positions.*key=.* or copy=True"):
        model.resize_position_embeddings(900)
    with pytest.raises(ValueError, match="max_position_embeddings must be a positive"):
        model.resize_position_embeddings(0)
    load = eb.BartForConditionalGeneration.from_pretrained
    with pytest.raises(eb.CheckpointError, match=r"embed_positions.*ignore_mismatched_siz"):
        load(directory, max_position_embeddings=900)
    with pytest.warns(UserWarning, match="embed_positions.weight: drawn at random"):
        loaded = load(
            directory,
            max_position_embeddings=900,
            ignore_mismatched_sizes=True,
            key=getkey(),
        )
    for longer in (loaded, model.resize_position_embeddings(900, key=getkey())):
        encoder, decoder = longer.model.encoder, longer.model.decoder
        tables = [np.asarray(x.embed_positions.weight[14:]) for x in (encoder, decoder)]
        assert not np.array_equal(*tables)
        for table in tables:
            assert abs(table.std() / model.config.init_std - 1) < 0.05
        assert_close(longer(ids).logits, model(ids).logits, 1e-6)
    shorter = load(directory, max_position_embeddings=5, ignore_mismatched_sizes=True)
    assert_close(shorter(ids).logits, model(ids).logits, 1e-6)
    with pytest.raises(ValueError, match="max_position_embeddings is 5"):
        shorter(np.array([[5] * 6]))


def test_positions_of_another_kind_have_no_table(saved):
    model, _ = saved
    without = eqx.tree_at(
        lambda m: m.model.encoder.embed_positions, model, eb.nn.NoPositionalEmbedding(12)
    )
    with pytest.raises(ValueError, match=r"encoder.embed_positions is a NoPositionalEmb"):
        without.resize_position_embeddings(20, copy=True)
