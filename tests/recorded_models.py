"""Models with weights that are made anew, from their names alone, by whoever needs them."""

import json
import zlib

import numpy as np


#: Of a model with BART's own vocabulary, and little else.
CONFIG = {
    "model_type": "bart",
    "vocab_size": 50265,
    "max_position_embeddings": 128,
    "d_model": 12,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_layers": 1,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 20,
}
#: What stands for the tied tables of tokens.
_SHARED = "model.shared.weight"
_TIED = ("embed_tokens.weight", "lm_head.weight")


def tensor(name: str, shape, seed: int) -> np.ndarray:
    """The weights of this name, far enough from 0 for outputs to differ."""
    name = _SHARED if name.endswith(_TIED) else name
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    if name == "final_logits_bias":
        return rng.normal(0, 1, shape).astype(np.float32)
    scale = 2.0 if name.endswith("out_proj.weight") and "head" in name else 0.6
    return (centre + rng.normal(0, scale, shape)).astype(np.float32)


def config(case) -> dict:
    """The `config.json` of a recorded case."""
    return CONFIG | {"architectures": [case["class"]]} | case["config"]


def write(directory, case, write_tensors) -> None:
    """Writes the checkpoint of a recorded case."""
    (directory / "config.json").write_text(json.dumps(config(case)))
    if "generation_config" in case:
        generation = json.dumps(case["generation_config"])
        (directory / "generation_config.json").write_text(generation)
    tensors = {
        name: tensor(name, shape, case["seed"]) for name, shape in case["shapes"].items()
    }
    write_tensors(directory / "model.safetensors", tensors)
