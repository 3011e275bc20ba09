"""Checkpoints that are loaded onto a mesh, beside those that are laid out there once they
are loaded; and saved from there. Run by `test_on_mesh.py`, with a directory.
"""

import pathlib
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from meshes import mesh_of

import eqx_bart as eb


DIRECTORY = pathlib.Path(sys.argv[1])
MODEL = eb.BartForConditionalGeneration
MESHES = ("fsdp=4", "tensor=4", "data=2,fsdp=2,tensor=2")
CONFIG = eb.BartConfig(
    vocab_size=52,
    max_position_embeddings=14,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=24,
    decoder_ffn_dim=32,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    num_labels=3,
)


def saved(name, **options):
    model = MODEL(CONFIG, key=jax.random.key(0))
    model.save_pretrained(DIRECTORY / name, **options)
    return DIRECTORY / name


def pytorch(name, change):
    """The checkpoint as a file of PyTorch's."""
    directory = saved(name)
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    file.unlink()
    state = {name: change(torch.tensor(x)) for name, x in tensors.items()}
    torch.save(state, directory / "pytorch_model.bin")
    return directory


def assert_same(found, expected):
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if eqx.is_array(x):
            assert x.dtype == y.dtype
            assert x.sharding == y.sharding
            assert np.array_equal(x, y)


def check(directory, mesh, model=MODEL, **options):
    expected = eb.shard(model.from_pretrained(directory, **options), mesh)
    assert_same(model.from_pretrained(directory, mesh=mesh, **options), expected)
    return expected


CHECKPOINTS = (
    saved("whole"),
    saved("shards", max_shard_size=4000),
    pytorch("contiguous", lambda x: x),
    pytorch("strided", lambda x: x.T.contiguous().T if x.ndim == 2 else x),
)
whole = CHECKPOINTS[0]
for types in ("explicit", "automatic"):
    for text in MESHES:
        mesh = mesh_of(text, types)
        for directory in CHECKPOINTS:
            model = check(directory, mesh)
        check(whole, mesh, dtype="bfloat16")
        expected = eb.shard(eb.quantize(MODEL.from_pretrained(whole)), mesh)
        assert_same(MODEL.from_pretrained(whole, mesh=mesh, quantize="int8"), expected)
        expected.save_pretrained(DIRECTORY / "int8")
        check(DIRECTORY / "int8", mesh)
        model.save_pretrained(DIRECTORY / "again")
        again = (DIRECTORY / "again" / "model.safetensors").read_bytes()
        assert again == (whole / "model.safetensors").read_bytes()
mesh = mesh_of("fsdp=2,tensor=2", "explicit")
classifier = eb.BartForSequenceClassification
with pytest.warns(UserWarning, match="classification_head.* drawn at random"):
    check(whole, mesh, classifier, key=jax.random.key(1))
larger = {"vocab_size": 60, "ignore_mismatched_sizes": True, "key": jax.random.key(2)}
with warnings.catch_warnings(action="ignore", category=UserWarning):
    check(whole, mesh, **larger)
adapted = eb.shard(eb.lora(check(whole, mesh), 4, key=jax.random.key(3)), mesh)
eb.save_lora(adapted, DIRECTORY / "adapters")
loaded = eb.load_lora(check(whole, mesh), DIRECTORY / "adapters")
assert_same(eb.shard(loaded, mesh), adapted)
ids = np.array([[5, 6, 7, 2]])
logits = eqx.filter_jit(eqx.nn.inference_mode(loaded))(ids).logits
assert bool(jnp.isfinite(logits).all())
sys.stdout.write("done")
