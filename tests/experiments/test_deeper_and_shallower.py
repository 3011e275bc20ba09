"""A decoder made deeper or shallower by copying layers of a checkpoint, or leaving them
out: the start of a distillation.

Source: Shleifer & Rush 2020 (arXiv:2010.13002), section 3.
"""

import dataclasses

import equinox as eqx
import jaxtyping
import numpy as np
import pytest
import torch
import transformers
from conftest import with_slow
from oracle import assert_close
from support import (
    check_beams,
    check_gradients,
    check_training,
    checkpoint,
    CONFIG,
    IDS,
    LABELS,
    MASK,
)

import eqx_bart as eb


# --8<-- [start:model]
def with_decoder_layers(model, indices):
    """`model` with these of its decoder's layers, in this order."""
    layers = model.model.decoder.layers
    chosen = tuple(layers[i] for i in indices)
    return eqx.tree_at(lambda m: m.model.decoder.layers, model, chosen)


# --8<-- [end:model]

DEPTHS = {"deeper": (3, [i // 2 for i in range(6)]), "shallower": (12, [0, 4, 8])}


def changed(tmp_path, which):
    num_layers, indices = DEPTHS[which]
    config = dataclasses.replace(CONFIG, encoder_layers=1, decoder_layers=num_layers)
    return with_decoder_layers(checkpoint(tmp_path / "bart", config), indices)


@pytest.mark.parametrize("which", with_slow("shallower", slow=DEPTHS))
def test_both_libraries_read_it(which, tmp_path):
    """By the depth that the tree has, with the same outputs and the same beams."""
    model = changed(tmp_path, which)
    depth = len(DEPTHS[which][1])
    model.save_pretrained(tmp_path / which)
    loaded = eb.BartForConditionalGeneration.from_pretrained(tmp_path / which)
    assert loaded.config.decoder_layers == len(loaded.model.decoder.layers) == depth
    targets = LABELS[:, :3]
    out = eqx.filter_jit(model)(IDS, MASK, targets).logits
    assert_close(eqx.filter_jit(loaded)(IDS, MASK, targets).logits, out, 1e-6)
    hf = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / which)
    assert hf.config.decoder_layers == len(hf.model.decoder.layers) == depth
    inputs = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(MASK)}
    with torch.no_grad():
        theirs = hf(**inputs, decoder_input_ids=torch.tensor(targets)).logits
    assert_close(out, theirs, 1e-5)
    settings = {"num_beams": 3, "max_new_tokens": 5}
    found = model.generate(IDS, MASK, **settings).sequences
    expected = hf.generate(**inputs, **settings).numpy()
    assert np.array_equal(found[:, : expected.shape[1]], expected)
    assert np.all(found[:, expected.shape[1] :] == CONFIG.pad_token_id)


@pytest.mark.slow
def test_it_decodes_and_trains(tmp_path):
    model = changed(tmp_path, "shallower")
    eb.testing.check_decoding(model, IDS, MASK)
    check_beams(model)
    check_gradients(model, lambda m: m.model.decoder.layers)
    check_training(model)


def test_shapes_are_checked(tmp_path):
    """Among them those of layers that come from another model."""
    model = changed(tmp_path, "shallower")
    config = dataclasses.replace(CONFIG, d_model=24)
    other = checkpoint(tmp_path / "other", config).model.decoder.layers[0]
    wrong_model = eqx.tree_at(lambda m: m.model.decoder.layers[1], model, other)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(inner|d_in|d_model)=48"):
        wrong_model(IDS, MASK)
    cache = model.init_cache(model.encode(IDS, MASK), 4)
    deeper = with_decoder_layers(model, [0, 1, 2, 2])
    with pytest.raises(ValueError, match="that of 3 layers, and there are 4"):
        deeper.decode(LABELS[:, :1], cache)
