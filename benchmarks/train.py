"""Tokens per second and memory of a training step: eqx-bart, Hugging Face's PyTorch BART,
and its Flax BART.

pip install -e '.[test]'
python benchmarks/train.py [--flax DIRECTORY] [--threads 2] [--rounds 5] [--json FILE]
python benchmarks/train.py --mixed [--layers 2] [--rounds 2]

A step is the loss of a batch in training mode, with dropout, its gradient, and AdamW. All
have BART-base with random float32 weights and the same batch, on the CPU. Each engine is a
process of its own that lives as long as the benchmark; in each round one after the other
takes a step, so that whatever else the machine does falls on all of them. The peak is the
largest resident memory of a process, all that Python and its libraries take included. All
of them get their memory in huge pages, and keep what they free, which makes a step of each
shorter: Linux maps pages one by one as they are first written, all engines allocate
gigabytes anew in each step, and while others take theirs a virtual machine may give a
process's free memory away.

--mixed measures examples of mixed lengths: sources log-normal with a median of 120 tokens
and a sigma of 0.7, labels with a median of 24 and a sigma of 0.5, correlated by a half, and
cut to 8 to 512 and 4 to 96; much like SAMSum's dialogues. Hugging Face's Trainer takes 16
at a time by its `group_by_length`, padded to the longest; ours are of `eb.length_grouped`
and `eb.pad`, 16 at a time, or of `eb.pack`, 5 rows of 512 + 96. Of an epoch of 3200, which
is enough for HF to sort 50 batches together, ten batches are measured: every twentieth by
length; packed, any. Only tokens and labels count, no padding.

--flax DIRECTORY is a virtual environment for HF's Flax BART, which transformers 5 dropped;
it is made there if it is not there.
"""

import argparse
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environments import environment, FLAX_PACKAGES
from processes import Process
from report import Comparison, write
from sizes import SIZES


BATCH, SOURCE, TARGET, VOCABULARY, CHUNK = 8, 256, 64, 50265, 128
LEARNING_RATE = 1e-4
# See `eqx_bart.gradient_checkpointing`.
LEAN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
CONFIG = SIZES["base"]
MEMORY = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**34, "top_pad": 2**28}

EXAMPLES, MIXED_BATCH, MEASURED = 3200, 16, 10
ROWS, ROW = 5, {"source_length": 512, "target_length": 96}
SOURCE_LENGTHS, TARGET_LENGTHS = (64, 128, 192, 256, 384, 512), (32, 64, 96)

#: The arguments of a loss, by name.
Batch = Mapping[str, np.ndarray]
#: Takes a step with a batch, and returns its loss.
Step = Callable[[Batch], float]


def uniform() -> list[Batch]:
    """A batch of random input ids, their mask, and labels."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, VOCABULARY, (BATCH, SOURCE), dtype=np.int32)
    labels = rng.integers(4, VOCABULARY, (BATCH, TARGET), dtype=np.int32)
    return [{"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}]


def examples() -> list[tuple[np.ndarray, np.ndarray]]:
    """Random ids and labels, of mixed lengths."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(EXAMPLES, 2))
    normal[:, 1] = 0.5 * normal[:, 0] + math.sqrt(0.75) * normal[:, 1]
    lengths = np.exp(np.log([120, 24]) + [0.7, 0.5] * normal)
    lengths = np.clip(lengths, [8, 4], [512, 96]).astype(int)
    return [
        (rng.integers(4, VOCABULARY, source), rng.integers(4, VOCABULARY, target))
        for source, target in lengths
    ]


def packed() -> list[Batch]:
    """Several examples to a row."""
    import jax

    import eqx_bart as eb

    rows = eb.pack(examples(), eb.BartConfig(), **ROW, batch_size=ROWS)
    order = np.random.default_rng(1).permutation(len(rows.labels)).reshape(-1, ROWS)
    chosen = order[:MEASURED]
    return [jax.tree.map(lambda x, i=i: x[i], rows) for i in chosen]


