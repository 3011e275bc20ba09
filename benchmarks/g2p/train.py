"""Trains the built-in model: English spelling to phonemes, on CMUdict.

pip install -e '.[g2p]'
python benchmarks/g2p/train.py --output g2p --state g2p.state

Killed, it goes on from the last state, and ends with the same weights bit for bit. Each
batch is spread over all devices that JAX has. `eqx_bart/g2p/README.md` has the runs that
made the built-in model.
"""

import argparse
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data import (
    BOS,
    bucketed,
    BUCKETS,
    Buckets,
    build_tokenizer,
    EOS,
    epoch,
    epoch_steps,
    PAD,
    split,
    VOCABULARY,
    Words,
)
from evaluate import error_rates
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Integer, PRNGKeyArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

import eqx_bart as eb
from eqx_bart.nn.checks import ArrayLike


CONFIG = eb.BartConfig(
    vocab_size=len(VOCABULARY),
    max_position_embeddings=64,
    d_model=192,
    encoder_layers=4,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=512,
    decoder_ffn_dim=512,
    init_std=0.07,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    decoder_start_token_id=EOS,
    forced_eos_token_id=EOS,
)

GENERATION_CONFIG = dataclasses.replace(
    eb.GenerationConfig.from_model_config(CONFIG), max_length=max(BUCKETS)
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train. A state can be resumed with the same recipe alone."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: int
    label_smoothing: float
    dropout: float
    dtype: str
    seed: int
    init: str | None = None


class State(eqx.Module):
    """Where training stands: all that resuming needs."""

    model: eb.BartForConditionalGeneration
    optimizer: optax.OptState
    step: Integer[Array, ""]


def optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """AdamW with clipping, warm-up and cosine decay; only matrices decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup, steps, recipe.learning_rate / 100
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=0.1,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )


def initial_state(optim: optax.GradientTransformation, recipe: Recipe) -> State:
    """A random model or a trained one, before its first step."""
    config = dataclasses.replace(CONFIG, dropout=recipe.dropout)
    if recipe.init is None:
        model = eb.BartForConditionalGeneration(
            config, GENERATION_CONFIG, key=jax.random.key(recipe.seed)
        )
    else:
        model = eqx.nn.inference_mode(
            eb.BartForConditionalGeneration.from_pretrained(
                recipe.init, config=config, dtype="float32"
            ),
            value=False,
        )
    parameters = eqx.filter(model, eb.trainable(model))
    return State(model, optim.init(parameters), jnp.asarray(0, jnp.int32))


@eqx.filter_jit(donate="all-except-first")
def train_step(
    static: tuple[optax.GradientTransformation, Recipe],
    state: State,
    input_ids: Integer[ArrayLike, "batch source"],
    labels: Integer[ArrayLike, "batch target"],
    key: PRNGKeyArray,
) -> tuple[State, Array]:
    """One step; returns the next state and the loss."""
    optim, recipe = static
    parameters, rest = eqx.partition(state.model, eb.trainable(state.model))

    def loss_fn(parameters: Any) -> Array:
        return eb.seq2seq_loss(
            eb.cast(eqx.combine(parameters, rest), recipe.dtype),
            input_ids,
            input_ids != PAD,
            labels,
            label_smoothing=recipe.label_smoothing,
            key=jax.random.fold_in(key, state.step),
        ).mean

    loss, grads = jax.value_and_grad(loss_fn)(parameters)
    updates, optimizer_state = optim.update(grads, state.optimizer, parameters)
    model = eqx.apply_updates(state.model, updates)
    return State(model, optimizer_state, state.step + 1), loss


def batches(
    buckets: Buckets, recipe: Recipe, start: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of all epochs, from step `start` on."""
    per_epoch = epoch_steps(buckets, recipe.batch_size)
    for number in range(start // per_epoch, recipe.epochs):
        rng = np.random.default_rng((recipe.seed, number))
        skipped = max(0, start - number * per_epoch)
        yield from itertools.islice(epoch(buckets, recipe.batch_size, rng), skipped, None)


def save_state(file: Path, recipe: Recipe, state: State) -> None:
    """Writes the recipe as a line of JSON, and the state; in place of an older one."""
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as stream:
        stream.write(json.dumps(dataclasses.asdict(recipe)).encode() + b"\n")
        eqx.tree_serialise_leaves(stream, state)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


def load_state(file: Path, recipe: Recipe, like: State) -> State:
    """Reads what `save_state` wrote.

    **Raises** `ValueError` if that was another recipe.
    """
    with file.open("rb") as stream:
        stored = json.loads(stream.readline())
        if stored != dataclasses.asdict(recipe):
            raise ValueError(f"{file} was trained with {stored}, not with {recipe}.")
        return eqx.tree_deserialise_leaves(stream, like)


def train(
    words: dict[str, Words], recipe: Recipe, file: Path, *, save_every: int
) -> eb.BartForConditionalGeneration:
    """Trains, from the state in `file` if there is one; returns the model."""
    buckets = bucketed(words["train"].pairs())
    per_epoch = epoch_steps(buckets, recipe.batch_size)
    steps = recipe.epochs * per_epoch
    optim = optimizer(recipe, steps)
    state = initial_state(optim, recipe)
    if file.exists():
        state = load_state(file, recipe, state)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), (AxisType.Auto,))
    by_row = NamedSharding(mesh, PartitionSpec("batch"))
    state = eqx.filter_shard(state, NamedSharding(mesh, PartitionSpec()))
    key = jax.random.key(recipe.seed)
    step = int(state.step)
    with Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "loss {task.fields[loss]:.4f}, {task.fields[rate]:.2f} steps/s",
        TimeRemainingColumn(),
    ) as progress:
        task = progress.add_task("step", total=steps, completed=step, loss=0.0, rate=0.0)
        losses, mean, since = [], 0.0, time.perf_counter()
        for batch in batches(buckets, recipe, step):
            input_ids, labels = jax.device_put(batch, by_row)
            state, loss = train_step((optim, recipe), state, input_ids, labels, key)
            losses.append(loss)
            step += 1
            if step % save_every == 0 or step % per_epoch == 0:
                save_state(file, recipe, state)
            if len(losses) == 50 or step % per_epoch == 0:
                mean = float(jnp.mean(jnp.stack(losses)))
                rate = len(losses) / (time.perf_counter() - since)
                progress.update(task, completed=step, loss=mean, rate=rate)
                losses, since = [], time.perf_counter()
            if step % per_epoch == 0:
                model = eqx.nn.inference_mode(state.model)
                rates = error_rates(model, words["validation"])
                progress.print(
                    f"epoch {step // per_epoch}, loss {mean:.4f}, validation: {rates}"
                )
                since = time.perf_counter()
    return eqx.nn.inference_mode(state.model)


