"""What is saved is what the class builds, and nothing else is written as if it were."""

import json
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close, assert_same

import eqx_bart as eb


IDS = np.array([[5, 6, 7, 2], [8, 9, 10, 2]])


@pytest.fixture
def model(config, getkey):
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


class Scaled(eb.nn.AbstractLinear):
    """A linear map with a gain for each output, which BART does not have."""

    linear: eb.nn.Linear = eqx.field(metadata=eb.nn.INLINED)
    gain: jax.Array

    def __call__(self, x):
        return self.linear(x) * self.gain


class ScaledBart(eb.BartForConditionalGeneration):
    """A BART with one such map."""

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)
        old = self.model.encoder.layers[0].fc1
        self.model = eqx.tree_at(
            lambda m: m.encoder.layers[0].feed_forward.fc1,
            self.model,
            Scaled(old, jnp.ones(config.encoder_ffn_dim)),
        )


def test_a_depth_that_the_config_does_not_say_is_saved_as_it_is(model, tmp_path):
    cut = eqx.tree_at(
        lambda m: m.model.decoder.layers, model, model.model.decoder.layers[:1]
    )
    cut.save_pretrained(tmp_path)
    loaded = eb.BartForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.decoder_layers == 1
    assert_close(loaded(IDS).logits, cut(IDS).logits, 1e-6)
    assert loaded.generate(IDS, max_new_tokens=4).sequences.shape[0] == 2


def test_longer_tables_are_saved_as_they_are(model, tmp_path):
    def tables(model):
        trunk = model.model
        return [x.embed_positions.weight for x in (trunk.encoder, trunk.decoder)]

    longer = [jnp.concatenate([x, x[2:]]) for x in tables(model)]
    longer = eqx.tree_at(tables, model, longer)
    longer.save_pretrained(tmp_path)
    loaded = eb.BartForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.max_position_embeddings == 24
    long = np.tile(IDS, 5)
    assert_close(loaded(long).logits, longer(long).logits, 1e-6)
    one = eqx.tree_at(lambda m: tables(m)[0], model, tables(longer)[0])
    with pytest.raises(ValueError, match=r"embed_positions.weight: \[26, 40\] in"):
        one.save_pretrained(tmp_path)


def test_parts_that_the_class_does_not_build_are_refused(model, tmp_path):
    linear = model.model.encoder.layers[0].fc1
    changed = eqx.tree_at(
        lambda m: m.model.encoder.layers[0].feed_forward.fc1,
        model,
        Scaled(linear, jnp.ones(56)),
    )
    with pytest.raises(ValueError, match=r"layers.0.feed_forward.fc1: Scaled for Linear"):
        changed.save_pretrained(tmp_path)
    heads = model.model.encoder.layers[0].self_attn
    other = eb.nn.Attention(40, 4, dropout=0.0, init_std=0.1, key=jax.random.key(0))
    assert other.q_proj.weight.shape == heads.q_proj.weight.shape
    changed = eqx.tree_at(lambda m: m.model.encoder.layers[0].self_attn, model, other)
    with pytest.raises(ValueError, match=r"self_attn.num_heads: 4 for 2"):
        changed.save_pretrained(tmp_path)
    assert not [*tmp_path.iterdir()]


class Doubled(eb.models.AbstractLMHead):
    """A head without arrays."""

    needs_attentions: ClassVar[bool] = False

    def __call__(self, decoded, source, projection):
        return 2 * projection(decoded.last_hidden_state)


def test_parts_without_arrays_count_too(model, tmp_path):
    changed = eqx.tree_at(lambda m: m.head, model, Doubled(), is_leaf=lambda x: x is None)
    assert_close(changed(IDS).logits, 2 * model(IDS).logits, 1e-6)
    with pytest.raises(ValueError, match="head: the model has a Doubled, and the class"):
        changed.save_pretrained(tmp_path)
    eb.gradient_checkpointing(model).save_pretrained(tmp_path)
    eqx.nn.inference_mode(model, value=False).save_pretrained(tmp_path)