def grouped() -> list[Batch]:
    """Batches of about one length, padded to one of a few."""
    import jax

    import eqx_bart as eb

    pairs, widths = examples(), np.array(SOURCE_LENGTHS)
    sizes = np.array([(len(source), len(labels)) for source, labels in pairs])
    sizes[:, 0] = widths[np.searchsorted(widths, sizes[:, 0])]
    groups = eb.length_grouped(sizes, MIXED_BATCH, key=jax.random.key(0))
    batches: list[Batch] = [
        eb.pad(
            [pairs[i] for i in group],
            eb.BartConfig(),
            source_lengths=SOURCE_LENGTHS,
            target_lengths=TARGET_LENGTHS,
        )
        for group in groups
    ]
    return _sample(batches)


def grouped_by_hf() -> list[Batch]:
    """What HF's Trainer makes of `group_by_length`."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    pairs = examples()
    sampler = LengthGroupedSampler(
        MIXED_BATCH,
        lengths=[len(source) for source, _ in pairs],
        generator=torch.Generator().manual_seed(0),
    )
    order = list(sampler)
    batches = list[Batch]()
    for start in range(0, EXAMPLES, MIXED_BATCH):
        sources, targets = zip(
            *(pairs[i] for i in order[start : start + MIXED_BATCH]), strict=True
        )
        ids, labels = _padded(sources, -1), _padded(targets, -100)
        mask = ids != -1
        batches.append(
            {
                "input_ids": np.where(mask, ids, 1),
                "attention_mask": mask.astype(np.int64),
                "labels": labels,
            }
        )
    return _sample(batches)


def _padded(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), value)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


def _sample(batches: list[Batch]) -> list[Batch]:
    """A fair sample, whatever their order: one in so many, by length."""
    step = EXAMPLES // MIXED_BATCH // MEASURED
    return sorted(batches, key=lambda x: x["input_ids"].size)[step // 2 :: step]


def num_tokens(batch: Batch) -> int:
    """How many tokens and labels a batch has, without padding."""
    return int(np.sum(batch["attention_mask"]) + np.sum(batch["labels"] != -100))


def ours(config: dict[str, Any], dtype: str = "float32", *, lean: bool = False) -> Step:
    """This library; `lean` keeps less in memory, and computes more."""
    import equinox as eqx
    import jax
    import optax

    import eqx_bart as eb

    model = eb.BartForConditionalGeneration(eb.BartConfig(**config), key=jax.random.key(0))
    model = eb.gradient_checkpointing(model, lean)
    optim = optax.adamw(LEARNING_RATE)
    state = optim.init(eqx.filter(model, eb.trainable(model)))

    jit: Any = eqx.filter_jit  # whose type lacks the options of `jax.jit`

    @jit(donate="all", compiler_options=LEAN if lean else None)
    def step(model: Any, state: Any, batch: Any, key: Any) -> Any:
        parameters, rest = eqx.partition(model, eb.trainable(model))

        def loss(parameters: Any) -> Any:
            whole = eb.cast(eqx.combine(parameters, rest), dtype)
            chunk_size = CHUNK if lean else None
            return eb.seq2seq_loss(whole, **batch, chunk_size=chunk_size, key=key).mean

        value, grads = jax.value_and_grad(loss)(parameters)
        updates, state = optim.update(grads, state, parameters)
        return eqx.apply_updates(model, updates), state, value

    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def take(batch: Batch) -> float:
        nonlocal model, state
        model, state, loss = step(model, state, batch, next(keys))
        jax.block_until_ready((model, state))
        return float(loss)

    return take


def hf(config: dict[str, Any], dtype: str = "float32") -> Step:
    """Hugging Face's PyTorch BART; other dtypes by autocast."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["PJRT_NPROC"]))
    model: Any = transformers.BartForConditionalGeneration(
        transformers.BartConfig(**config)
    ).train()
    optim = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    autocast = torch.autocast(
        "cpu", getattr(torch, dtype), enabled=dtype != "float32", cache_enabled=True
    )

    def take(batch: Batch) -> float:
        inputs = {k: torch.from_numpy(x.astype(np.int64)) for k, x in batch.items()}
        optim.zero_grad()
        with autocast:
            loss = model(**inputs).loss
        loss.backward()
        optim.step()
        return loss.item()

    return take