def save(model: eb.BartForConditionalGeneration, directory: Path) -> None:
    """Writes the checkpoint, in half precision but to be loaded in float32, with its
    tokenizer."""
    eb.cast(model, "float16").save_pretrained(directory)
    config = eb.BartConfig.from_pretrained(directory)
    dataclasses.replace(config, dtype="float32").save_pretrained(directory)
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONFIG.max_position_embeddings,
    ).save_pretrained(directory)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="where the checkpoint goes")
    add("--state", type=Path, required=True, help="a file to resume from, and to save to")
    add("--save-every", type=int, default=500, metavar="STEPS")
    add("--epochs", type=int, default=40)
    add("--batch-size", type=int, default=256)
    add("--learning-rate", type=float, default=1.5e-3)
    add("--warmup", type=int, default=1000, metavar="STEPS")
    add("--label-smoothing", type=float, default=0.1)
    add("--dropout", type=float, default=0.2)
    add("--dtype", default="bfloat16", help="to compute in; weights are float32")
    add("--seed", type=int, default=0)
    add("--init", metavar="DIRECTORY", help="a checkpoint to begin with; else at random")
    args = parser.parse_args()
    names = [field.name for field in dataclasses.fields(Recipe)]
    recipe = Recipe(**{name: getattr(args, name) for name in names})
    save(train(split(), recipe, args.state, save_every=args.save_every), args.output)


if __name__ == "__main__":
    main()
