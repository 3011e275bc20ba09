"""Models in 8 bits: what is, what stays in floats, and how they are stored."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers
from conftest import with_slow

import eqx_bart as eb
from eqx_bart.checkpoint.names import named_parts


MODELS = (
    eb.BartModel,
    eb.BartForConditionalGeneration,
    eb.BartForSequenceClassification,
    eb.BartForQuestionAnswering,
    eb.BartForCausalLM,
)
IDS = np.array([[5, 6, 7, 8, 2], [9, 10, 2, 1, 1]])
MASK = (IDS != 1).astype(int)


@pytest.fixture
def model(config, getkey):
    config = config.updated(init_std=0.3)
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


def in_floats(model):
    """The names of linear maps and tables that are in floats."""
    return set(named_parts(model, (eb.nn.Linear, eb.nn.Embedding)))


def assert_same(found, expected):
    """Bit for bit; what is read has more settings than what was made by hand."""
    assert in_8_bits(found) == in_8_bits(expected)
    leaves = (jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (found, expected))
    for x, y in zip(*leaves, strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(x, y)


def in_8_bits(model):
    return set(named_parts(model, (eb.nn.Int8Linear, eb.nn.Int8Embedding)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cls", with_slow(*MODELS[1:3], slow=MODELS))
def test_all_of_a_model_but_a_classifier(cls, tied, config, getkey, tmp_path):
    config = config.updated(tie_word_embeddings=tied, num_labels=3)
    model = eqx.nn.inference_mode(cls(config, key=getkey()))
    quantized = eb.quantize(model)
    assert in_8_bits(quantized) | in_floats(quantized) == in_floats(model)
    heads = {name.split(".")[0] for name in in_floats(quantized)}
    assert heads <= {"classification_head", "qa_outputs"}
    quantized.save_pretrained(tmp_path)
    assert_same(cls.from_pretrained(tmp_path), quantized)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_reading_in_8_bits(model, dtype, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="9KB")
    options = {"dtype": dtype}
    found = type(model).from_pretrained(tmp_path, quantize="int8", **options)
    expected = eb.quantize(type(model).from_pretrained(tmp_path, **options))
    assert_same(found, expected)
    found.save_pretrained(tmp_path)  # in the place of the other
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert_same(type(model).from_pretrained(tmp_path, quantize="int8"), found)


def test_a_new_head_is_in_8_bits_if_it_is_one_of_tokens(config, getkey, tmp_path):
    eb.BartModel(config, key=getkey()).save_pretrained(tmp_path)
    options = {"quantize": "int8", "key": getkey(), "tie_word_embeddings": False}
    with pytest.warns(UserWarning, match="drawn at random"):
        model = eb.BartForConditionalGeneration.from_pretrained(tmp_path, **options)
    assert isinstance(model.lm_head, eb.nn.Int8Linear)
    with pytest.warns(UserWarning, match="drawn at random"):
        model = eb.BartForQuestionAnswering.from_pretrained(tmp_path, **options)
    assert isinstance(model.qa_outputs, eb.nn.Linear)


def test_the_file(model, tmp_path):
    """Its layout is documented, and Hugging Face does not take it for one of its own."""
    eb.quantize(model).save_pretrained(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.int8.safetensors")
    weight = np.array(model.model.encoder.layers[0].fc1.weight).T
    name = "model.encoder.layers.0.fc1"
    scales = np.abs(weight).max(1) / np.float32(127)
    assert np.allclose(tensors[f"{name}.scales"], scales, rtol=1e-6)
    assert tensors[f"{name}.qweight"].dtype == np.int8
    assert (
        np.abs(tensors[f"{name}.qweight"] * scales[:, None] - weight)
        <= 0.51 * scales[:, None]
    ).all()
    assert tensors["model.shared.qweight"].shape == (41, 40)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.BartForConditionalGeneration.from_pretrained(tmp_path)


def test_decoding(model):
    """Each row is rounded alone, so that a cache, a batch and padding change nothing."""
    eb.testing.check_decoding(eb.quantize(model), IDS, MASK)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"num_beams": 3},
        pytest.param({"do_sample": True, "key": jax.random.key(0)}, marks=pytest.mark.slow),
    ],
    ids=["greedy", "beams", "samples"],
)
def test_generation(model, settings):
    quantized = eb.quantize(model)
    found = quantized.generate(IDS, MASK, max_new_tokens=5, **settings)
    jitted = eqx.filter_jit(quantized.generate)(IDS, MASK, max_new_tokens=5, **settings)
    assert np.array_equal(found.sequences, jitted.sequences)
    logits, plain = (eqx.filter_jit(x)(IDS, MASK).logits for x in (quantized, model))
    # A product of 40 entries is off by 0.8 %, and there are some ten of them in a row.
    assert 0 < jnp.abs(logits - plain).mean() < 0.1 * jnp.abs(plain).mean()


def test_what_stays(model):
    kept = in_floats(eb.quantize(model, keep=("fc2", "shared")))
    assert all(name.endswith(("fc2", "shared")) for name in kept)
    assert len(kept) == 4
    assert in_floats(eb.quantize(model, keep=r"model\.decoder\..+")) == {
        name for name in in_floats(model) if name.startswith("model.decoder.")
    }


def test_what_stays_is_read_so(model, tmp_path):
    quantized = eb.quantize(model, keep=("fc2", "shared"))
    quantized.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path), quantized)


def test_smoothing(model, tmp_path):
    """By inputs that one sees, in a call that compiles."""

    def calibrate(model):
        eqx.filter_jit(model)(IDS, MASK)

    quantized = eb.quantize(model, calibrate=calibrate)
    fc2 = quantized.model.decoder.layers[1].fc2
    assert fc2.smoothing.shape == (36,)
    half = eb.quantize(model, calibrate=calibrate, migration_strength=0.0)
    weight = model.model.decoder.layers[1].fc2.weight
    assert np.allclose(
        half.model.decoder.layers[1].fc2.smoothing, jnp.abs(weight).max(1), rtol=1e-6
    )
    quantized.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path), quantized)
    with pytest.raises(ValueError, match="has not called the model"):
        eb.quantize(model, calibrate=lambda _: None)


def test_adapters_are_trained_beside_it(model, getkey):
    adapted = eb.lora(eb.quantize(model), 4, ("q_proj", "fc1"), key=getkey())
    parameters, rest = eqx.partition(adapted, eb.trainable(adapted))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(parameters))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(parameters):
        return eb.seq2seq_loss(eqx.combine(parameters, rest), IDS, MASK, IDS).mean

    first, grads = loss(parameters)
    for _ in range(20):
        parameters = jax.tree.map(lambda x, grad: x - 0.5 * grad, parameters, grads)
        value, grads = loss(parameters)
    assert value < 0.9 * first
    with pytest.raises(ValueError, match="is a Int8Linear"):
        eb.merge_lora(adapted)


def test_adapters_are_saved_and_put_beside_either_form(model, getkey, tmp_path):
    quantized = eb.quantize(model)
    adapted = eb.lora(quantized, 4, ("q_proj", "fc1"), key=getkey())
    eb.save_lora(adapted, tmp_path)
    assert_same(eb.load_lora(quantized, tmp_path), adapted)
    floats = eb.load_lora(model, tmp_path)
    assert in_floats(eb.merge_lora(floats)) == in_floats(model)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"init_lora_weights": "olora"}))
    with pytest.raises(eb.CheckpointError, match="has them in 8 bits"):
        eb.load_lora(quantized, tmp_path)


class Gated(eb.models.AbstractLMHead):
    """A head of one's own with a linear map."""

    gate: eb.nn.Linear
    needs_attentions = False

    def __call__(self, decoded, source, projection):
        logits = projection(decoded.last_hidden_state)
        return logits * jax.nn.sigmoid(self.gate(decoded.last_hidden_state))


