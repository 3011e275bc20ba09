"""Low-rank adaptation, against HF's PEFT."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import safetensors.numpy
import torch
from oracle import assert_close, convert, random_config, random_ids, random_model

import eqx_bart as eb


# PEFT's own.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TASKS = {
    "BartForConditionalGeneration": "SEQ_2_SEQ_LM",
    "BartForSequenceClassification": "SEQ_CLS",
    "BartForCausalLM": "CAUSAL_LM",
}


def leaves(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


def pair(name, seed=0):
    config = random_config(np.random.default_rng(seed))
    config.problem_type = "single_label_classification"
    theirs = random_model(name, config, seed, torch.float32)
    return theirs, convert(theirs)


def logits(model, ids):
    return eqx.filter_jit(model)(ids).logits


def stirred(model):
    """A model whose adapters, and heads, are not as they were drawn."""
    keys = iter(jax.random.split(jax.random.key(9), 1000))

    def change(leaf, is_trained):
        return (
            leaf + 0.1 * jax.random.normal(next(keys), leaf.shape) if is_trained else leaf
        )

    return jax.tree.map(change, model, eb.trainable(model))


@pytest.mark.parametrize("name", TASKS)
def test_peft_reads_what_is_saved(name, tmp_path):
    theirs, ours = pair(name)
    ids = random_ids(np.random.default_rng(1), theirs.config, 2, 6)
    adapted = stirred(eb.lora(ours, 3, ("q_proj", "fc1"), alpha=5, key=jax.random.key(0)))
    eb.save_lora(adapted, tmp_path, base_model_name_or_path="org/base")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert loaded.peft_config["default"].task_type == TASKS[name]
    heads = loaded.peft_config["default"].modules_to_save or ()
    assert ("classification_head" in heads) == (TASKS[name] == "SEQ_CLS")
    with torch.no_grad():
        expected = loaded(input_ids=torch.from_numpy(ids)).logits
    assert_close(logits(adapted, ids), expected, 1e-5)
    assert_close(logits(eb.merge_lora(adapted), ids), expected, 1e-5)
    assert eqx.tree_equal(eb.load_lora(ours, tmp_path), adapted)
    assert np.abs(logits(ours, ids) - expected.numpy()).max() > 1e-3


@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_peft_saves_is_read(use_rslora, tmp_path):
    theirs, ours = pair("BartForSequenceClassification")
    ids = random_ids(np.random.default_rng(1), theirs.config, 2, 6)
    adapted = peft.get_peft_model(
        theirs,
        peft.LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=["v_proj", "out_proj", "fc2"],
            exclude_modules=r"classification_head.*",
            modules_to_save=["classification_head"],
            use_rslora=use_rslora,
            rank_pattern={"decoder.layers.0.fc2": 4},
            alpha_pattern={"encoder.layers.0.self_attn.v_proj": 7},
            init_lora_weights=False,
        ),
    ).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        expected = adapted(input_ids=torch.from_numpy(ids)).logits
    adapted.save_pretrained(tmp_path)
    loaded = eb.load_lora(ours, tmp_path)
    assert_close(logits(loaded, ids), expected, 1e-5)
    eb.save_lora(loaded, tmp_path / "again")
    assert eqx.tree_equal(eb.load_lora(ours, tmp_path / "again"), loaded)


PLAIN = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "eva": {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, by roots": {"init_lora_weights": "pissa", "use_rslora": True},
    "OLoRA": {"init_lora_weights": "olora"},
    "OLoRA by patterns": {
        "init_lora_weights": "olora",
        "rank_pattern": {"encoder.layers.0.self_attn.q_proj": 1},
        "alpha_pattern": {"v_proj": 3},
    },
    "VeLoRA": {"velora_config": {}},
    "dropout": {"lora_dropout": 0.5},
    "layout": {"fan_in_fan_out": True},
    "one layer": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "ties": {"ensure_weight_tying": True},
}
OTHERS = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5]},
    "trainable_token_indices": {"trainable_token_indices": [5, 6]},
    "kasa_config": {"kasa_config": {}},
    "monteclora_config": {"monteclora_config": {}},
    "use_bdlora": {
        "use_bdlora": {"target_modules_bd_a": ["q_proj", "v_proj"], "nblocks": 2}
    },
}


def saved_by_peft(directory, **settings):
    """A model of ours, ids, and the logits of PEFT for an adapter that it saves."""
    theirs, ours = pair("BartForConditionalGeneration")
    ids = random_ids(np.random.default_rng(1), theirs.config, 2, 6)
    config = peft.LoraConfig(
        **{"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]} | settings
    )
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    adapted = peft.get_peft_model(theirs, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(directory)
    base = type(theirs)(theirs.config)
    base.load_state_dict(state)
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(base, directory).eval()
        return ours, ids, loaded(torch.from_numpy(ids)).logits


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", PLAIN)
def test_kinds_of_adapters_that_are_read(kind, tmp_path):
    ours, ids, expected = saved_by_peft(tmp_path, **PLAIN[kind])
    loaded = eb.load_lora(ours, tmp_path)
    # What is left of the weights has PEFT's rounding errors, in float32.
    tolerance = 1e-4 if kind.startswith("PiSSA") else 1e-5
    assert_close(logits(loaded, ids), expected, tolerance)
    assert np.abs(logits(ours, ids) - expected.numpy()).max() > 1e-3
    eb.save_lora(loaded, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(
        pair("BartForConditionalGeneration")[0], tmp_path / "again"
    ).eval()
    with torch.no_grad():
        assert_close(again(torch.from_numpy(ids)).logits, expected, tolerance)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_kinds_of_adapters_that_are_refused_by_name(kind, tmp_path):
    ours, _, _ = saved_by_peft(tmp_path, **OTHERS[kind])
    with pytest.raises(eb.CheckpointError, match=rf"has {kind}=.*merge_and_unload"):
        eb.load_lora(ours, tmp_path)


def test_only_adapters_are_trained(config, getkey):
    config = dataclasses.replace(config, init_std=0.3)
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    ids = np.array([[5, 6, 7, 2]])
    before = logits(model, ids)
    adapted = eb.lora(model, 2, key=getkey())
    assert np.array_equal(logits(adapted, ids), before)
    parameters, rest = eqx.partition(adapted, eb.trainable(adapted))
    # 1 + 2 + 2 attentions with two adapters of 2 * (40 + 40) each.
    assert sum(x.size for x in leaves(parameters)) == 5 * 2 * 160

    @jax.jit
    def loss_and_grads(parameters):
        def loss(parameters):
            whole = eqx.combine(parameters, rest)
            return eb.seq2seq_loss(whole, ids, None, ids).mean

        return jax.value_and_grad(loss)(parameters)

    optim = optax.adam(1e-2)
    state = optim.init(parameters)
    losses = []
    for _ in range(10):
        loss, grads = loss_and_grads(parameters)
        updates, state = optim.update(grads, state)
        parameters = optax.apply_updates(parameters, updates)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.05
    trained = eqx.combine(parameters, rest)
    merged = eb.merge_lora(trained)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    assert_close(logits(merged, ids), logits(trained, ids), 1e-5)
    changed = jax.tree.map(np.array_equal, leaves(merged), leaves(model))
    assert changed.count(False) == 5 * 2


def test_adapters_of_half_precision_models_are_float32(config, getkey):
    model = eb.cast(eb.BartModel(config, key=getkey()), jnp.bfloat16)
    adapted = stirred(eb.lora(model, 2, "decoder.*", key=getkey()))
    trained = eqx.filter(adapted, eb.trainable(adapted))
    assert {x.dtype for x in leaves(trained)} == {jnp.dtype("float32")}
    assert leaves(trained.encoder) == []
    merged = eb.merge_lora(adapted)
    assert {x.dtype for x in leaves(merged)} == {jnp.dtype("bfloat16")}
    assert not eqx.tree_equal(merged, model)


def test_a_vocabulary_is_resized_beside_adapters(config, getkey):
    model = eb.BartForConditionalGeneration(config, key=getkey())
    adapted = eb.lora(model, 2, key=getkey())
    resized = adapted.resize_token_embeddings(50, mean_resizing=True)
    assert resized.model.shared.weight.shape == (50, 40)
    layer, old = (m.model.decoder.layers[1] for m in (resized, adapted))
    assert eqx.tree_equal(layer, old)


NO_TARGET = r"targets \['proj'\]; their names end in \['fc1', 'fc2', 'k_proj', 'out_proj', "


def test_what_does_not_fit(config, getkey, tmp_path):
    model = eb.BartForQuestionAnswering(config, key=getkey())
    adapted = eb.lora(model, 2, key=getkey())
    for call, message in (
        (lambda: eb.lora(model, 0, key=getkey()), "rank must be 1 or more; it is 0"),
        (lambda: eb.lora(adapted, 2, key=getkey()), "has adapters already"),
        (lambda: eb.lora(model, 2, ["proj", "fc1"], key=getkey()), NO_TARGET),
        (lambda: eb.lora(model, 2, "qa_.*", key=getkey()), r"targets \['qa_\.\*'\]"),
        (lambda: eb.lora(model, 2, [], key=getkey()), r"targets \[\]"),
        (lambda: eb.merge_lora(model), "no adapters to merge"),
        (lambda: eb.save_lora(model, tmp_path), "no adapters to save"),
        (lambda: eb.load_lora(adapted, tmp_path), "has adapters already"),
        (lambda: adapted.save_pretrained(tmp_path), "merge_lora.*save_lora"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        eb.load_lora(model, tmp_path)


def edit(directory, tensors=None, **config):
    """Changes an adapter: tensors by their names, `None` to take one away."""
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if tensors:
        file = directory / "adapter_model.safetensors"
        all_ = safetensors.numpy.load_file(file) | tensors
        safetensors.numpy.save_file({n: x for n, x in all_.items() if x is not None}, file)


A = "base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3", "alpha": 3}, "peft_type='IA3', with which adapters may"),
        ({"a_setting_to_come": 16}, "a_setting_to_come=16, with which adapters may"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication="),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config="),
        ({"init_lora_weights": "pissa", "lora_alpha": 0}, "PiSSA calls for a lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha=None, no number"),
        ({"alpha_pattern": {"(a+)+": 1}}, "does not go by names"),
        ({"alpha_pattern": ["q_proj"]}, "does not go by names"),
        ({"tensors": {A: None}}, r"decoder\.layers\.0\.self_attn\.q_proj has half of"),
        (
            {"tensors": {A: np.zeros((2, 7))}},
            r"shapes \[2, 7\] and \[40, 2\].*\[rank, 40\]",
        ),
        (
            {"tensors": {A: np.zeros((0, 40)), B: np.zeros((40, 0))}},
            r"shapes \[0, 40\] and \[40, 0\]",
        ),
        ({"tensors": {A: np.zeros((2, 40), int)}}, "stored as int64, not as floats"),
        ({"tensors": {A.replace("decoder", "other"): np.zeros((2, 40))}}, "no place for"),
        (
            {"tensors": {"base_model.model.classification_head.dense.bias": np.zeros(40)}},
            r"no place for the adapter's classification_head\.dense\.bias",
        ),
        (
            {"tensors": {"base_model.model.model.encoder.layers.0.fc1.bias": np.zeros(4)}},
            r"no place for the adapter's .*encoder\.layers\.0\.fc1\.bias",
        ),
        (
            {"tensors": {"base_model.model.qa_outputs.bias": np.zeros(3)}},
            r"qa_outputs\.bias has the shape \[3\]; the model's is \[2\]",
        ),
    ],
)
def test_files_that_do_not_fit(changes, message, config, getkey, tmp_path):
    model = eb.BartForQuestionAnswering(config, key=getkey())
    eb.save_lora(eb.lora(model, 2, key=getkey()), tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(eb.CheckpointError, match=message):
        eb.load_lora(model, tmp_path)


def test_adapters_are_drawn_as_pefts(config, getkey):
    """`lora_A` evenly between plus and minus one over the square root of its input's width,
    which is that of `torch.nn.Linear`; `lora_B` is 0."""
    model = eb.lora(eb.BartModel(config, key=getkey()), 50, ["fc1", "fc2"], key=getkey())
    layer = model.encoder.layers[0]
    for linear, width in ((layer.fc1, 40), (layer.fc2, 56)):
        drawn = np.asarray(linear.lora_A) * width**0.5
        assert np.max(np.abs(drawn)) <= 1
        assert np.allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.1)
        assert not np.any(linear.lora_B)
