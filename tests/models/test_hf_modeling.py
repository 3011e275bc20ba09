"""What HF asks of every model, asked of ours: its `test_modeling_common.py`,
`test_modeling_bart.py` and, before transformers 5, `test_modeling_flax_bart.py`.

`tests/test_hf_suites.py` says where each of their methods is.
"""

import dataclasses
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from conftest import with_slow
from oracle import assert_close, assert_same, CLASSES

import eqx_bart as eb


CONFIG = eb.BartConfig(
    vocab_size=53,
    d_model=40,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=4,
    encoder_ffn_dim=12,
    decoder_ffn_dim=20,
    max_position_embeddings=24,
    init_std=0.2,
)
BATCH, SOURCE, TARGET = 3, 7, 5
SEQ2SEQ = [name for name in CLASSES if name != "BartForCausalLM"]
SHOWN = {"output_attentions": True, "output_hidden_states": True}


@pytest.fixture(scope="module")
def models():
    """Each model with random weights, in inference mode."""
    return {
        name: eqx.nn.inference_mode(cls(CONFIG, key=jax.random.key(len(name))))
        for name, cls in CLASSES.items()
    }


@eqx.filter_jit
def run(model, inputs):
    return model(**inputs, **SHOWN)


def random_inputs(name, seed=0):
    """Ids that end with one end of sequence, where a row is padded before it or not, and
    for the decoder others, fewer and padded elsewhere. A classifier reads the source."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, CONFIG.vocab_size, (BATCH, SOURCE))
    ids[:, -1] = CONFIG.eos_token_id
    mask = np.ones((BATCH, SOURCE), int)
    mask[1, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name in {"BartForCausalLM", "BartForSequenceClassification"}:
        return inputs
    mask = np.ones((BATCH, TARGET), int)
    mask[2, 3:] = 0
    return inputs | {
        "decoder_input_ids": rng.integers(4, CONFIG.vocab_size, (BATCH, TARGET)),
        "decoder_attention_mask": mask,
    }


@pytest.mark.parametrize("name", CLASSES)
def test_outputs(name, models):
    """HF's `test_hidden_states_output`, `test_attention_outputs`,
    `test_model_outputs_equivalence`, `test_lm_uneven_forward`, `test_lm_forward`,
    `test_sequence_classification_forward`, `test_question_answering_forward`."""
    outputs = run(models[name], random_inputs(name))
    target = TARGET if "decoder_input_ids" in random_inputs(name) else SOURCE
    width, heads = CONFIG.d_model, CONFIG.decoder_attention_heads
    shapes = {
        "last_hidden_state": (BATCH, target, width),
        "logits": (BATCH, target, CONFIG.vocab_size),
        "start_logits": (BATCH, target),
        "end_logits": (BATCH, target),
        "hidden_states": [(BATCH, target, width)] * (CONFIG.decoder_layers + 1),
        "attentions": [(BATCH, heads, target, target)] * CONFIG.decoder_layers,
        "cross_attentions": [(BATCH, heads, target, SOURCE)] * CONFIG.decoder_layers,
        "encoder_last_hidden_state": (BATCH, SOURCE, width),
        "encoder_hidden_states": [(BATCH, SOURCE, width)] * (CONFIG.encoder_layers + 1),
        "encoder_attentions": [(BATCH, CONFIG.encoder_attention_heads, SOURCE, SOURCE)]
        * CONFIG.encoder_layers,
    }
    shapes |= {f"decoder_{key}": shapes[key] for key in ("hidden_states", "attentions")}
    if name == "BartForSequenceClassification":
        shapes["logits"] = (BATCH, CONFIG.num_labels)
    given = {k: v for k, v in vars(outputs).items() if v is not None}
    assert len(given) == {"BartForCausalLM": 3, "BartForQuestionAnswering": 8}.get(name, 7)
    for key, value in given.items():
        shape = [x.shape for x in value] if isinstance(value, tuple) else value.shape
        assert shape == shapes[key], key
        if key.endswith("attentions"):
            for weights in value:
                assert np.allclose(np.sum(weights, -1), 1, atol=1e-5)
    assert all(a is b for a, b in zip(outputs.to_tuple(), given.values(), strict=True))


@pytest.mark.parametrize("name", with_slow("BartForConditionalGeneration", slow=CLASSES))
def test_the_same_again_and_whatever_the_key(name, models):
    """HF's `test_determinism`."""
    inputs = random_inputs(name)
    first = run(models[name], inputs)
    for key in (jax.random.key(0), jax.random.key(1)):
        again = eqx.filter_jit(models[name])(**inputs, **SHOWN, key=key)
        assert_same(again, first)


@pytest.mark.parametrize("name", CLASSES)
def test_rows_know_nothing_of_each_other(name, models):
    """HF's `test_batching_equivalence`."""
    inputs, others = random_inputs(name), random_inputs(name, seed=1)
    mixed = {key: np.stack([x[0], *others[key][1:]]) for key, x in inputs.items()}
    for a, b in zip(
        jax.tree.leaves(run(models[name], inputs)),
        jax.tree.leaves(run(models[name], mixed)),
        strict=True,
    ):
        assert_close(a[0], b[0], 1e-6)
        assert not np.allclose(a[1:], b[1:])


