"""float16, where states overflow: HF's encoder layers clamp them."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from oracle import convert


IDS = np.array([[0, 7, 8, 9, 2], [0, 30, 31, 2, 1]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


@pytest.fixture
def theirs():
    """A BART whose encoder overflows, whatever it reads."""
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        init_std=0.3,
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.final_layer_norm.weight.fill_(35000.0)
        for name in ("k_proj", "v_proj"):
            getattr(model.model.decoder.layers[0].encoder_attn, name).weight.mul_(1e-4)
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(model.model.encoder.layers[1].self_attn, name).weight.mul_(1e-4)
        model.model.encoder.layers[1].fc1.weight.mul_(1e-4)
    return model.half()


def test_overflow_is_clamped(theirs):
    model = convert(theirs)
    ids = torch.tensor(IDS)
    for row in range(2):  # a row of ours depends on no other
        with torch.no_grad():
            expected = theirs(
                ids[row : row + 1],
                attention_mask=torch.tensor(MASK[row : row + 1]),
                decoder_input_ids=ids[row : row + 1],
                output_hidden_states=True,
            )
        largest = [states.abs().max() for states in expected.encoder_hidden_states]
        assert largest[1] == largest[2] == torch.finfo(torch.float16).max - 992
        found = model(IDS, MASK, IDS, output_hidden_states=True)
        assert found.logits.dtype == np.float16
        assert np.all(np.isfinite(found.logits))
        for ours, other in zip(
            found.encoder_hidden_states, expected.encoder_hidden_states, strict=True
        ):
            real = MASK[row].astype(bool)
            assert np.allclose(ours[row, real], other[0, real], rtol=0.01, atol=100)
        assert np.allclose(found.logits[row], expected.logits[0], atol=0.05)


def test_what_does_not_overflow_is_left_alone(theirs):
    """Of states between the clamp's limit and infinity, where none is infinite."""
    model = convert(theirs)
    norm = model.model.encoder.layers[0].final_layer_norm
    ids = IDS[:1]
    plain = eqx.tree_at(lambda x: x.weight, norm, jnp.ones_like(norm.weight))

    def states(norm):
        changed = eqx.tree_at(
            lambda m: m.model.encoder.layers[0].final_layer_norm, model, norm
        )
        shown = changed.encode(ids, output_hidden_states=True)
        return np.asarray(shown.hidden_states[1], np.float32)

    scale = 65_000 / np.abs(states(plain)).max()
    scaled = eqx.tree_at(
        lambda x: x.weight, norm, jnp.full_like(norm.weight, np.float16(scale))
    )
    assert 64_504 < np.abs(states(scaled)).max() < 65_504
