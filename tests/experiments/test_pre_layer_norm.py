"""Pre-layer-norm: each sub-layer reads normalised states and adds to those that it was
given, and each stack ends in a norm of its own.

Source: Xiong et al. 2020 (arXiv:2002.04745). HF's mBART is such a BART, so it is the oracle
here.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
import transformers
from oracle import assert_close
from safetensors.numpy import load_file
from support import check_all, CONFIG, IDS, LABELS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class PreNormLayer(eb.nn.AbstractLayer):
    """A layer of BART, with its norms before the sub-layers."""

    parts: eb.models.BartEncoderLayer | eb.models.BartDecoderLayer = eqx.field(
        metadata=eb.nn.INLINED
    )

    def init_cache(self, batch_size, num_slots, source, dtype):
        return self.parts.init_cache(batch_size, num_slots, source, dtype)

    def __call__(self, hidden_states, context, cache=None, *, key):
        parts, x, keys, shown = self.parts, hidden_states, eb.nn.split_key(key, 6), {}
        slots, cross = None, None
        if cache is not None:
            slots, cross = cache.self_attention, cache.cross_attention
        normed = parts.self_attn_layer_norm(x)
        attended, slots, shown["attentions"] = eb.nn.self_attend(
            parts.self_attn, normed, context, slots, key=keys[0]
        )
        x = x + parts.dropout(attended, key=keys[1])
        if context.source is not None:
            normed = parts.encoder_attn_layer_norm(x)
            attended, shown["cross_attentions"] = eb.nn.cross_attend(
                parts.encoder_attn, normed, context, context.source, cross, key=keys[2]
            )
            x = x + parts.dropout(attended, key=keys[3])
        normed = parts.final_layer_norm(x)
        transformed, more = parts.feed_forward(normed, context, key=keys[4])
        x = x + parts.dropout(transformed, key=keys[5])
        if cache is not None:
            cache = eb.models.DecoderLayerCache(slots, cross)
        return x, cache, shown | more


class PreNormBart(eb.BartForConditionalGeneration):
    """BART with its norms before the sub-layers, to be trained from scratch."""

    def __init__(self, config, generation_config=None, *, key):
        super().__init__(config, generation_config, key=key)

        def pre_norm(stack):
            layers = tuple(map(PreNormLayer, stack.layers))
            new = layers, eb.nn.LayerNorm(config.d_model)
            return eqx.tree_at(
                lambda x: (x.layers, x.layer_norm), stack, new, is_leaf=lambda x: x is None
            )

        def stacks(model):
            return model.encoder, model.decoder

        new = [pre_norm(stack) for stack in stacks(self.model)]
        self.model = eqx.tree_at(stacks, self.model, new)


# --8<-- [end:model]


def random_model():
    """A model in inference mode, of which no norm is at 0 or 1."""
    model = eqx.nn.inference_mode(PreNormBart(CONFIG, key=jax.random.key(1)))
    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        x + 0.2 * jax.random.normal(k, x.shape) if eqx.is_inexact_array(x) else x
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.slow
def test_pre_layer_norm(tmp_path):
    model = random_model()
    stacks = model.model.encoder.layers, model.model.decoder.layers
    check_all(model, lambda m: (m.model.encoder, m.model.decoder), tmp_path / "pre")
    ids = eb.shift_tokens_right(jnp.asarray(LABELS), 1, 2)
    out = eqx.filter_jit(model)(IDS, MASK, ids, output_attentions=True)
    assert [len(x) for x in stacks] == [len(out.encoder_attentions), 2]
    assert_close(out.logits, mbart_logits(tmp_path / "pre", ids), 1e-5)
    training = eqx.nn.inference_mode(model, False)
    with pytest.raises(RuntimeError, match="key"):
        training(IDS, MASK)
    assert jnp.isfinite(training(IDS, MASK, key=jax.random.key(3)).logits).all()
    context = eb.nn.Context(None, jnp.arange(3)[None], jnp.arange(3)[None])
    with pytest.raises(jaxtyping.TypeCheckError, match="d_model"):
        stacks[0][0](jnp.ones((2, 3, 31)), context, None, key=None)


def mbart_logits(directory, decoder_ids):
    """What HF's mBART makes of the same weights."""
    config = {k: v for k, v in CONFIG.to_dict().items() if k != "model_type"}
    mbart = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**config))
    tensors = {
        name: torch.from_numpy(value)
        for name, value in load_file(directory / "model.safetensors").items()
    }
    missing, unexpected = mbart.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in missing)
    mbart.tie_weights()
    ids, mask, decoder_ids = (
        torch.from_numpy(np.array(x)) for x in (IDS, MASK, decoder_ids)
    )
    with torch.no_grad():
        return mbart.eval()(ids, mask, decoder_ids).logits.numpy()
