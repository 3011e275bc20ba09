"""Fixtures that all tests share."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
import torch

import eqx_bart as eb


torch.set_num_threads(1)
os.environ["EQX_BART_CACHE"] = ""  # tests compile their programs

TESTS = pathlib.Path(__file__).parent
SHARED_DATA = TESTS.parents[1] / "shared" / "data"
STRICT = ("cli", "generation", "models", "tasks")


def with_slow(*quick, slow):
    """The cases of a test, of which those that are not `quick` are slow tests."""
    rest = [case for case in slow if case not in quick]
    return [*quick, *(pytest.param(case, marks=pytest.mark.slow) for case in rest)]


def on_devices(num_devices, script, *arguments, cwd=None, **environment):
    """What a script prints, in a process of its own with so many devices, which takes half
    the time to compile."""
    paths = [str(TESTS), os.environ.get("PYTHONPATH")]
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def getkey():
    """A function that gives another key at each call."""
    keys = iter(range(1_000_000))
    return lambda: jax.random.key(next(keys))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real checkpoints and configs, which is no part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not there")
    return SHARED_DATA


#: A BART small enough to test with, and lopsided, so that no two sizes are alike. It is
#: wider than 32: below that, XLA computes each layer's sums anew in all layers after it,
#: and takes half as long again to compile.
SMALL = eb.BartConfig(
    vocab_size=41,
    max_position_embeddings=12,
    d_model=40,
    encoder_layers=1,
    encoder_attention_heads=2,
    encoder_ffn_dim=56,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=36,
)


@pytest.fixture
def config() -> eb.BartConfig:
    return SMALL


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Takes half the time to compile what will run but once; slow tests compile fully."""
    is_quick = request.node.get_closest_marker("slow") is None
    jax.config.update("jax_disable_most_optimizations", is_quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Lets all programs go before they are too many: each holds hundreds of memory maps, of
    which Linux gives a process some 65,000."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def strict_modes(request):
    """JAX's own, in the tests of `STRICT`: no array is broadcast to more axes, or promoted,
    without being told. Optax, and much of what users write, does both."""
    if request.path.relative_to(TESTS).parts[0] not in STRICT:
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def full_compilation(quick_compilation):
    """Compiles as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
