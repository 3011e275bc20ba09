"""Distils the built-in model into a smaller one, on the words that it was trained on, and
says what that saves and what it costs.

pip install -e '.[g2p]'
python benchmarks/g2p/distil.py --encoder-layers 2 --decoder-layers 1 --steps 600

With `--alpha-data 1 --alpha-logits 0 --alpha-hid 0` it shrinks and fine-tunes, without the
teacher. `benchmarks/results/distil.md` has what came of it.
"""

import argparse
import itertools
import operator
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from data import split, Words
from evaluate import predict, rates_of
from jaxtyping import Array, PRNGKeyArray

import eqx_bart as eb


Model = eb.BartForConditionalGeneration
Answers = dict[str, tuple[str, ...]]
#: The length of a row.
ROW = 64


@eqx.filter_jit
def train_step(
    optim: optax.GradientTransformation,
    student: Model,
    teacher: Model,
    state: optax.OptState,
    batch: eb.Seq2SeqBatch,
    options: dict[str, Any],
    key: PRNGKeyArray,
) -> tuple[Model, optax.OptState, Array]:
    """One step; returns the next student, the optimiser's state and the loss."""
    parameters, rest = eqx.partition(student, eb.trainable(student))

    def loss_fn(parameters: Any) -> Array:
        whole = eqx.combine(parameters, rest)
        return eb.distillation_loss(whole, teacher, **batch, **options, key=key).mean

    loss, grads = jax.value_and_grad(loss_fn)(parameters)
    updates, state = optim.update(grads, state, parameters)
    return eqx.apply_updates(student, updates), state, loss


def batches(words: Words, config: eb.BartConfig, rows: int) -> Iterator[eb.Seq2SeqBatch]:
    """So many rows at a time, of several words each, in one epoch after the other."""
    pairs = words.pairs()
    lengths = {"source_length": ROW, "target_length": ROW, "batch_size": rows}
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(len(pairs))
        for part in np.array_split(order, len(order) // 10_000):
            packed = eb.pack([pairs[i] for i in part], config, **lengths)
            shuffled = np.random.default_rng(epoch).permutation(len(packed.labels))
            for chosen in shuffled.reshape(-1, rows):
                yield jax.tree.map(operator.itemgetter(chosen), packed)


def distil(student: Model, teacher: Model, words: Words, args: argparse.Namespace) -> Model:
    """The student, trained for so many steps."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, args.learning_rate, args.steps // 10, args.steps
    )
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))
    student = eqx.nn.inference_mode(student, value=False)
    state = optim.init(eqx.filter(student, eb.trainable(student)))
    names = ("alpha_data", "alpha_logits", "alpha_hid", "temperature")
    options = {name: getattr(args, name) for name in names}
    keys = jax.random.split(jax.random.key(0), args.steps)
    losses = list[float]()
    rows = batches(words, student.config, args.rows)
    for key, batch in zip(keys, rows, strict=False):
        student, state, loss = train_step(
            optim, student, teacher, state, batch, options, key
        )
        losses.append(float(loss))
        if len(losses) % 50 == 0:
            print(f"step {len(losses)}: loss {np.mean(losses[-50:]):.4f}", flush=True)
    return eqx.nn.inference_mode(student)


def answers(model: Model, words: Words) -> tuple[Answers, float]:
    """What a model makes of the words, and the milliseconds of the processor for each."""
    every = list(words.pronunciations)
    predict(model, every[:1], num_beams=4, batch_size=256)  # compiles
    start = time.process_time()
    found = predict(model, every, num_beams=4, batch_size=256)
    return found, 1000 * (time.process_time() - start) / len(every)


def table(models: dict[str, Model], words: Words) -> Iterator[str]:
    """The lines of the table: sizes, times and errors, the teacher's first."""
    yield "| model | layers | million parameters | ms a word | PER | WER | as the teacher |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    taught: Answers = {}
    for name, model in models.items():
        found, milliseconds = answers(model, words)
        taught = taught or found
        same = sum(found[word] == taught[word] for word in found) / len(found)
        rates, config = rates_of(found, words), model.config
        parameters = eqx.filter(model, eb.trainable(model))
        size = sum(x.size for x in jax.tree.leaves(parameters)) / 1e6
        yield (
            f"| {name} | {config.encoder_layers} + {config.decoder_layers} | {size:.2f} | "
            f"{milliseconds:.2f} | {rates.per:.2%} | {rates.wer:.2%} | {same:.1%} |"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--encoder-layers", type=int, default=2)
    add("--decoder-layers", type=int, default=1)
    add("--steps", type=int, default=600)
    add("--rows", type=int, default=32, help="a step's; each holds several words")
    add("--learning-rate", type=float, default=1e-3)
    add("--alpha-data", type=float, default=0.2)
    add("--alpha-logits", type=float, default=0.8)
    add("--alpha-hid", type=float, default=1.0)
    add("--temperature", type=float, default=2.0)
    add("--dropout", type=float, default=0.1)
    add("--words", type=int, default=1500, help="how many test words to answer")
    add("--output", type=Path, help="where the student goes")
    args = parser.parse_args()
    words = split()
    every = words["test"].pronunciations
    step = max(1, len(every) // args.words)
    test = Words({word: every[word] for word in list(every)[::step][: args.words]})
    teacher = Model.from_pretrained(eb.BUILTIN_MODEL, dropout=args.dropout)
    student = eb.shrink(
        teacher, encoder_layers=args.encoder_layers, decoder_layers=args.decoder_layers
    )
    start = time.process_time()
    trained = distil(student, teacher, words["train"], args)
    print(f"trained for {time.process_time() - start:.0f} seconds of the processor\n")
    models = {"teacher": teacher, "shrunk": student, "trained": trained}
    for line in table(models, test):
        print(line, flush=True)
    if args.output:
        trained.save_pretrained(args.output)


if __name__ == "__main__":
    main()
