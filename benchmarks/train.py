"""Tokens per second and memory of a training step: eqx-bart, Hugging Face's PyTorch BART,
and its Flax BART.

pip install -e '.[test]'
python benchmarks/train.py [--flax DIRECTORY] [--threads 2] [--rounds 5] [--json FILE]

A step is the loss of a batch in training mode, with dropout, its gradient, and AdamW. All
have BART-base with random float32 weights and the same batch, on the CPU. Each engine is a
process of its own that lives as long as the benchmark; in each round one after the other
takes a step, so that whatever else the machine does falls on all of them. The peak is the
largest resident memory of a process, all that Python and its libraries take included. All
of them get their memory in huge pages, which makes a step of each shorter: Linux maps pages
one by one as they are first written, and all engines allocate gigabytes anew in each step.

--flax DIRECTORY is a virtual environment for HF's Flax BART, which transformers 5 dropped;
it is made there if it is not there.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sizes import SIZES


BATCH, SOURCE, TARGET, VOCABULARY, CHUNK = 8, 256, 64, 50265, 128
LEARNING_RATE = 1e-4
# See `eqx_bart.gradient_checkpointing`.
LEAN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
CONFIG = SIZES["base"]
FLAX_PACKAGES = (
    "transformers==4.57.6",
    "flax==0.12.8",
    "jax==0.10.2",
    "jaxlib==0.10.2",
    "numpy==2.4.6",
)

#: Takes a step, and returns its loss.
Step = Callable[[], float]


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random input ids, their mask, and labels."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, VOCABULARY, (BATCH, SOURCE), dtype=np.int32)
    labels = rng.integers(4, VOCABULARY, (BATCH, TARGET), dtype=np.int32)
    return ids, np.ones_like(ids), labels


def ours(dtype: str = "float32", *, lean: bool = False) -> Step:
    """This library; `lean` keeps less in memory, and computes more."""
    import equinox as eqx
    import jax
    import optax

    import eqx_bart as eb

    ids, mask, labels = batch()
    config = eb.BartConfig(**CONFIG)
    model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
    model = eb.gradient_checkpointing(model, lean)
    optim = optax.adamw(LEARNING_RATE)
    state = optim.init(eqx.filter(model, eb.trainable(model)))

    jit: Any = eqx.filter_jit  # whose type lacks the options of `jax.jit`

    @jit(donate="all", compiler_options=LEAN if lean else None)
    def step(model: Any, state: Any, key: Any) -> Any:
        parameters, rest = eqx.partition(model, eb.trainable(model))

        def loss(parameters: Any) -> Any:
            whole = eb.cast(eqx.combine(parameters, rest), dtype)
            chunk_size = CHUNK if lean else None
            return eb.seq2seq_loss(
                whole, ids, mask, labels, chunk_size=chunk_size, key=key
            ).mean

        value, grads = jax.value_and_grad(loss)(parameters)
        updates, state = optim.update(grads, state, parameters)
        return eqx.apply_updates(model, updates), state, value

    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def take() -> float:
        nonlocal model, state
        model, state, loss = step(model, state, next(keys))
        jax.block_until_ready((model, state))
        return float(loss)

    return take


def hf(dtype: str = "float32") -> Step:
    """Hugging Face's PyTorch BART; other dtypes by autocast."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["PJRT_NPROC"]))
    ids, mask, labels = (torch.from_numpy(x.astype(np.int64)) for x in batch())
    config = transformers.BartConfig(**CONFIG)
    model: Any = transformers.BartForConditionalGeneration(config).train()
    optim = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    autocast = torch.autocast(
        "cpu", getattr(torch, dtype), enabled=dtype != "float32", cache_enabled=True
    )

    def take() -> float:
        optim.zero_grad()
        with autocast:
            loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optim.step()
        return loss.item()

    return take