@pytest.mark.parametrize("name", with_slow("BartForQuestionAnswering", slow=CLASSES))
def test_what_is_saved_computes_the_same(name, models, tmp_path):
    """HF's `test_save_load`, `test_save_load_strict`, `test_torch_save_load`,
    `test_from_pretrained_save_pretrained`."""
    models[name].save_pretrained(tmp_path)
    loaded = CLASSES[name].from_pretrained(tmp_path)  # a warning would be an error
    inputs = random_inputs(name)
    assert_same(run(loaded, inputs), run(models[name], inputs))


@pytest.mark.parametrize("dtype", with_slow("bfloat16", slow=["float32", "float16"]))
def test_precision(dtype, models, tmp_path):
    """HF's `test_to_fp32`, `test_to_fp16`, `test_to_bf16`, `test_default_params_dtype`,
    `test_save_load_in_fp16`, `test_save_load_in_bf16`."""

    def dtypes(model):
        arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        return {str(x.dtype) for x in arrays}

    model = models["BartForConditionalGeneration"]
    assert dtypes(model) == {"float32"}
    half = eb.cast(model, dtype)
    assert dtypes(half) == {dtype}
    assert dtypes(eb.cast(half, "float32")) == {"float32"}
    half.save_pretrained(tmp_path)
    loaded = eb.BartForConditionalGeneration.from_pretrained(tmp_path)
    inputs = random_inputs("BartForConditionalGeneration")
    logits = run(loaded, inputs).logits
    assert logits.dtype == dtype
    assert_same(run(half, inputs).logits, logits)
    assert_close(logits.astype("float32"), run(model, inputs).logits, 0.05)


@pytest.mark.parametrize("name", CLASSES)
def test_initialisation(name):
    """HF's `test_initialization`: norms do nothing, biases are 0, and the rest is drawn
    with the standard deviation of the config."""
    config = dataclasses.replace(CONFIG, init_std=1e-3)
    model = CLASSES[name](config, key=jax.random.key(0))
    drawn = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_array)):
        where = jax.tree_util.keystr(path)
        if ".weight" not in where:
            assert np.all(leaf == 0), where
        elif "norm" in where:
            assert np.all(leaf == 1), where
        else:
            is_pad = "shared" in where or "embed_tokens" in where
            drawn.append(np.delete(leaf, config.pad_token_id, 0) if is_pad else leaf)
    drawn = np.concatenate([np.ravel(x) for x in drawn])
    assert len(drawn) > 3000
    assert abs(drawn.std() / 1e-3 - 1) < 0.04
    assert abs(drawn.mean()) < 1e-4


def test_every_parameter_is_trained():
    """HF's `test_training`, `test_training_gradient_checkpointing`,
    `test_training_gradient_checkpointing_use_reentrant`,
    `test_training_gradient_checkpointing_use_reentrant_false`,
    `test_gradient_checkpointing`."""
    config = dataclasses.replace(CONFIG, encoder_layers=1, decoder_layers=1)
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model, inputs = eqx.nn.inference_mode(model), random_inputs("BartModel")

    @eqx.filter_jit
    @eqx.filter_grad
    def grads(model):
        return jnp.sum(jnp.sin(model(**inputs).logits))

    found = grads(model)
    again = grads(eb.gradient_checkpointing(model))
    for (path, grad), (_, same) in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree_util.tree_leaves_with_path(again),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        assert np.allclose(grad, same, rtol=1e-4, atol=1e-5), where
        if "k_proj.bias" in where:  # softmax does not see what all keys have in common
            assert np.allclose(grad, 0, atol=1e-4), where
        else:
            assert np.any(np.abs(grad) > 1e-6), where


