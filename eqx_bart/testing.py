"""Checks for models with parts of your own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from .generation.config import GenerationConfig
from .generation.inputs import GenerationInputs
from .generation.mixin import GenerationMixin
from .generation.slots import NewTokens
from .models.language_model import LanguageModel
from .nn.layer import Show
from .nn.processes import on_host


#: A pass without a cache, from the decoder's tokens, `[batch, length]`, to logits.
Uncached = Callable[[Integer[Array, "batch length"]], Float[Array, "batch length vocab"]]

# By how much numbers may differ, relative to the largest of them.
_TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}


def check_decoding(
    model: GenerationMixin,
    *args: Any,
    uncached: Uncached | None = None,
    num_tokens: int = 6,
    num_beams: int = 3,
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Checks that all of a model's ways of decoding give the same numbers.

    These are: without a cache; with a cache, one or more tokens at a time, after wrong
    drafts too, and each row in slots of its own; and as `generate` does, with beams that
    share a cache. Run this for a model with a part of your own.

    **Arguments:**

    - `args`, `kwargs`: those of the model's `generate`, such as `input_ids`.
    - `uncached`: the pass without a cache, with which all others are compared. By default
        it is the model's own, and a difference is traced to its layer. A model that is not
        a `LanguageModel` needs this argument.
    - `num_tokens`: how many tokens are decoded.
    - `num_beams`: how many beams `generate` follows.
    - `seed`: of the random tokens.

    **Raises** `AssertionError` that says which way differs, at which token, by how much,
    and in which layer first; `TypeError` if `uncached` is needed.
    """
    model = eqx.nn.inference_mode(_without_settings(model))
    call = model.prepare_generation(*args, max_new_tokens=num_tokens, **kwargs)
    inputs = model.encode_source(call.inputs)
    reference = eqx.filter_jit(uncached or _uncached(model, inputs))
    ids = _random_ids(model, inputs, num_tokens, seed)
    expected = on_host(reference(jnp.asarray(ids)))
    for sizes in ([1] * num_tokens, [num_tokens], _uneven(num_tokens)):
        logits = _cached(model, inputs, ids, sizes)
        _compare(
            logits,
            expected,
            f"decoding {sizes} tokens at a time with a cache",
            lambda sizes=sizes: _first_layer(model, inputs, ids, sizes),
        )
    logits = _cached(model, inputs, ids, _uneven(num_tokens), drafts=True)
    _compare(logits, expected, "decoding after wrong drafts, in other slots for each row,")
    for beams in (1, num_beams):
        _check_generate(model, reference, args, kwargs, num_tokens, beams)


def _without_settings(model: Any) -> Any:
    """`model`, with no generation settings except the ids of its special tokens."""
    config = model.generation_config
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    plain = GenerationConfig(**{name: getattr(config, name) for name in names})
    return eqx.tree_at(lambda m: m.generation_config, model, plain)


def _random_ids(
    model: GenerationMixin, inputs: GenerationInputs, length: int, seed: int
) -> Integer[np.ndarray, "batch length"]:
    """The last token of each prompt, then random tokens."""
    prompt = np.maximum(on_host(inputs.prompt), 0)[:, -1:]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(model.vocab_size, size=(len(prompt), length - 1))
    return np.concatenate([prompt, drawn], axis=1).astype(np.int32)