def flax() -> Step:
    """Hugging Face's Flax BART, of transformers 4."""
    import jax
    import jax.numpy as jnp
    import optax
    import transformers

    modeling: Any = importlib.import_module("transformers.models.bart.modeling_flax_bart")
    ids, mask, labels = batch()
    config: Any = transformers.BartConfig(**CONFIG)
    model = modeling.FlaxBartForConditionalGeneration(config)
    params = model.params
    optim = optax.adamw(LEARNING_RATE)
    state = optim.init(params)
    pad, start = config.pad_token_id, config.decoder_start_token_id

    def loss(params: Any, key: Any) -> Any:
        inputs = modeling.shift_tokens_right(jnp.asarray(labels), pad, start)
        logits = model(ids, mask, inputs, params=params, dropout_rng=key, train=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params: Any, state: Any, key: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = optim.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def take() -> float:
        nonlocal params, state
        params, state, value = jitted(params, state, next(keys))
        jax.block_until_ready((params, state))
        return float(value)

    model._params = None  # noqa: SLF001, which would be a second copy
    return take


ENGINES: dict[str, Callable[[], Step]] = {
    "ours": ours,
    "ours, bfloat16": lambda: ours("bfloat16"),
    "ours, lean": lambda: ours(lean=True),
    "ours, lean, bfloat16": lambda: ours("bfloat16", lean=True),
    "HF PyTorch": hf,
    "HF PyTorch, bfloat16": lambda: hf("bfloat16"),
    "HF Flax": flax,
}


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def child(engine: str) -> None:
    """Takes a step for each line of standard input, and prints the figures."""
    step = ENGINES[engine]()
    version = "" if "PyTorch" in engine else importlib.metadata.version("jax")
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        figures = {"seconds": seconds, "loss": loss, "peak": peak(), "jax": version}
        print(json.dumps(figures), flush=True)


def start(engine: str, python: str, threads: int) -> subprocess.Popen[str]:
    """The process of an engine."""
    environment = os.environ | {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "PJRT_NPROC": str(threads),
        "JAX_PLATFORMS": "cpu",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return subprocess.Popen(  # noqa: S603, the command is our own
        [python, __file__, "--child", engine],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def take(engine: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    """The figures of a step of this engine, which the process runs."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"The process of {engine} has ended.")
    return json.loads(line)


def flax_python(directory: Path) -> str:
    """The interpreter of an environment with HF's Flax BART."""
    python = directory / "bin" / "python"
    if not python.exists():
        for command in (
            [sys.executable, "-m", "venv", str(directory)],
            [str(python), "-m", "pip", "install", "--quiet", *FLAX_PACKAGES],
        ):
            subprocess.run(command, check=True)  # noqa: S603, the command is our own
    return str(python)


def report(figures: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the table; ratios are to the faster of HF's two in float32, and to the one
    of the two that takes less memory."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    tokens = BATCH * (SOURCE + TARGET)
    rates = {
        engine: tokens / statistics.median(run["seconds"] for run in runs[1:])
        for engine, runs in figures.items()
    }
    peaks = {engine: runs[-1]["peak"] / 1e9 for engine, runs in figures.items()}
    peers = [engine for engine in ("HF PyTorch", "HF Flax") if engine in figures]
    fastest = max((rates[engine] for engine in peers), default=float("nan"))
    leanest = min((peaks[engine] for engine in peers), default=float("nan"))
    title = f"A training step, BART-base, {BATCH} x ({SOURCE} + {TARGET}) tokens"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("engine", no_wrap=True)
    for name in ("jax", "tokens/s", "to HF", "peak, GB", "to HF", "first loss"):
        table.add_column(name, justify="right")
    for engine, runs in figures.items():
        table.add_row(
            engine,
            runs[0]["jax"],
            f"{rates[engine]:.0f}",
            f"{rates[engine] / fastest:.2f}",
            f"{peaks[engine]:.2f}",
            f"{peaks[engine] / leanest:.2f}",
            f"{runs[0]['loss']:.2f}",
        )
    Console(width=100).print(table)


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flax", type=Path, metavar="DIRECTORY")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    processes: dict[str, subprocess.Popen[str]] = {}
    for engine in args.engines:
        if engine != "HF Flax" or args.flax:
            python = flax_python(args.flax) if engine == "HF Flax" else sys.executable
            processes[engine] = start(engine, python, args.threads)
            take(engine, processes[engine])  # compiles
    figures: dict[str, list[dict[str, Any]]] = {engine: [] for engine in processes}
    for _ in range(args.rounds + 1):
        for engine, process in processes.items():
            figures[engine].append(take(engine, process))
    for process in processes.values():
        process.terminate()
    report(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
