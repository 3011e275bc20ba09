"""What encoder-decoders do beyond parity."""

import numpy as np
import pytest

import eqx_bart as eb


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