def test_a_class_of_ones_own_is_read_by_that_class_alone(config, getkey, tmp_path):
    model = eqx.nn.inference_mode(ScaledBart(config, key=getkey()))
    model = eqx.tree_at(
        lambda m: m.model.encoder.layers[0].fc1.gain, model, jnp.arange(56.0)
    )
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("eqx_bart", ["ScaledBart"])
    loaded = ScaledBart.from_pretrained(tmp_path)
    assert_close(loaded(IDS).logits, model(IDS).logits, 1e-6)
    loaded.save_pretrained(tmp_path / "again")
    assert_close(
        ScaledBart.from_pretrained(tmp_path / "again")(IDS).logits, loaded(IDS).logits, 0
    )
    with pytest.raises(eb.CheckpointError, match="checkpoint of a ScaledBart"):
        eb.BartForConditionalGeneration.from_pretrained(tmp_path)


def test_new_parts_are_drawn_where_a_checkpoint_of_bart_lacks_them(model, getkey, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(eb.CheckpointError, match=r"lacks .*fc1.gain: pass key"):
        ScaledBart.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"fc1.gain: drawn at random"):
        drawn = ScaledBart.from_pretrained(tmp_path, key=getkey())
    assert_close(drawn(IDS).logits, model(IDS).logits, 1e-6)


@pytest.mark.parametrize(
    "head", [eb.BartForSequenceClassification, eb.BartForQuestionAnswering]
)
def test_a_checkpoint_of_another_head_is_named(head, config, getkey, tmp_path, recwarn):
    head(config, key=getkey()).save_pretrained(tmp_path)
    for cls in (eb.BartForConditionalGeneration, eb.BartForCausalLM):
        with pytest.warns(UserWarning, match=f"checkpoint of a {head.__name__}: the lang"):
            cls.from_pretrained(tmp_path)
    eb.BartModel.from_pretrained(tmp_path)
    eb.BartForConditionalGeneration(config, key=getkey()).save_pretrained(tmp_path)
    eb.BartForCausalLM.from_pretrained(tmp_path)
    assert len(recwarn) == 0


class Shorter(eb.BartForConditionalGeneration):
    """A subclass that adds a method, and changes nothing."""

    def first_logits(self, ids):
        return self(ids).logits[:, 0]


class Negated(eb.BartForConditionalGeneration):
    """A subclass that changes the logits."""

    def __call__(self, *args, **kwargs):
        out = super().__call__(*args, **kwargs)
        return eqx.tree_at(lambda o: o.logits, out, -out.logits)


def test_a_subclass_that_changes_nothing_is_a_bart(config, getkey, tmp_path):
    Shorter(config, key=getkey()).save_pretrained(tmp_path / "shorter")
    values = json.loads((tmp_path / "shorter" / "config.json").read_text())
    assert values["architectures"] == ["BartForConditionalGeneration"]
    Negated(config, key=getkey()).save_pretrained(tmp_path / "negated")
    values = json.loads((tmp_path / "negated" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("eqx_bart", ["Negated"])
    with pytest.raises(eb.CheckpointError, match="checkpoint of a Negated"):
        eb.BartModel.from_pretrained(tmp_path / "negated")


class Prompted(eb.BartForConditionalGeneration):
    """A subclass with an array of its own, which may have no entry."""

    prompt: jax.Array

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)
        self.prompt = jnp.zeros((0, config.d_model))


def test_an_array_without_entries_is_loaded(config, getkey, tmp_path):
    model = Prompted(config, key=getkey())
    model.save_pretrained(tmp_path)
    assert_same(Prompted.from_pretrained(tmp_path), model)


def test_an_override_counts_or_is_refused(config, getkey):
    model = eqx.nn.inference_mode(Negated(config, key=getkey()))
    labels = IDS[:, 1:]
    logits = model(IDS, None, eb.shift_tokens_right(labels, 1, 2)).logits
    expected = eb.cross_entropy(logits, labels).mean
    assert_close(eb.seq2seq_loss(model, IDS, None, labels).mean, expected, 1e-6)
    with pytest.raises(TypeError, match="Negated overrides __call__, and chunk_size"):
        eb.seq2seq_loss(model, IDS, None, labels, chunk_size=2)
    with pytest.raises(TypeError, match="Negated overrides __call__, and generate"):
        model.generate(IDS)
