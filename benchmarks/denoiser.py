"""A small denoiser, trained here: what it answers is what drafts from the source meet.

It learns to write the docstrings of Python's library, in words, from text of which some
words are masked. Its answers to text that it has not seen are kept, with their sources.
"""

import ast
import collections
import re
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save_file

import eqx_bart as eb


PAD, BOS, EOS, UNKNOWN, MASK, NUM_SPECIAL = 1, 0, 2, 3, 4, 5
LENGTH, BATCH_SIZE, STEPS = 128, 8, 1500
#: The shares of words that are masked: as many as a text has faults, and as BERT's.
RATIOS = (0.05, 0.15)
#: How many documents are answered, of each share.
NUM_ANSWERED = 16
CONFIG = eb.BartConfig(
    vocab_size=8192,
    max_position_embeddings=LENGTH,
    d_model=192,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=768,
    decoder_ffn_dim=768,
    dropout=0.0,
    init_std=0.07,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    decoder_start_token_id=EOS,
    forced_eos_token_id=None,
)


def texts() -> Iterator[str]:
    """The docstrings of Python's standard library."""
    place = Path(sysconfig.get_path("stdlib"))
    for file in sorted(place.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def documents() -> np.ndarray:
    """Rows of ids, `[documents, LENGTH]`, of the words that are most frequent, in random
    order."""
    words = [re.findall(r"\w+|[^\w\s]", text) for text in texts()]
    counted = collections.Counter(word for text in words for word in text)
    most = counted.most_common(CONFIG.vocab_size - NUM_SPECIAL)
    ids = {word: NUM_SPECIAL + i for i, (word, _) in enumerate(most)}
    stream = np.asarray([ids.get(word, UNKNOWN) for text in words for word in text])
    body = LENGTH - 2
    rows = stream[: len(stream) // body * body].reshape(-1, body).astype(np.int32)
    rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=BOS)
    rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=EOS)
    return np.random.default_rng(0).permutation(rows)


def noised(rows: np.ndarray, ratio: float, key: jax.Array) -> np.ndarray:
    """The rows with a share of their words masked."""
    return eb.token_masking(rows, CONFIG, mask_token_id=MASK, ratio=ratio, key=key)


def train(rows: np.ndarray) -> eb.BartForConditionalGeneration:
    """A denoiser of these documents."""
    model = eb.BartForConditionalGeneration(CONFIG, key=jax.random.key(0))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 200, STEPS)
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))
    state = optim.init(eqx.filter(model, eb.trainable(model)))

    @eqx.filter_jit(donate="all")
    def step(model: Any, state: Any, source: jax.Array, labels: jax.Array) -> Any:
        parameters, rest = eqx.partition(model, eb.trainable(model))

        def loss(parameters: Any) -> jax.Array:
            whole = eqx.combine(parameters, rest)
            return eb.seq2seq_loss(whole, source, None, labels).mean

        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, state = optim.update(gradients, state, parameters)
        return eqx.apply_updates(model, updates), state, value

    rng = np.random.default_rng(0)
    begin = time.perf_counter()
    for i, key in enumerate(jax.random.split(jax.random.key(1), STEPS)):
        chosen = rows[rng.integers(0, len(rows), BATCH_SIZE)]
        source = noised(chosen, RATIOS[i % len(RATIOS)], key)
        source, labels = jnp.asarray(source), jnp.asarray(chosen)
        model, state, value = step(model, state, source, labels)
        if (i + 1) % 100 == 0:
            passed = time.perf_counter() - begin
            print(f"step {i + 1}: loss {value:.3f}, {passed:.0f} s", flush=True)
    return eqx.nn.inference_mode(model)


def denoised(place: Path) -> dict[str, np.ndarray]:
    """Sources, `[documents, LENGTH]`, and answers of a trained denoiser, by the share that
    was masked; a file in this directory keeps them."""
    file = place / "denoised.safetensors"
    if not file.exists():
        unseen, seen = np.split(documents(), [NUM_ANSWERED])
        found = answers(train(seen), unseen)
        place.mkdir(parents=True, exist_ok=True)
        save_file(found, file)
    return load_file(file)


def answers(
    model: eb.BartForConditionalGeneration, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """What the denoiser makes of these rows, up to the last `</s>`."""
    found = {}
    for ratio in RATIOS:
        source = noised(rows, ratio, jax.random.key(2))
        number = LENGTH - 1
        output = model.generate(source, min_new_tokens=number, max_new_tokens=number)
        answer = np.asarray(output.sequences)[:, 1:]
        is_copied = np.mean(answer == source[:, :number])
        is_right = np.mean(answer == rows[:, :number])
        print(
            f"{ratio:.0%} masked: {is_copied:.1%} copied, {is_right:.1%} right", flush=True
        )
        found[f"source {ratio}"], found[f"answer {ratio}"] = source, answer
    return found
