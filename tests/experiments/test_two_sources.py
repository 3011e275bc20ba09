"""Two sources, each with an encoding and a mask of its own, which the decoder attends to
one after the other.

Source: Libovický et al. 2018 (arXiv:1811.04719), section 3.1, "serial".
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import transformers
from oracle import assert_close, assert_same_leaves
from support import beam_search, check_gradients, checkpoint, IDS, LABELS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class TwoSourceLayer(eb.nn.AbstractLayer):
    """BART's layer, after which comes attention to a second source."""

    layer: eb.nn.AbstractLayer = eqx.field(metadata=eb.nn.INLINED)
    second_attn: eb.nn.AbstractAttention
    second_attn_layer_norm: eb.nn.LayerNorm
    dropout: eqx.nn.Dropout

    def init_cache(self, batch_size, num_slots, source, dtype):
        first, second = source
        key_values = self.second_attn.key_values(second.hidden_states, second.positions)
        return self.layer.init_cache(batch_size, num_slots, first, dtype), key_values

    def __call__(self, hidden_states, context, cache=None, *, key):
        layer_key, attn_key, dropout_key = eb.nn.split_key(key, 3)
        first, second = context.source
        of_layer, key_values = (None, None) if cache is None else cache
        alone = dataclasses.replace(context, source=first)
        hidden_states, of_layer, shown = self.layer(
            hidden_states, alone, of_layer, key=layer_key
        )
        attended, weights = eb.nn.cross_attend(
            self.second_attn, hidden_states, context, second, key_values, key=attn_key
        )
        hidden_states = self.second_attn_layer_norm(
            hidden_states + self.dropout(attended, key=dropout_key)
        )
        cache = None if cache is None else (of_layer, key_values)
        return hidden_states, cache, {**shown, "second_cross_attentions": weights}


class TwoSourceBart(eb.BartForConditionalGeneration):
    """BART with two sources, which one encoder reads."""

    def __init__(self, config, generation_config=None, *, key):
        bart_key, *keys = jax.random.split(key, 1 + config.decoder_layers)
        super().__init__(config, generation_config, key=bart_key)

        def extended(layer, key):
            new = eb.models.BartDecoderLayer(config, key=key)
            norm = eb.nn.LayerNorm(config.d_model)
            return TwoSourceLayer(layer, new.encoder_attn, norm, layer.dropout)

        layers = tuple(map(extended, self.model.decoder.layers, keys))
        self.model = eqx.tree_at(lambda m: m.decoder.layers, self.model, layers)

    def sources(self, *inputs, key=None):
        """What the layers attend to, made of the ids and the mask of each input."""
        keys = eb.nn.split_key(key, len(inputs))
        return tuple(
            eb.nn.Source(
                self.encode(ids, mask, key=key).last_hidden_state, jnp.asarray(mask, bool)
            )
            for (ids, mask), key in zip(inputs, keys, strict=True)
        )


# --8<-- [end:model]

# Of different lengths, as two sources are.
FIRST = np.array([[0, 5, 9, 17, 2], [0, 23, 2, 1, 1]])
SECOND = np.array([[0, 30, 2], [12, 7, 2]])
INPUTS = (FIRST, FIRST != 1), (SECOND, np.array([[1, 1, 0], [1, 1, 1]]))


def loss_of(model, key=None):
    encoder_key, decoder_key = eb.nn.split_key(key, 2)
    sources = model.sources(*INPUTS, key=encoder_key)
    return eb.seq2seq_loss(
        model, None, None, LABELS, encoder_outputs=sources, key=decoder_key
    ).mean


@pytest.fixture
def model(tmp_path):
    """BART's checkpoint, and new attention to the second source."""
    checkpoint(tmp_path / "bart")
    with pytest.warns(UserWarning, match=r"second_attn\.k_proj\.weight.*at random"):
        return TwoSourceBart.from_pretrained(tmp_path / "bart", key=jax.random.key(1))


def second(model):
    return [(x.second_attn, x.second_attn_layer_norm) for x in model.model.decoder.layers]