@pytest.mark.parametrize("num_new", with_slow(3, slow=[1]))
@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "BartForCausalLM"])
def test_past_and_masks(name, num_new, models):
    """HF's `test_decoder_model_past`, `test_decoder_model_past_with_large_inputs`,
    `test_decoder_model_attn_mask_past`, `test_use_cache_forward`,
    `test_use_cache_forward_with_attn_mask`: tokens that are masked may be any."""
    model = models[name]
    rng = np.random.default_rng(2)
    ids, others = rng.integers(4, CONFIG.vocab_size, (2, BATCH, SOURCE + num_new))
    mask = np.ones(ids.shape, int)
    mask[:, SOURCE // 2 : SOURCE] = 0
    changed = np.where(mask, ids, others)
    if name == "BartForCausalLM":
        cache = model.init_cache(BATCH, ids.shape[1])
        whole = run(model, {"input_ids": changed, "attention_mask": mask}).logits
    else:
        encoded = eqx.filter_jit(model.encode)(ids[:, :SOURCE])
        cache = model.init_cache(encoded, ids.shape[1])
        whole = eqx.filter_jit(model.decode)(
            changed, decoder_attention_mask=mask, encoder_outputs=encoded
        ).logits
    decode = eqx.filter_jit(model.decode)
    _, cache = decode(ids[:, :SOURCE], cache, mask[:, :SOURCE])
    outputs, _ = decode(ids[:, SOURCE:], cache)
    assert_close(outputs.logits, whole[:, SOURCE:], 1e-5)


@pytest.mark.parametrize("name", with_slow("BartForConditionalGeneration", slow=SEQ2SEQ))
def test_encoder_and_decoder_by_themselves(name, models):
    """HF's `test_encode`, `test_decode`, `test_jit_compilation`,
    `test_encoder_decoder_model_standalone`: with `jit` and without, and together."""
    model, inputs = models[name], random_inputs(name)
    source = inputs["input_ids"], inputs["attention_mask"]
    jitted = eqx.filter_jit(model.encode)(*source)
    with jax.disable_jit():
        encoded = model.encode(*source)
    assert_close(encoded.last_hidden_state, jitted.last_hidden_state, 1e-5)
    whole = run(model, inputs)
    assert_close(whole.encoder_last_hidden_state, encoded.last_hidden_state, 1e-5)
    target = {k: v for k, v in inputs.items() if k.startswith("decoder")}
    if not target:
        ids = inputs["input_ids"]
        target["decoder_input_ids"] = eb.shift_tokens_right(
            jnp.asarray(ids), CONFIG.pad_token_id, CONFIG.decoder_start_token_id
        )
    target |= {"encoder_outputs": encoded, "encoder_attention_mask": source[1]}
    decoded = eqx.filter_jit(model.decode)(**target)
    with jax.disable_jit():
        again = model.decode(**target)
    is_lm = name == "BartForConditionalGeneration"
    expected = whole.logits if is_lm else whole.decoder_hidden_states[-1]
    for output in (decoded, again):
        assert_close(output.to_tuple()[0], expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "scale"), [("BartModel", True), ("BartForCausalLM", False)]
)
def test_embeddings_instead_of_ids(name, scale):
    """HF's `test_inputs_embeds`, `test_inputs_embeds_matches_input_ids`."""
    config = dataclasses.replace(CONFIG, scale_embedding=scale)
    model = eqx.nn.inference_mode(CLASSES[name](config, key=jax.random.key(3)))
    inputs = random_inputs(name)
    table = model.decoder.embed_tokens if name == "BartForCausalLM" else model.shared
    factor = np.sqrt(config.d_model) if scale else 1
    embeds = {
        key.replace("input_ids", "inputs_embeds"): (
            factor * table.weight[value] if key.endswith("input_ids") else value
        )
        for key, value in inputs.items()
    }
    for a, b in zip(
        jax.tree.leaves(run(model, inputs)),
        jax.tree.leaves(run(model, embeds)),
        strict=True,
    ):
        assert_close(b, a, 1e-5)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_one_table_of_embeddings(name, models):
    """HF's `test_model_get_set_embeddings`, `test_tie_model_weights`,
    `test_tied_weights_keys`: encoder, decoder and logits read what `shared` is."""
    model, inputs = models[name], random_inputs(name)
    trunk = model if name == "BartModel" else model.model
    tables = [
        x
        for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))
        if x.shape == trunk.shared.weight.shape
    ]
    assert len(tables) == 1

    def shared(model):
        return (model if name == "BartModel" else model.model).shared.weight

    others = eqx.tree_at(shared, model, 2 * tables[0])
    before, after = run(model, inputs), run(others, inputs)
    for key in ("encoder_hidden_states", "decoder_hidden_states"):
        assert not np.allclose(getattr(before, key)[0], getattr(after, key)[0])
    if name == "BartForConditionalGeneration":
        states = after.decoder_hidden_states[-1]
        assert_close(after.logits, states @ (2 * tables[0]).T, 1e-5)


def test_resized_embeddings_are_still_scaled():
    """HF's `test_resize_embeddings_persists_embeddings_type`."""
    config = dataclasses.replace(CONFIG, scale_embedding=True)
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    larger = model.resize_token_embeddings(61, key=jax.random.key(1))
    inputs = random_inputs("BartForConditionalGeneration")
    logits = run(larger, inputs).logits
    assert logits.shape[-1] == 61
    assert_close(logits[..., : CONFIG.vocab_size], run(model, inputs).logits, 1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_are_hfs(name):
    """HF's `test_forward_signature`: what is not taken is known, and by position come what
    HF's Flax models took by position."""
    ours = list(inspect.signature(CLASSES[name].__call__).parameters)[1:]
    theirs = inspect.signature(getattr(transformers, name).forward).parameters
    gone = {"self", "kwargs", "labels", "start_positions", "end_positions"}
    gone |= {"past_key_values", "cache", "use_cache", "return_dict", "logits_to_keep"}
    assert {*theirs} - {*ours} - gone <= {"output_attentions", "output_hidden_states"}
    leading = ["input_ids", "attention_mask"]
    if name != "BartForCausalLM":
        leading += ["decoder_input_ids", "decoder_attention_mask"]
    assert ours[: len(leading)] == leading
