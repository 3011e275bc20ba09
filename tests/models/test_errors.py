"""Wrong input is a clear error, eager and under `jit`; nothing is clamped."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from conftest import with_slow

import eqx_bart as eb


@pytest.fixture
def model(config, getkey):
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


@pytest.fixture
def cache(model):
    return model.init_cache(model.encode(np.array([[5, 6, 2], [7, 8, 2]])), 4)


IDS = np.array([[5, 6, 2], [7, 8, 2]])


def jitted(function, *arguments):
    """Runs `function` under `jit`, with every array traced."""
    outputs = eqx.filter_jit(function)(*arguments)
    return jax.block_until_ready(outputs)


def test_a_wrong_shape_names_the_axis_and_both_sizes(model, cache):
    with pytest.raises(jaxtyping.TypeCheckError) as error:
        model(IDS, np.ones((2, 4), int))
    message = str(error.value)
    assert "attention_mask" in message
    assert "batch source" in message
    assert "source=3" in message
    assert "i64[2,4]" in message
    with pytest.raises(jaxtyping.TypeCheckError) as error:
        model.encode(inputs_embeds=jnp.ones((2, 3, 25)))
    assert "f32[1,3,40]" in str(error.value)
    assert "d_model=25" in str(error.value)
    for wrong in (
        lambda: model(IDS[0]),
        lambda: model(IDS.astype(float)),
        lambda: model(inputs_embeds=jnp.ones((2, 3, 25)), decoder_input_ids=IDS),
        lambda: model.model.encoder.layers[0].fc1(jnp.ones((2, 25))),
        lambda: model.decode(IDS, cache, np.ones((2, 4), bool)),
        lambda: model.decode(
            IDS,
            encoder_outputs=model.encode(IDS),
            encoder_attention_mask=np.ones((2, 2), int),
        ),
    ):
        with pytest.raises(jaxtyping.TypeCheckError):
            wrong()


@pytest.mark.parametrize("bad", [41, -1])
def test_a_token_outside_the_vocabulary(bad, model, cache):
    ids = IDS.copy()
    ids[1, 2] = bad
    message = (
        r"input_ids must lie in \[0, 41\), the rows of the vocabulary; "
        rf"input_ids\[1, 2\] is {bad}"
    )
    with pytest.raises(ValueError, match=message):
        model.encode(ids)
    with pytest.raises(ValueError, match=r"decoder_input_ids\[1, 2\]"):
        model(IDS, decoder_input_ids=ids)
    for run in (
        model.encode,
        lambda ids: model(IDS, decoder_input_ids=ids),
        lambda ids: model.decode(ids, cache),
        model.generate,
        eqx.filter_vmap(lambda ids: model.encode(ids[None])),
    ):
        with pytest.raises(RuntimeError, match=r"input_ids must lie in \[0, 41\)"):
            jitted(run, jnp.asarray(ids))
        jitted(run, jnp.asarray(IDS))


def test_a_position_outside_the_table(model, cache):
    positions = np.array([[0, 1, 12]])
    message = r"position_ids must lie in \[0, 12\).*position_ids\[0, 2\] is 12"
    with pytest.raises(ValueError, match=message):
        model.encode(IDS, None, positions)
    with pytest.raises(ValueError, match="decoder_" + message):
        model.decode(IDS, cache, None, positions)
    with pytest.raises(RuntimeError, match="position_ids must lie in"):
        jitted(model.encode, IDS, None, jnp.asarray(positions))
    long = np.full((1, 13), 5)
    with pytest.raises(
        ValueError, match=r"13 tokens is longer .* max_position_embeddings is 12"
    ):
        model.encode(long)
    with pytest.raises(ValueError, match="13 tokens is longer"):
        model(IDS[:1], decoder_input_ids=long)


def test_a_cache_overrun(model, cache):
    with pytest.raises(ValueError, match=r"max_length=4 tokens: 5 more do not fit even"):
        model.decode(np.full((2, 5), 5), cache)
    _, cache = model.decode(IDS, cache)
    with pytest.raises(ValueError, match="max_length=4 tokens: 2 more do not fit after"):
        model.decode(IDS[:, :2], cache)
    with pytest.raises(RuntimeError, match="2 more do not fit after"):
        jitted(model.decode, IDS[:, :2], cache)
    _, cache = jitted(model.decode, IDS[:, :1], cache)
    assert int(cache.length) == 4
    for size in (0, 13):
        with pytest.raises(ValueError, match=f"max_length={size} tokens does not fit"):
            model.init_cache(model.encode(IDS), size)


def test_a_cache_that_does_not_fit(model, cache, config, getkey):
    with pytest.raises(ValueError, match=r"holds a batch of 2 rows and was given .* for 3"):
        model.decode(np.full((3, 1), 5), cache)
    other = eb.BartForConditionalGeneration(
        eb.BartConfig.from_dict(config.to_dict() | {"decoder_ffn_dim": 8}), key=getkey()
    )
    with pytest.raises(ValueError, match="belongs to a model with another config"):
        eqx.nn.inference_mode(other).decode(IDS, cache)
    with pytest.raises(
        ValueError, match=r"either a cache .* or the encoder_outputs .*neither"
    ):
        model.decode(IDS)
    with pytest.raises(ValueError, match="was given both"):
        model.decode(IDS, cache, encoder_outputs=model.encode(IDS))


def test_an_encoder_mask_that_would_go_unused_or_does_not_fit(model, cache, config, getkey):
    mask = np.ones((2, 3), int)
    with pytest.raises(
        ValueError, match="knows the encoder's attention_mask from init_cache"
    ):
        model.decode(IDS, cache, encoder_attention_mask=mask)
    encoded = model.encode(IDS)
    for wrong in (mask[:, :2], mask[:1]):
        with pytest.raises(ValueError, match=r"states are \[batch, source\]=\[2, 3\] and"):
            model.init_cache(encoded, 4, wrong)
    decoder = eqx.nn.inference_mode(eb.BartForCausalLM(config, key=getkey()))
    with pytest.raises(ValueError, match="but no encoder_hidden_states"):
        decoder(IDS, encoder_attention_mask=mask)
    with pytest.raises(ValueError, match="For batch=3, the encoder's states"):
        decoder.init_cache(3, 4, encoded.last_hidden_state)


def test_no_rows_and_no_tokens(model):
    outputs = model(IDS[:0])
    assert outputs.logits.shape == (0, 3, 41)
    assert model.generate(IDS[:0], max_length=5).sequences.shape == (0, 5)
    with pytest.raises(ValueError, match="input_ids are empty"):
        model(IDS[:, :0])
    with pytest.raises(ValueError, match="decoder_input_ids are empty"):
        model(IDS, decoder_input_ids=IDS[:, :0])


@pytest.mark.parametrize(
    "dtype", with_slow(np.int8, np.int64, slow=[np.uint8, np.int16, np.uint32])
)
def test_integers_of_any_width(dtype, getkey):
    config = eb.BartConfig(
        vocab_size=300,
        max_position_embeddings=200,
        d_model=4,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        decoder_start_token_id=299,
    )
    model = eqx.nn.inference_mode(eb.BartModel(config, key=getkey()))
    ids = np.array([[100, 127, 56, 2]])
    positions = np.array([[0, 126, 127, 100]])
    expected = model(ids, None, position_ids=positions).last_hidden_state
    narrow = ids.astype(dtype), positions.astype(dtype)
    for call in (model, eqx.filter_jit(model)):
        outputs = call(narrow[0], None, position_ids=narrow[1])
        assert np.allclose(outputs.last_hidden_state, expected, atol=1e-5)
    if dtype == np.uint8:
        shifted = eb.shift_tokens_right(np.array([[156, 5]], dtype), 1, 2)
        assert shifted.tolist() == [[2, 156]]


def test_ids_and_embeddings_exclude_one_another(model):
    embeds = jnp.ones((2, 3, 40))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds, not both"):
        model.encode(IDS, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds, not neither"):
        model.encode()
    with pytest.raises(ValueError, match="decoder_inputs_embeds, not both"):
        model(IDS, decoder_input_ids=IDS, decoder_inputs_embeds=embeds)
    with pytest.raises(ValueError, match="pass decoder_input_ids or decoder_inputs_embeds"):
        model(inputs_embeds=embeds)


@pytest.mark.parametrize("switch", ["dropout", "attention_dropout", "activation_dropout"])
def test_a_missing_key_in_training_mode(switch, config, getkey):
    off = {"dropout": 0.0, "encoder_layerdrop": 0.0}
    config = eb.BartConfig.from_dict(config.to_dict() | off | {switch: 0.1})
    model = eb.BartModel(config, key=getkey())
    with pytest.raises(RuntimeError, match="requires a key"):
        model(IDS)
    model(IDS, key=getkey())
    eqx.nn.inference_mode(model)(IDS)


def test_a_missing_key_for_layerdrop(config, getkey):
    for side in ("encoder_layerdrop", "decoder_layerdrop"):
        changed = eb.BartConfig.from_dict(config.to_dict() | {"dropout": 0.0, side: 0.5})
        with pytest.raises(RuntimeError, match="LayerDrop requires a key"):
            eb.BartModel(changed, key=getkey())(IDS)


def test_checks_can_be_switched_off():
    import os
    import subprocess
    import sys

    code = (
        "import eqx_bart, equinox as eqx, jax, numpy as np\n"
        "c = eqx_bart.BartConfig(\n"
        "    d_model=8, vocab_size=9, encoder_layers=1, decoder_layers=1,\n"
        "    encoder_attention_heads=1, decoder_attention_heads=1, dropout=0.0)\n"
        "shapes = eqx.filter_eval_shape\n"
        "m = shapes(eqx_bart.BartModel, c, key=jax.random.key(0))\n"
        "out = shapes(m, np.ones((2, 3), int), np.ones((1, 3), int))\n"
        "print(out.last_hidden_state.shape)"
    )
    run = [sys.executable, "-c", code]
    on = subprocess.run(run, capture_output=True, check=False)
    assert b"TypeCheckError" in on.stderr
    env = {**os.environ, "JAXTYPING_DISABLE": "1"}
    off = subprocess.run(run, capture_output=True, check=True, env=env)
    assert off.stdout.decode().strip() == "(2, 3, 8)"
