"""Two processes of two devices each compute, load and save what one of four does."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.numpy

import eqx_bart as eb


pytestmark = pytest.mark.devices
SCRIPT = pathlib.Path(__file__).with_name("processes.py")
CONFIG = eb.BartConfig(
    vocab_size=264,
    max_position_embeddings=16,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=32,
    decoder_ffn_dim=24,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    init_std=0.3,
)


def save(directory, seed):
    model = eb.BartForConditionalGeneration(CONFIG, key=jax.random.key(seed))
    # Norms are ones and zeros at first, whatever the key.
    trained = eqx.tree_at(
        lambda model: model.model.encoder.layernorm_embedding.bias,
        model,
        replace_fn=lambda x: x + seed,
    )
    trained.save_pretrained(directory)
    return directory


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(sources, target, mesh, types):
    """A process for each of the checkpoints that they read, four devices in all."""
    count, port = len(sources), free_port()
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, (SCRIPT, count, i, port, mesh, types, x, target))],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, x in enumerate(sources)
    ]


def found(output):
    return json.loads(re.findall(r"^\{.*\}$", output, re.MULTILINE)[-1])


@pytest.mark.parametrize(
    ("mesh", "types", "is_exact"),
    # Sums over two devices have one order; over four, another one with two processes.
    [("fsdp=2,tensor=2", "explicit", True), ("fsdp=4", "automatic", False)],
)
def test_two_processes_are_one(mesh, types, is_exact, tmp_path):
    source, one, two = save(tmp_path / "source", 0), tmp_path / "one", tmp_path / "two"
    (alone,) = start([source], one, mesh, types)
    expected, errors = alone.communicate(timeout=900)
    assert alone.returncode == 0, errors[-2000:]
    expected = found(expected)
    assert "No space left" in expected.pop("full disk")
    first, second = start([source, source], two, mesh, types)
    outputs = [first.communicate(timeout=900)]
    assert first.returncode == 7, outputs[0][1][-2000:]  # it died while it saved
    second.kill()  # it would wait until JAX misses the other one
    outputs.append(second.communicate())
    results = [found(output) for output, _ in outputs]
    assert "No space left" in results[0].pop("full disk")
    assert results[1].pop("full disk") == (
        "Saving failed in process 0, which says why; this is process 1."
    )
    for result in results:
        assert "have given generate different inputs" in result.pop("different")
        read, own = result.pop("read"), result.pop("own")
        assert read == own < expected["own"]
        assert result.pop("held") <= own  # in memory at once: no tensor as a whole
    del expected["read"], expected["own"], expected["held"]
    losses = expected.pop("losses")
    assert results[0]["losses"] == results[1].pop("losses")
    assert results[0].pop("losses") == (losses if is_exact else pytest.approx(losses))
    assert results == [expected, expected]
    contents = [{x.name: x.read_bytes() for x in d.iterdir()} for d in (one, two)]
    weights = [safetensors.numpy.load(x.pop("model.safetensors")) for x in contents]
    assert contents[0] == contents[1]
    for name, tensor in weights[0].items():
        assert np.allclose(weights[1][name], tensor, atol=0 if is_exact else 1e-4, rtol=0)


@pytest.mark.parametrize(
    ("second", "messages"),
    [
        ("other", ["have read different checkpoints", "have read different checkpoints"]),
        (
            "none",
            [
                "Loading failed in process 1",
                "A model on the Hugging Face hub has a name like",
            ],
        ),
    ],
)
def test_processes_that_read_different_checkpoints(second, messages, tmp_path):
    sources = [save(tmp_path / "source", 0), tmp_path / second]
    if second == "other":
        save(sources[1], 1)
    started = time.monotonic()
    processes = start(sources, tmp_path / "target", "fsdp=4", "explicit")
    for process, message in zip(processes, messages, strict=True):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 1
        assert message in errors
    assert time.monotonic() - started < 120