def flax(config: dict[str, Any]) -> Step:
    """Hugging Face's Flax BART, of transformers 4."""
    import jax
    import jax.numpy as jnp
    import optax
    import transformers

    modeling: Any = importlib.import_module("transformers.models.bart.modeling_flax_bart")
    settings: Any = transformers.BartConfig(**config)
    model = modeling.FlaxBartForConditionalGeneration(settings)
    params = model.params
    optim = optax.adamw(LEARNING_RATE)
    state = optim.init(params)
    pad, start = settings.pad_token_id, settings.decoder_start_token_id

    def loss(params: Any, batch: Any, key: Any) -> Any:
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        inputs = modeling.shift_tokens_right(jnp.asarray(labels), pad, start)
        logits = model(ids, mask, inputs, params=params, dropout_rng=key, train=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params: Any, state: Any, batch: Any, key: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch, key)
        updates, state = optim.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    keys = iter(jax.random.split(jax.random.key(1), 1000))

    def take(batch: Batch) -> float:
        nonlocal params, state
        params, state, value = jitted(params, state, batch, next(keys))
        jax.block_until_ready((params, state))
        return float(value)

    model._params = None  # noqa: SLF001, which would be a second copy
    return take


HALF = {"dtype": "bfloat16"}
Engine = tuple[Callable[[], list[Batch]], Callable[..., Step], dict[str, Any]]
UNIFORM: dict[str, Engine] = {
    "ours": (uniform, ours, {}),
    "ours, bfloat16": (uniform, ours, HALF),
    "ours, lean": (uniform, ours, {"lean": True}),
    "ours, lean, bfloat16": (uniform, ours, {"lean": True, **HALF}),
    "HF PyTorch": (uniform, hf, {}),
    "HF PyTorch, bfloat16": (uniform, hf, HALF),
    "HF Flax": (uniform, flax, {}),
}
MIXED: dict[str, Engine] = {
    "ours, packed": (packed, ours, {}),
    "ours, grouped": (grouped, ours, {}),
    "HF PyTorch, grouped": (grouped_by_hf, hf, {}),
    "ours, packed, bfloat16": (packed, ours, HALF),
    "ours, grouped, bfloat16": (grouped, ours, HALF),
    "HF PyTorch, grouped, bfloat16": (grouped_by_hf, hf, HALF),
}
ENGINES = UNIFORM | MIXED


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def child(engine: str, config: dict[str, Any]) -> None:
    """Takes a step for each line of standard input, with one batch after the other, and
    prints the figures."""
    make_batches, make_step, options = ENGINES[engine]
    batches, step = make_batches(), make_step(config, **options)
    version = "" if "PyTorch" in engine else importlib.metadata.version("jax")
    for number, _ in zip(itertools.cycle(range(len(batches))), sys.stdin, strict=False):
        start = time.perf_counter()
        loss = step(batches[number])
        seconds = time.perf_counter() - start
        figures = {
            "batch": number,
            "batches": len(batches),
            "tokens": num_tokens(batches[number]),
            "seconds": seconds,
            "loss": loss,
            "peak": peak(),
            "jax": version,
        }
        print(json.dumps(figures), flush=True)


def start(engine: str, python: str, threads: int, layers: int) -> Process:
    """The process of an engine."""
    memory = ":".join(f"glibc.malloc.{name}={value}" for name, value in MEMORY.items())
    command = [python, __file__, "--child", engine, "--layers", str(layers)]
    return Process(engine, command, GLIBC_TUNABLES=memory, PJRT_NPROC=str(threads))


