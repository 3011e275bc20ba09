"""What the heads do beyond parity: pooling at `</s>`, and buffers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eqx_bart as eb
from eqx_bart.models.sequence_classification import last_eos_state
from eqx_bart.nn.buffer import Buffer


def pool(ids, eos=(2,)):
    ids = jnp.asarray(ids)
    states = jnp.arange(ids.size, dtype=float).reshape(*ids.shape, 1)
    return last_eos_state(states, ids, eos)[:, 0].tolist()


def test_the_last_eos_of_each_row():
    assert pool([[0, 5, 2, 1], [0, 5, 6, 2]]) == [2, 7]
    pair = [[0, 5, 2, 2, 6, 2, 1], [0, 2, 2, 6, 7, 8, 2]]
    assert pool(pair) == [5, 13]
    assert eqx.filter_jit(pool_array)(jnp.asarray(pair)).tolist() == [5, 13]
    assert pool([[0, 3, 2, 3], [2, 5, 3, 2]], eos=(2, 3)) == [3, 7]


def pool_array(ids):
    states = jnp.arange(ids.size, dtype=float).reshape(*ids.shape, 1)
    return last_eos_state(states, ids, (2,))[:, 0]


def test_rows_with_differing_or_no_eos():
    with pytest.raises(ValueError, match="must have the same number of eos_token_id"):
        pool([[0, 2, 2], [0, 5, 2]])
    with pytest.raises(ValueError, match="has no eos_token_id"):
        pool([[0, 5, 6], [0, 5, 2]])
    with pytest.raises(RuntimeError, match="must have the same number of eos_token_id"):
        jax.block_until_ready(eqx.filter_jit(pool_array)(jnp.array([[2, 2], [0, 2]])))
    with pytest.raises(RuntimeError, match="has no eos_token_id"):
        jax.block_until_ready(eqx.filter_jit(pool_array)(jnp.array([[0, 0], [0, 0]])))


def test_a_classifier_needs_ids_of_the_decoders_length(config, getkey):
    model = eb.BartForSequenceClassification(config, key=getkey())
    model = eqx.nn.inference_mode(model)
    ids = np.array([[5, 6, 2]])
    with pytest.raises(ValueError, match="it read 2, the encoder 3"):
        model(ids, decoder_input_ids=ids[:, 1:])
    embeds = jnp.ones((1, 3, 24))
    with pytest.raises(ValueError, match="BartForSequenceClassification needs input_ids"):
        model(inputs_embeds=embeds, decoder_input_ids=ids)
    encoder_outputs = eb.BaseModelOutput(jnp.ones((1, 3, 24)))
    outputs = eqx.filter_jit(model)(ids, encoder_outputs=encoder_outputs)
    assert outputs.logits.shape == (1, 3)
    assert outputs["logits"] is outputs[0] is outputs.to_tuple()[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_buffer_is_its_value_and_no_parameter(dtype, getkey):
    value = jax.random.normal(getkey(), (1, 7)).astype(dtype)
    buffer = Buffer(value)
    assert buffer.value.dtype == value.dtype
    assert np.array_equal(buffer.value, value)
    assert jax.tree.leaves(eqx.filter(buffer, eqx.is_inexact_array)) == []


def test_no_gradient_and_no_optimiser_moves_final_logits_bias(config, getkey, tmp_path):
    model = eb.BartForConditionalGeneration(config, key=getkey())
    bias = jax.random.normal(getkey(), (1, config.vocab_size))
    model = eqx.tree_at(lambda m: m.final_logits_bias, model, Buffer(bias))
    ids = np.array([[5, 6, 2]])
    optim = optax.adamw(0.1, weight_decay=0.5)
    state = optim.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, key):
        def loss(model):
            return jnp.mean(model(ids, key=key).logits ** 2)

        grads = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optim.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    before = model
    for _ in range(3):
        model, state = step(model, state, getkey())
    assert np.array_equal(model.final_logits_bias.value, bias)
    assert not np.array_equal(model.model.shared.weight, before.model.shared.weight)
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    restored = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", before)
    assert np.array_equal(restored.final_logits_bias.value, bias)


def test_shift_tokens_right():
    labels = np.array([[5, 6, 2], [7, -100, -100]])
    assert eb.shift_tokens_right(labels, 1, 2).tolist() == [[2, 5, 6], [2, 7, 1]]
    with pytest.raises(ValueError, match="they are None and 2"):
        eb.shift_tokens_right(labels, None, 2)


def test_building_a_model_leaves_its_config_alone(config, getkey):
    values = config.to_dict()
    model = eb.BartForCausalLM(config, key=getkey())
    assert model.config is config
    assert config.to_dict() == values
