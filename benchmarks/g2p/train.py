"""Trains the built-in model: English spelling to phonemes, on CMUdict.

pip install -e '.[g2p]'
python benchmarks/g2p/train.py --output eqx_bart/g2p
"""

import argparse
import dataclasses
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data import (
    BOS,
    bucketed,
    BUCKETS,
    build_tokenizer,
    EOS,
    epoch,
    epoch_steps,
    PAD,
    split,
    VOCABULARY,
)
from evaluate import error_rates
from jaxtyping import Array, Integer, PRNGKeyArray

import eqx_bart as eb


CONFIG = eb.BartConfig(
    vocab_size=len(VOCABULARY),
    max_position_embeddings=64,
    d_model=128,
    encoder_layers=3,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=512,
    decoder_ffn_dim=512,
    dropout=0.1,
    init_std=0.08,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    decoder_start_token_id=EOS,
    forced_eos_token_id=EOS,
)

GENERATION_CONFIG = dataclasses.replace(
    eb.GenerationConfig.from_model_config(CONFIG), max_length=max(BUCKETS)
)


def loss_fn(
    model: eb.BartForConditionalGeneration,
    input_ids: Integer[Array, "batch source"],
    labels: Integer[Array, "batch target"],
    key: PRNGKeyArray,
    smoothing: float,
) -> Array:
    """The mean cross-entropy of a token, with label smoothing."""
    decoder_input_ids = eb.shift_tokens_right(labels, PAD, EOS)
    out = model(input_ids, input_ids != PAD, decoder_input_ids, key=key)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, len(VOCABULARY)), smoothing)
    losses = optax.softmax_cross_entropy(out.logits, targets)
    is_token = labels != PAD
    return jnp.sum(losses * is_token) / jnp.sum(is_token)


def optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay; only matrices decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(1000, steps // 10), steps, end_value=learning_rate / 100
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=0.01,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )


@eqx.filter_jit(donate="all-except-first")
def train_step(
    optim: optax.GradientTransformation,
    model: eb.BartForConditionalGeneration,
    state: optax.OptState,
    input_ids: Integer[Array, "batch source"],
    labels: Integer[Array, "batch target"],
    key: PRNGKeyArray,
    smoothing: float,
) -> tuple[eb.BartForConditionalGeneration, optax.OptState, Array]:
    """One step; returns the model, the optimiser's state and the loss."""
    loss, grads = eqx.filter_value_and_grad(loss_fn)(
        model, input_ids, labels, key, smoothing
    )
    updates, state = optim.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, loss


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")

    words = split()
    buckets = bucketed(words["train"].pairs())
    steps_per_epoch = epoch_steps(buckets, args.batch_size)
    steps = args.epochs * steps_per_epoch
    key = jax.random.key(args.seed)
    rng = np.random.default_rng(args.seed)
    model = eb.BartForConditionalGeneration(CONFIG, GENERATION_CONFIG, key=key)
    optim = optimizer(args.learning_rate, steps)
    state = optim.init(eqx.filter(model, eqx.is_inexact_array))
    size = sum(x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
    print(f"{size:,} parameters, {args.epochs} epochs of {steps_per_epoch} steps")

    step, losses, start = 0, [], time.time()
    for number in range(1, args.epochs + 1):
        for input_ids, labels in epoch(buckets, args.batch_size, rng):
            model, state, loss = train_step(
                optim,
                model,
                state,
                jnp.asarray(input_ids),
                jnp.asarray(labels),
                jax.random.fold_in(key, step),
                args.label_smoothing,
            )
            losses.append(loss)
            step += 1
            if step % 100 == 0:
                rate = step / (time.time() - start)
                mean = float(jnp.mean(jnp.stack(losses)))
                losses.clear()
                print(f"step {step}/{steps} loss {mean:.4f} {rate:.2f} steps/s", flush=True)
        rates = error_rates(eqx.nn.inference_mode(model), words["validation"])
        print(f"epoch {number} validation: {rates}", flush=True)
        save(eqx.nn.inference_mode(model), args.output)


def save(model: eb.BartForConditionalGeneration, directory: Path) -> None:
    """Writes the checkpoint with its tokenizer."""
    model.save_pretrained(directory)
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONFIG.max_position_embeddings,
    ).save_pretrained(directory)


if __name__ == "__main__":
    main()
