"""SwiGLU: a feed-forward block whose hidden layer is gated by another linear map.

Source: Shazeer 2020 (arXiv:2002.05202).
"""

import equinox as eqx
import jax
import jaxtyping
import pytest
import safetensors.numpy
from jaxtyping import Array, Float
from support import check_all, checkpoint, CONFIG, IDS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class SwiGLU(eb.nn.AbstractFeedForward):
    """`down(silu(gate(x)) * up(x))`."""

    gate: eb.nn.AbstractLinear
    up: eb.nn.AbstractLinear
    down: eb.nn.AbstractLinear
    dropout: eqx.nn.Dropout

    def __init__(self, d_model, ffn_dim, *, dropout=0.0, init_std, key):
        sizes = [(d_model, ffn_dim), (d_model, ffn_dim), (ffn_dim, d_model)]
        self.gate, self.up, self.down = (
            eb.nn.Linear(*size, init_std=init_std, key=key)
            for size, key in zip(sizes, jax.random.split(key, 3), strict=True)
        )
        self.dropout = eqx.nn.Dropout(dropout)

    def __call__(self, x: Float[Array, "batch new d_model"], context, *, key):
        hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(self.dropout(hidden, key=key)), {}


class SwiGLUBart(eb.BartForConditionalGeneration):
    """BART with SwiGLU in all layers, as large as two matrices would be."""

    def __init__(self, config, generation_config=None, *, key):
        bart_key, new_key = jax.random.split(key)
        super().__init__(config, generation_config, key=bart_key)
        self.model = gated(self.model, config, key=new_key)


def gated(model, config, *, key):
    """`model`, a `BartModel`, with new feed-forward blocks in all layers."""

    def blocks(model):
        layers = [*model.encoder.layers, *model.decoder.layers]
        return [layer.feed_forward for layer in layers]

    new = [
        SwiGLU(
            config.d_model,
            ffn_dim * 2 // 3,
            dropout=config.activation_dropout,
            init_std=config.init_std,
            key=jax.random.fold_in(key, i),
        )
        for i, ffn_dim in enumerate(
            [config.encoder_ffn_dim] * len(model.encoder.layers)
            + [config.decoder_ffn_dim] * len(model.decoder.layers)
        )
    ]
    return eqx.tree_at(blocks, model, new)


# --8<-- [end:model]


@pytest.mark.slow
def test_gated_feed_forward(tmp_path):
    bart = checkpoint(tmp_path / "bart")
    model = eqx.nn.inference_mode(SwiGLUBart(CONFIG, key=jax.random.key(1)))
    trunk = gated(bart.model, CONFIG, key=jax.random.key(2))
    model = eqx.tree_at(lambda m: m.model, model, trunk)

    def new(model):
        layers = [*model.model.encoder.layers, *model.model.decoder.layers]
        return [layer.feed_forward for layer in layers]

    check_all(model, new, tmp_path / "gated")


def test_names_are_the_layers_own(tmp_path):
    SwiGLUBart(CONFIG, key=jax.random.key(1)).save_pretrained(tmp_path)
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors").keys()
    assert "model.decoder.layers.1.gate.weight" in names
    assert not any("feed_forward" in name or "fc1" in name for name in names)


@pytest.mark.parametrize("sizes", [(31, 48), (48, 31), (48, 1)])
def test_shapes_are_checked(sizes):
    """Of what the block reads, and of what it returns: 1 would be broadcast."""
    model = eqx.nn.inference_mode(SwiGLUBart(CONFIG, key=jax.random.key(1)))
    d_in, d_out = sizes
    block = SwiGLU(d_in, 8, init_std=1.0, key=jax.random.key(2))
    down = eb.nn.Linear(8, d_out, init_std=1.0, key=jax.random.key(3))
    block = eqx.tree_at(lambda x: x.down, block, down)
    wrong_model = eqx.tree_at(
        lambda m: m.model.decoder.layers[0].feed_forward, model, block
    )
    axis = "(inner|d_in)=48" if d_in == 31 else "d_model=48"
    with pytest.raises(jaxtyping.TypeCheckError, match=axis):
        wrong_model(IDS, MASK)