def test_decoding(model):
    sources = eqx.filter_jit(model.sources)(*INPUTS)
    eb.testing.check_decoding(model, encoder_outputs=sources)
    call = eqx.filter_jit(model)
    for beams in (1, 3):
        found = model.generate(encoder_outputs=sources, num_beams=beams, max_new_tokens=5)
        for row in (0, 1):

            def logits(ids, row=row, beams=beams):
                padded = np.pad(ids, [(0, beams - len(ids)), (0, 5 - ids.shape[1])])
                of_row = jax.tree.map(lambda x: jnp.repeat(x[row][None], beams, 0), sources)
                out = call(decoder_input_ids=padded, encoder_outputs=of_row)
                return out.logits[: len(ids), : ids.shape[1]]

            expected = beam_search(logits, 2, beams, 5, 2, 1)
            assert found.sequences[row].tolist() == expected


def test_every_call_takes_the_sources(model):
    sources, targets = model.sources(*INPUTS), LABELS[:, :3]
    out = model(decoder_input_ids=targets, encoder_outputs=sources)
    assert out.encoder_last_hidden_state is None
    assert len(out.decoder_shown["second_cross_attentions"]) == 2
    again = model.decode(targets, encoder_outputs=sources)
    assert_close(again.logits, out.logits, 1e-6)
    cache = model.init_cache(sources, 3)
    for i in range(3):
        new, cache = model.decode(targets[:, i : i + 1], cache)
        assert_close(new.logits[:, 0], out.logits[:, i], 1e-5)


def test_both_sources_count(model):
    targets = LABELS[:, :3]

    @eqx.filter_jit
    def logits(model, *inputs):
        sources = model.sources(*inputs)
        return model(decoder_input_ids=targets, encoder_outputs=sources).logits

    expected = logits(model, *INPUTS)
    for i, masked in ((0, (1, 4)), (1, (0, 2))):
        ids, mask = INPUTS[i]
        assert not mask[masked]
        for place, changes in ((masked, False), ((0, 1), True)):
            other = ids.copy()
            other[place] = 33
            inputs = [*INPUTS]
            inputs[i] = other, mask
            differs = not np.allclose(logits(model, *inputs), expected, atol=1e-5)
            assert differs == changes


def test_saving(model, tmp_path):
    model.save_pretrained(tmp_path / "two")
    loaded = TwoSourceBart.from_pretrained(tmp_path / "two")
    leaves = (jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (loaded, model))
    assert all(map(np.array_equal, *leaves))
    inputs = {"decoder_input_ids": LABELS[:, :3], "encoder_outputs": model.sources(*INPUTS)}
    assert_close(loaded(**inputs).logits, model(**inputs).logits, 1e-6)
    with pytest.raises(ValueError, match="eqx_bart"):
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "two")
    with pytest.raises(eb.CheckpointError, match="checkpoint of a TwoSourceBart"):
        eb.BartForConditionalGeneration.from_pretrained(tmp_path / "two")


@pytest.mark.slow
def test_training(model):
    check_gradients(model, second, loss_of)
    value_and_grad = eqx.filter_jit(eqx.filter_value_and_grad(loss_of))
    value, grads = value_and_grad(model)
    again, same = value_and_grad(eb.gradient_checkpointing(model))
    assert_close(again, value, 1e-5)
    assert_same_leaves(same, grads, 1e-4)
    loss = eqx.filter_jit(loss_of)
    assert_close(loss(eb.cast(model, "bfloat16")), value, 0.1)
    training = eqx.nn.inference_mode(model, value=False)
    assert loss(training, jax.random.key(1)) != value


def test_shapes_are_checked(model):
    one, two = model.sources(*INPUTS)
    longer = jnp.ones((2, 4), bool)
    with pytest.raises(jaxtyping.TypeCheckError, match="source=3"):
        eb.nn.Source(two.hidden_states, longer)
    states = two.hidden_states[..., :31]
    narrow = eb.nn.Source(states, two.attention_mask)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(inner|d_in)=31"):
        model.generate(encoder_outputs=(one, narrow), max_new_tokens=2)
    fewer = jax.tree.map(lambda x: x[:1], two)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"batch=2"):
        model(decoder_input_ids=LABELS[:, :3], encoder_outputs=(one, fewer))
    with pytest.raises(TypeError, match="Of a tuple they have to be parts"):
        model(IDS, MASK, LABELS[:, :3], encoder_outputs=(one, two))
