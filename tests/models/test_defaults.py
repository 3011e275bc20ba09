"""What a call leaves out is what the config says; what NumPy has is taken as it is."""

import equinox as eqx
import numpy as np
import pytest
import torch
import transformers
from conftest import with_slow
from oracle import assert_same

import eqx_bart as eb


IDS = np.array([[5, 6, 2], [7, 8, 2]])
CLASSES = [
    eb.BartModel,
    eb.BartForConditionalGeneration,
    eb.BartForSequenceClassification,
    eb.BartForQuestionAnswering,
    eb.BartForCausalLM,
]


@pytest.mark.parametrize("flag", ["output_attentions", "output_hidden_states"])
@pytest.mark.parametrize(
    "cls", with_slow(*CLASSES[:2], slow=CLASSES), ids=lambda cls: cls.__name__
)
def test_flags_of_the_config(cls, flag, config, getkey):
    """The rest of HF's `test_attention_outputs` and `test_hidden_states_output`."""
    config = config.updated(**{flag: True})
    model = eqx.nn.inference_mode(cls(config, key=getkey()))
    theirs = getattr(transformers, cls.__name__)(
        transformers.BartConfig(**config.to_dict(), attn_implementation="eager")
    ).eval()
    expected = theirs(torch.tensor(IDS), use_cache=False)
    assert [*model(IDS)] == [name for name, value in expected.items() if len(value)]
    assert [*model(IDS, **{flag: False})] == [*model(IDS, **{flag: False}, key=getkey())]
    assert len(model(IDS, **{flag: False})) < len(model(IDS))


def test_flags_of_the_config_in_each_method(config, getkey):
    config = config.updated(output_attentions=True, output_hidden_states=True)
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    encoded = model.encode(IDS)
    assert [*encoded] == ["last_hidden_state", "hidden_states", "attentions"]
    decoded, _ = model.decode(IDS, model.init_cache(encoded, 3))
    assert [*decoded] == ["logits", "hidden_states", "attentions", "cross_attentions"]
    assert model.generate(IDS, max_new_tokens=2).cross_attentions is None


def test_floats_of_numpy(config, getkey):
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    encoded = model.encode(IDS)
    states = np.asarray(encoded.last_hidden_state)
    numpy = eb.BaseModelOutput(states)
    embeds = np.asarray(model.model.shared(IDS))
    expected = model(IDS, None, IDS)
    for found in (
        model(None, None, IDS, inputs_embeds=embeds),
        model(IDS, None, None, decoder_inputs_embeds=embeds),
        model(None, None, IDS, encoder_outputs=numpy),
    ):
        assert_same(found, expected)
    assert_same(model.encode(inputs_embeds=embeds), encoded)
    for cache in (model.init_cache(numpy, 3), model.init_cache(encoded, 3)):
        decoded, _ = model.decode(cache=cache, decoder_inputs_embeds=embeds)
        assert np.allclose(decoded.logits, expected.logits, atol=1e-5)
    tokens = model.generate(IDS, max_new_tokens=3).sequences
    same = model.generate(encoder_outputs=numpy, max_new_tokens=3).sequences
    assert np.array_equal(same, tokens)

    decoder = eqx.nn.inference_mode(eb.BartForCausalLM(config, key=getkey()))
    assert_same(
        decoder(IDS, encoder_hidden_states=states),
        decoder(IDS, encoder_hidden_states=encoded.last_hidden_state),
    )
    decoded, _ = decoder.decode(IDS, decoder.init_cache(2, 3, states))
    assert np.allclose(
        decoded.logits, decoder(IDS, encoder_hidden_states=states).logits, atol=1e-5
    )
