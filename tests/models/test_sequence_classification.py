"""What the classifier does beyond parity: pooling at `</s>`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart.models.sequence_classification import last_eos_state


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
    embeds = jnp.ones((1, 3, 40))
    with pytest.raises(ValueError, match="BartForSequenceClassification needs input_ids"):
        model(inputs_embeds=embeds, decoder_input_ids=ids)
    encoder_outputs = eb.BaseModelOutput(jnp.ones((1, 3, 40)))
    outputs = eqx.filter_jit(model)(ids, encoder_outputs=encoder_outputs)
    assert outputs.logits.shape == (1, 3)
    assert outputs["logits"] is outputs[0] is outputs.to_tuple()[0]