def _uneven(length: int) -> list[int]:
    """One token first, then two at a time."""
    return [1, *[2] * ((length - 1) // 2), *[1] * ((length - 1) % 2)]


def _uncached(model: GenerationMixin, inputs: GenerationInputs) -> Uncached:
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"{type(model).__name__} is no language model of this library: pass "
            "uncached=..., a function from its decoder's tokens to logits."
        )

    def logits(ids: Integer[Array, "batch length"]) -> Float[Array, "batch length vocab"]:
        source = inputs.encoder_outputs
        decoded = model.decoder(
            model.decoder_embed_tokens.lookup(ids),
            source=source,
            show=Show(attentions=True),
        )
        return model.logits(decoded, source)

    return logits


def _calls(
    ids: Integer[np.ndarray, "batch length"],
    sizes: Sequence[int],
    first: Integer[np.ndarray, " batch"] | None = None,
) -> Iterator[NewTokens]:
    """The new tokens of each call, if the calls decode `sizes` tokens; `first` is the slot
    of the first token of each row, by default 0."""
    batch, length = ids.shape
    begin = np.zeros(batch, np.int32) if first is None else first
    own = np.arange(length + begin.max())[None] - begin[:, None]
    start = 0
    for size in sizes:
        tokens = ids[:, start : start + size]
        positions = np.arange(start, start + size, dtype=np.int32)
        positions = np.broadcast_to(positions, tokens.shape)
        mask = (own >= 0)[:, None] & (own[:, None] <= positions[..., None])
        first_slot = np.int32(start) if first is None else first + np.int32(start)
        yield NewTokens(
            jnp.asarray(tokens),
            jnp.asarray(positions),
            jnp.asarray(mask[:, None]),
            jnp.asarray(first_slot),
        )
        start += size


def _cached(
    model: GenerationMixin,
    inputs: GenerationInputs,
    ids: Integer[np.ndarray, "batch length"],
    sizes: Sequence[int],
    *,
    drafts: bool = False,
) -> Float[np.ndarray, "batch length vocab"]:
    """The logits, decoded `sizes` tokens at a time with a cache; with `drafts`, each time
    after other tokens in the same slots, which are not the same for all rows."""
    step, logits = eqx.filter_jit(model.generation_step), list[np.ndarray]()
    first = np.arange(len(ids), dtype=np.int32) if drafts else None
    num_slots = ids.shape[1] + (len(ids) - 1 if drafts else 0)
    cache = model.init_generation_cache(inputs, 1, num_slots)
    for new in _calls(ids, sizes, first):
        if drafts:
            wrong = jnp.asarray((on_host(new.ids) + 1) % model.vocab_size)
            cache = step(eqx.tree_at(lambda x: x.ids, new, wrong), cache)[2]
        decoded, _, cache = step(new, cache)
        logits.append(on_host(decoded))
    return np.concatenate(logits, axis=1)


def _compare(
    found: np.ndarray,
    expected: np.ndarray,
    what: str,
    where: Callable[[], str] = lambda: "",
) -> None:
    """Checks that two arrays agree, `[batch, length, ...]`."""
    if found.shape != expected.shape:
        raise AssertionError(
            f"{what} gives the shape {list(found.shape)}, without a cache it is "
            f"{list(expected.shape)}."
        )
    tolerance = _TOLERANCES[str(expected.dtype)]
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    limit = tolerance * np.max(np.abs(b[finite]), initial=np.finfo(float).tiny)
    differs = ~((np.abs(a - b) <= limit) | (a == b))
    if np.any(differs):
        axes = tuple(i for i in range(differs.ndim) if i != 1)
        token = int(np.argmax(np.any(differs, axis=axes)))
        largest = np.max(np.abs(a - b)[differs])
        raise AssertionError(
            f"{what} differs from the pass without a cache by {largest:.2g}, where "
            f"{limit:.2g} is allowed, from token {token} on.{where()}"
        )


def _first_layer(
    model: GenerationMixin,
    inputs: GenerationInputs,
    ids: Integer[np.ndarray, "batch length"],
    sizes: Sequence[int],
) -> str:
    """The first layer of the decoder whose states differ, in a sentence."""
    if not isinstance(model, LanguageModel):
        return ""
    source, show = inputs.encoder_outputs, Show(hidden_states=True)
    decoder, embed = model.decoder, model.decoder_embed_tokens.lookup
    tokens = embed(jnp.asarray(ids))
    expected: Any = decoder(tokens, source=source, show=show).hidden_states
    cache, found = model.init_generation_cache(inputs, 1, ids.shape[1]), list[Any]()
    for new in _calls(ids, sizes):
        decoded, cache = decoder.step(
            embed(new.ids),
            cache,
            position_ids=new.positions,
            mask=new.mask,
            first_slot=new.first_slot,
            show=show,
        )
        found.append(decoded.hidden_states)
    names = ["the embeddings", *(f"layer {i}" for i in range(len(decoder.layers)))]
    types = ["", *(f", a {type(layer).__name__}" for layer in decoder.layers)]
    for name, kind, *states in zip(names, types, expected, *found, strict=True):
        right, *parts = map(on_host, states)
        try:
            _compare(np.concatenate(parts, axis=1), right, "")
        except AssertionError:
            return f" The decoder's states differ first in {name}{kind}."
    return " The decoder's states are the same: it is the head that differs."


def _check_generate(
    model: GenerationMixin,
    uncached: Uncached,
    args: Sequence[Any],
    kwargs: Any,
    num_tokens: int,
    num_beams: int,
) -> None:
    """Checks the probabilities that `generate` gives its tokens."""
    output = model.generate(
        *args,
        **kwargs,
        max_new_tokens=num_tokens,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        output_token_log_probs=True,
    )
    sequences, lengths = on_host(output.sequences), on_host(output.lengths)
    found = on_host(output.token_log_probs)
    begin = sequences.shape[1] - num_tokens
    for beam in range(num_beams):
        ids = sequences[beam::num_beams]
        logits = on_host(uncached(jnp.asarray(ids[:, :-1]))).astype(np.float32)
        log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        expected = np.take_along_axis(log_probs, ids[:, 1:, None], axis=-1)[..., 0]
        is_new = np.arange(num_tokens) < lengths[beam::num_beams, None] - begin
        _compare(
            np.where(is_new, found[beam::num_beams], 0),
            np.where(is_new, expected[:, begin - 1 :], 0),
            f"generate with num_beams={num_beams} says of its answer {beam} what",
        )
