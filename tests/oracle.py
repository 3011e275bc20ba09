"""HF's PyTorch BART as the oracle: random configs, inputs and weights, and comparisons."""

import math
import pathlib
import tempfile

import equinox as eqx
import jax
import numpy as np
import torch
import transformers
from held import held

import eqx_bart as eb
from eqx_bart.files.safetensors import write_safetensors


CLASSES = {
    "BartModel": eb.BartModel,
    "BartForConditionalGeneration": eb.BartForConditionalGeneration,
    "BartForSequenceClassification": eb.BartForSequenceClassification,
    "BartForQuestionAnswering": eb.BartForQuestionAnswering,
    "BartForCausalLM": eb.BartForCausalLM,
}


def random_config(rng: np.random.Generator) -> transformers.BartConfig:
    """A small config in which every switch may stand either way."""
    heads = [int(h) for h in rng.choice([1, 2, 3, 4], 2)]
    d_model = math.lcm(*heads) * int(rng.integers(2, 5))
    vocab_size = int(rng.integers(12, 40))
    pad, bos, eos, start = (int(i) for i in rng.permutation(vocab_size)[:4])
    return transformers.BartConfig(
        vocab_size=vocab_size,
        max_position_embeddings=int(rng.integers(10, 20)),
        d_model=d_model,
        encoder_layers=int(rng.choice([1, 1, 1, 2, 3])),
        decoder_layers=int(rng.choice([1, 1, 1, 2, 3])),
        encoder_attention_heads=heads[0],
        decoder_attention_heads=heads[1],
        encoder_ffn_dim=int(rng.integers(3, 40)),
        decoder_ffn_dim=int(rng.integers(3, 40)),
        activation_function=str(
            rng.choice(["gelu", "relu", "gelu_new", "silu", "tanh", "quick_gelu"])
        ),
        scale_embedding=bool(rng.integers(2)),
        tie_word_embeddings=bool(rng.integers(4) > 0),
        num_labels=int(rng.integers(1, 5)),
        dropout=0.3,
        attention_dropout=0.2,
        activation_dropout=0.1,
        classifier_dropout=0.1,
        encoder_layerdrop=0.5,
        decoder_layerdrop=0.5,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        decoder_start_token_id=start,
        forced_eos_token_id=None if rng.integers(2) else eos,
    )


def random_model(
    name: str, config: transformers.BartConfig, seed: int, dtype: torch.dtype
) -> torch.nn.Module:
    """HF's model, in inference mode, with weights that leave nothing at 0 or 1."""
    torch.manual_seed(seed)
    config = transformers.BartConfig(**config.to_dict())
    config._attn_implementation = "eager"
    model = getattr(transformers, name)(config).eval().to(dtype)
    with torch.no_grad():
        for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
            centre = 1.0 if "norm" in path and path.endswith("weight") else 0.0
            tensor.copy_(centre + 0.3 * torch.randn(tensor.shape, dtype=dtype))
    return model


def convert(model: torch.nn.Module):
    """Our model with the config and the weights of HF's, in inference mode."""
    config = eb.BartConfig.from_dict(model.config.to_dict())
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "model.safetensors")
        write_safetensors(file, held(tensors))
        return CLASSES[type(model).__name__].from_pretrained(file, config=config)


def convert_grads(model: torch.nn.Module):
    """HF's gradients, laid out as our model; they take the place of its weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            grad = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
    return convert(model)


def random_ids(
    rng: np.random.Generator, config: transformers.BartConfig, batch: int, length: int
) -> np.ndarray:
    """Token ids, with two end-of-sequence tokens in each row."""
    others = np.setdiff1d(np.arange(config.vocab_size), [config.eos_token_id])
    ids = rng.choice(others, (batch, length))
    for row in ids:
        row[rng.choice(length, 2, replace=False)] = config.eos_token_id
    return ids


def random_mask(rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    """Padding on the left, on the right or anywhere, at least one token in each row."""
    mask = np.ones((batch, length), np.int64)
    for row in mask:
        kept = int(rng.integers(1, length + 1))
        kind = rng.integers(3)
        if kind == 0:
            row[kept:] = 0
        elif kind == 1:
            row[: length - kept] = 0
        else:
            row[rng.permutation(length)[kept:]] = 0
    return mask


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]


def assert_close(ours, theirs, tolerance: float, what: str = "") -> None:
    """That two arrays agree, relative to the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    assert np.all(np.isfinite(ours)), what
    error = np.max(np.abs(ours - theirs), initial=0)
    scale = np.max(np.abs(theirs), initial=0)
    assert error <= tolerance * scale, f"{what}: {error} of {scale}"


def leaves(model) -> list[jax.Array]:
    """The parameters of a model, or their gradients."""
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def assert_same(a, b) -> None:
    """That two models have the same arrays, in the same dtypes."""
    pairs = (jax.tree.leaves(eqx.filter(model, eqx.is_array)) for model in (a, b))
    for x, y in zip(*pairs, strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(x, y)


def assert_same_leaves(ours, theirs, rtol: float) -> None:
    """Relative to the largest entry of each array. Some are 0 but for rounding errors."""
    pairs = list(zip(leaves(ours), leaves(theirs), strict=True))
    assert pairs, "nothing to compare"
    least = 1e-3 * max(float(np.max(np.abs(b))) for _, b in pairs)
    for a, b in pairs:
        assert np.max(np.abs(a - b)) <= rtol * max(least, float(np.max(np.abs(b))))


def assert_outputs_close(ours, theirs, tolerance: float) -> None:
    """That our output has HF's fields, and the same in them."""
    for name, value in theirs.items():
        if name == "past_key_values" or value == ():
            continue
        mine = getattr(ours, name)
        if isinstance(value, tuple):
            assert len(mine) == len(value), name
            for i, (a, b) in enumerate(zip(mine, value, strict=True)):
                assert_close(a, b.detach(), tolerance, f"{name}[{i}]")
        else:
            assert_close(mine, value.detach(), tolerance, name)
    present = {k for k, v in vars(ours).items() if v is not None}
    assert present == {k for k, v in theirs.items() if v != ()} - {"past_key_values"}
