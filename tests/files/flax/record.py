"""Records what HF's Flax BART writes and computes, in the directories beside this file.

It needs what the library does not: in a virtual environment of its own,

    pip install transformers==4.57.6 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
    JAX_PLATFORMS=cpu python tests/flax/record.py

Each directory is what `save_pretrained` made of a small random model, and `recorded.npz`
holds its parameters, by Flax's names, and the inputs and outputs of a call in float32.
"""

import pathlib
import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict


# Of each directory: the class, what of the config is not as in `config`, and how it is
# saved. Limits are in bytes: of a chunk of an array, and of a shard.
CASES = {
    "bare_in_chunks": ("BartModel", {"decoder_layers": 1}, {"chunk": 200}),
    "generation_untied_in_shards": (
        "BartForConditionalGeneration",
        {"tie_word_embeddings": False, "activation_function": "relu"},
        {"shard": 4000},
    ),
    "generation_tied": (
        "BartForConditionalGeneration",
        {"encoder_layers": 2, "decoder_layers": 1},
        {},
    ),
    "classification_in_bfloat16": (
        "BartForSequenceClassification",
        {"num_labels": 1, "activation_function": "gelu_new"},
        {"dtype": jnp.bfloat16},
    ),
    "question_answering": ("BartForQuestionAnswering", {"scale_embedding": True}, {}),
    "causal_lm_untied": ("BartForCausalLM", {"tie_word_embeddings": False}, {}),
    "causal_lm_tied": ("BartForCausalLM", {"decoder_layers": 1}, {}),
}


def main() -> None:
    for seed, (case, (name, overrides, saving)) in enumerate(CASES.items()):
        rng = np.random.default_rng(seed)
        model = random_model(name, overrides, saving.get("dtype", jnp.float32), rng)
        inputs = random_inputs(name, model.config, rng)
        outputs = {
            key: value
            for key, value in model(**inputs).items()
            if isinstance(value, jax.Array)
        }
        directory = pathlib.Path(__file__).parent / case
        shutil.rmtree(directory, ignore_errors=True)
        flax.serialization.MAX_CHUNK_SIZE = saving.get("chunk", 2**30)
        model.save_pretrained(directory, max_shard_size=saving.get("shard", 2**30))
        groups = {
            "params": flatten_dict(model.params, sep="/"),
            "inputs": inputs,
            "outputs": outputs,
        }
        arrays = {
            f"{group}:{key}": value
            for group, values in groups.items()
            for key, value in values.items()
        }
        np.savez_compressed(directory / "recorded.npz", **arrays)


def random_model(
    name: str, overrides: dict, dtype: jnp.dtype, rng: np.random.Generator
) -> transformers.FlaxPreTrainedModel:
    config = {
        "vocab_size": 19,
        "max_position_embeddings": 9,
        "d_model": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 7,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 10,
    }
    model_class = getattr(transformers, f"Flax{name}")
    model = model_class(transformers.BartConfig(**config | overrides))
    params = {
        key: jnp.asarray(rng.normal("scale" in key, 0.3, value.shape), dtype)
        for key, value in flatten_dict(model.params, sep="/").items()
    }
    model.params = unflatten_dict(params, sep="/")
    return model


def random_inputs(
    name: str, config: transformers.BartConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Two rows of tokens each, the second with padding on the right."""
    inputs = {}
    for prefix, length in (("", 7), ("decoder_", 5)):
        ids = rng.integers(4, config.vocab_size, (2, length))
        mask = np.ones((2, length), np.int64)
        ids[0, -1] = ids[1, -3] = config.eos_token_id
        ids[1, -2:] = config.pad_token_id
        mask[1, -2:] = 0
        inputs |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}
    if name == "BartForSequenceClassification":  # which wants both of one length
        return {key: inputs[key] for key in ("input_ids", "attention_mask")}
    if name != "BartForCausalLM":
        return inputs
    states = rng.normal(size=(2, 7, config.d_model)).astype(np.float32)
    return {
        "input_ids": inputs["decoder_input_ids"],
        "attention_mask": inputs["decoder_attention_mask"],
        "encoder_hidden_states": states,
        "encoder_attention_mask": inputs["attention_mask"],
    }


if __name__ == "__main__":
    main()