def test_a_head_of_ones_own_stays(model, getkey):
    head = Gated(eb.nn.Linear(40, 1, init_std=0.3, key=getkey()))
    model = eqx.tree_at(lambda x: x.head, model, head, is_leaf=lambda x: x is None)
    assert in_floats(eb.quantize(model)) == {"head.gate"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: eb.quantize(eb.quantize(model)), "in 8 bits already"),
        (lambda model: eb.quantize(model, keep=("fc3",)), r"fits the targets \['fc3'\]"),
        (
            lambda model: eb.quantize(eb.lora(model, 2, key=jax.random.key(0))),
            "quantize first",
        ),
        (
            lambda model: eb.quantize(model).resize_token_embeddings(20),
            "resize it, and then quantize",
        ),
        (
            lambda model: type(model).from_pretrained(eb.BUILTIN_MODEL, quantize="int4"),
            "quantize must be 'int8'",
        ),
    ],
)
def test_what_cannot_be(model, change, message):
    with pytest.raises(ValueError, match=message):
        change(model)


def test_integers_that_are_none(model, tmp_path):
    eb.quantize(model).save_pretrained(tmp_path)
    file = tmp_path / "model.int8.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = "model.shared.qweight"
    safetensors.numpy.save_file(tensors | {name: tensors[name].astype(np.float32)}, file)
    with pytest.raises(eb.CheckpointError, match="not as 8-bit integers"):
        type(model).from_pretrained(tmp_path)
    del tensors["model.shared.scales"]
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(eb.CheckpointError, match=r"shared\.scales: missing"):
        type(model).from_pretrained(tmp_path)