def rate(runs: list[dict[str, Any]]) -> float:
    """Tokens in a second, by the median time of each batch."""
    seconds, tokens = dict[int, list[float]](), dict[int, int]()
    for run in runs:
        seconds.setdefault(run["batch"], []).append(run["seconds"])
        tokens[run["batch"]] = run["tokens"]
    return sum(tokens.values()) / sum(map(statistics.median, seconds.values()))


def report(figures: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Prints the table; ratios are to the faster of HF's two in float32, and to the one
    of the two that takes less memory; of mixed lengths, to HF's in the same dtype too."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rates = {engine: rate(runs) for engine, runs in figures.items()}
    peaks = {engine: runs[-1]["peak"] / 1e9 for engine, runs in figures.items()}
    names = ("HF PyTorch", "HF Flax", "HF PyTorch, grouped")
    peers = [engine for engine in names if engine in figures]
    fastest = max((rates[engine] for engine in peers), default=float("nan"))
    leanest = min((peaks[engine] for engine in peers), default=float("nan"))
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("engine", no_wrap=True)
    columns = (
        "jax",
        "tokens/s",
        "to HF",
        "to its dtype",
        "peak, GB",
        "to HF",
        "first loss",
    )
    for name in columns:
        table.add_column(name, justify="right")
    for engine, runs in figures.items():
        is_half = "bfloat16" in engine
        same = [x for x in figures if "HF" in x and ("bfloat16" in x) == is_half]
        peer = max((rates[x] for x in same), default=float("nan"))
        table.add_row(
            engine,
            runs[0]["jax"],
            f"{rates[engine]:.0f}",
            f"{rates[engine] / fastest:.2f}",
            f"{rates[engine] / peer:.2f}",
            f"{peaks[engine]:.2f}",
            f"{peaks[engine] / leanest:.2f}",
            f"{runs[0]['loss']:.2f}",
        )
    Console(width=110).print(table)


def comparisons(figures: dict[str, list[dict[str, Any]]]) -> list[Comparison]:
    """Each of ours beside each of the others in the same dtype."""
    rates = {engine: rate(runs) for engine, runs in figures.items()}
    return [
        Comparison(f"train, {ours}", other, rates[ours] / rates[other])
        for ours, other in itertools.product(rates, rates)
        if "ours" in ours
        and "ours" not in other
        and ("bfloat16" in ours) == ("bfloat16" in other)
    ]


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flax", type=Path, metavar="DIRECTORY")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mixed", action="store_true", help="examples of mixed lengths")
    parser.add_argument("--layers", type=int, default=6, help="of encoder and of decoder")
    parser.add_argument("--engines", nargs="*", choices=ENGINES)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        layers = dict.fromkeys(("encoder_layers", "decoder_layers"), args.layers)
        child(args.child, CONFIG | layers)
        return
    processes: dict[str, Process] = {}
    warm: dict[str, list[dict[str, Any]]] = {}
    for engine in args.engines or (MIXED if args.mixed else UNIFORM):
        if engine != "HF Flax" or args.flax:
            python = sys.executable
            if engine == "HF Flax":
                python = environment(args.flax, python, FLAX_PACKAGES)
            process = start(engine, python, args.threads, args.layers)
            warm[engine] = [process.ask("step")]
            for _ in range(warm[engine][0]["batches"]):  # compiles, and one more
                warm[engine].append(process.ask("step"))
            processes[engine] = process
    figures: dict[str, list[dict[str, Any]]] = {engine: [] for engine in processes}
    for _ in range(args.rounds * max(runs[0]["batches"] for runs in warm.values())):
        for engine, process in processes.items():
            figures[engine].append(process.ask("step"))
    for process in processes.values():
        process.process.terminate()
    what = "mixed lengths" if args.mixed else f"{BATCH} x ({SOURCE} + {TARGET}) tokens"
    report(
        figures, f"A training step, BART-base, {args.layers} + {args.layers} layers, {what}"
    )
    write(args.json, figures, comparisons(figures))


if __name__ == "__main__":
    main()
