"""`check_decoding` finds what is wrong, and says where."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_slow

import eqx_bart as eb


IDS = np.array([[5, 6, 7, 2], [8, 9, 2, 1]])
MASK = IDS != 1


@pytest.fixture
def model(config, getkey):
    config = eb.BartConfig.from_dict(config.to_dict() | {"init_std": 0.3})
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


class Changed(eb.nn.AbstractAttention):
    """BART's attention, but for a fault."""

    attention: eb.nn.Attention
    fault: str = eqx.field(static=True)

    def init_cache(self, *args):
        return self.attention.init_cache(*args)

    def key_values(self, states, positions):
        made = self.attention.key_values(states, positions)
        if self.fault == "alone" and states.shape[1] == 1:
            return eb.KeyValues(made.keys, made.values + 1)
        return made

    def __call__(self, states, positions, key_values, key_positions, mask, *, key):
        if self.fault == "slots":  # taken for positions, which beams are not
            key_positions = jnp.arange(key_positions.shape[1])[None]
        distance = positions[:, None, :, None] - key_positions[:, None, None, :]
        bias = -0.5 * jnp.abs(distance)
        queries = self.attention.queries(states)
        return self.attention.attend(queries, key_values, mask, bias=bias, key=key)


def changed(model, fault, layer=1):
    def where(model):
        return model.model.decoder.layers[layer].self_attn

    return eqx.tree_at(where, model, Changed(where(model), fault))


class Forgetful(eb.models.AbstractLMHead):
    """A head that depends on how many tokens it is given at once."""

    needs_attentions: ClassVar[bool] = False

    def __call__(self, decoded, source, projection):
        states = decoded.last_hidden_state
        return projection(states) + jnp.arange(41) * states.shape[1]


def test_what_is_right_passes(model):
    eb.testing.check_decoding(changed(model, "none"), IDS, MASK)


@pytest.mark.slow
def test_a_decoder_alone_passes(config, getkey):
    alone = eqx.nn.inference_mode(eb.BartForCausalLM(config, key=getkey()))
    eb.testing.check_decoding(alone, IDS[:, :2])


@pytest.mark.parametrize("layer", with_slow(1, slow=[0]))
def test_a_fault_is_traced_to_its_layer(model, layer):
    with pytest.raises(AssertionError) as error:
        eb.testing.check_decoding(changed(model, "alone", layer), IDS, MASK)
    message = str(error.value)
    assert "decoding [1, 1, 1, 1, 1, 1] tokens at a time with a cache differs" in message
    assert f"differ first in layer {layer}, a BartDecoderLayer" in message
    assert "from token 0 on" in message


def test_slots_that_are_taken_for_positions_are_found(model):
    with pytest.raises(AssertionError, match="in other slots for each row, differs"):
        eb.testing.check_decoding(changed(model, "slots"), IDS, MASK)


def test_a_fault_of_the_head(model):
    wrong = eqx.tree_at(lambda m: m.head, model, Forgetful(), is_leaf=lambda x: x is None)
    with pytest.raises(AssertionError, match="states are the same: it is the head"):
        eb.testing.check_decoding(wrong, IDS, MASK)


@pytest.mark.slow
def test_another_reference_may_be_given(model):
    other = changed(model, "none")

    def uncached(ids):
        return other(np.asarray(IDS), MASK, ids).logits

    eb.testing.check_decoding(other, IDS, MASK, uncached=uncached)
    with pytest.raises(AssertionError, match="differs from the pass without a cache"):
        eb.testing.check_decoding(model, IDS, MASK, uncached=uncached)
