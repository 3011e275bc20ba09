"""All five models against HF's PyTorch BART, over random configs, weights and inputs."""

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from oracle import (
    assert_outputs_close,
    CLASSES,
    convert,
    random_config,
    random_ids,
    random_mask,
    random_model,
    tolerance,
)


SEEDS = range(50)


def random_inputs(rng, config, name):
    """The same arguments for us and for HF."""
    batch = int(rng.integers(1, 4))
    source = int(rng.integers(3, config.max_position_embeddings))
    target = int(rng.integers(2, config.max_position_embeddings))
    inputs = {"input_ids": random_ids(rng, config, batch, source)}
    if rng.integers(4):
        inputs["attention_mask"] = random_mask(rng, batch, source)
    if name == "BartForCausalLM":
        if rng.integers(2):
            states = rng.normal(size=(batch, target, config.d_model))
            inputs["encoder_hidden_states"] = states
            inputs["encoder_attention_mask"] = random_mask(rng, batch, target)
        return inputs
    if rng.integers(2) and name != "BartForSequenceClassification":
        inputs["decoder_input_ids"] = random_ids(rng, config, batch, target)
        if rng.integers(2):
            inputs["decoder_attention_mask"] = random_mask(rng, batch, target)
    return inputs


def both(inputs, dtype):
    """The inputs as PyTorch tensors and as JAX arrays."""
    tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    return tensors, {k: jax.numpy.asarray(v.numpy()) for k, v in tensors.items()}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_outputs(seed, name):
    rng = np.random.default_rng([seed, *name.encode()])
    config = random_config(rng)
    dtype = torch.float64 if seed % 3 == 0 else torch.float32
    theirs = random_model(name, config, seed, dtype)
    with jax.enable_x64(dtype == torch.float64):
        ours = convert(theirs)
        tensors, arrays = both(random_inputs(rng, config, name), dtype)
        call = eqx.filter_jit(ours) if seed % 2 else ours
        options = {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            expected = theirs(**tensors, **options, use_cache=False)
        assert_outputs_close(call(**arrays, **options), expected, tolerance(dtype))
