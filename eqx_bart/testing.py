"""Checks for models with parts of your own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from .generation.config import GenerationConfig
from .generation.inputs import GenerationInputs
from .generation.mixin import GenerationMixin
from .generation.slots import NewTokens
from .models.language_model import LanguageModel
from .nn.layer import Show


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
    expected = reference(ids)
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
) -> Integer[Array, "batch length"]:
    """The last token of each prompt, then random tokens."""
    prompt = np.maximum(np.asarray(inputs.prompt), 0)[:, -1:]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(model.vocab_size, size=(len(prompt), length - 1))
    return jnp.asarray(np.concatenate([prompt, drawn], axis=1), jnp.int32)


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
    ids: Integer[Array, "batch length"],
    sizes: Sequence[int],
    first: Integer[Array, " batch"] | None = None,
) -> Iterator[NewTokens]:
    """The new tokens of each call, if the calls decode `sizes` tokens; `first` is the slot
    of the first token of each row, by default 0."""
    batch, length = ids.shape
    num_slots = length if first is None else length + int(first.max())
    start, slots = 0, jnp.arange(num_slots, dtype=jnp.int32)
    for size in sizes:
        tokens = ids[:, start : start + size]
        positions = jnp.arange(start, start + size, dtype=jnp.int32)
        positions = jnp.broadcast_to(positions, tokens.shape)
        begin = jnp.zeros(batch, jnp.int32) if first is None else first
        own = slots[None] - begin[:, None]
        mask = (own >= 0)[:, None] & (own[:, None] <= positions[..., None])
        first_slot = jnp.asarray(start) if first is None else first + start
        yield NewTokens(tokens, positions, mask[:, None], first_slot)
        start += size


def _cached(
    model: GenerationMixin,
    inputs: GenerationInputs,
    ids: Integer[Array, "batch length"],
    sizes: Sequence[int],
    *,
    drafts: bool = False,
) -> Float[Array, "batch length vocab"]:
    """The logits, decoded `sizes` tokens at a time with a cache; with `drafts`, each time
    after other tokens in the same slots, which are not the same for all rows."""
    step, logits = eqx.filter_jit(model.generation_step), list[Array]()
    first = jnp.arange(len(ids), dtype=jnp.int32) if drafts else None
    num_slots = ids.shape[1] + (len(ids) - 1 if drafts else 0)
    cache = model.init_generation_cache(inputs, 1, num_slots)
    for new in _calls(ids, sizes, first):
        if drafts:
            wrong = (new.ids + 1) % model.vocab_size
            cache = step(eqx.tree_at(lambda x: x.ids, new, wrong), cache)[2]
        decoded, _, cache = step(new, cache)
        logits.append(decoded)
    return jnp.concatenate(logits, axis=1)


def _compare(
    found: Array, expected: Array, what: str, where: Callable[[], str] = lambda: ""
) -> None:
    """Checks that two arrays agree, `[batch, length, ...]`."""
    if found.shape != expected.shape:
        raise AssertionError(
            f"{what} gives the shape {list(found.shape)}, without a cache it is "
            f"{list(expected.shape)}."
        )
    tolerance = _TOLERANCES[str(expected.dtype)]
    a, b = (np.asarray(x, np.float64) for x in (found, expected))
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
    ids: Integer[Array, "batch length"],
    sizes: Sequence[int],
) -> str:
    """The first layer of the decoder whose states differ, in a sentence."""
    if not isinstance(model, LanguageModel):
        return ""
    source, show = inputs.encoder_outputs, Show(hidden_states=True)
    decoder, embed = model.decoder, model.decoder_embed_tokens.lookup
    expected: Any = decoder(embed(ids), source=source, show=show).hidden_states
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
        try:
            _compare(jnp.concatenate(states[1:], axis=1), states[0], "")
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
    begin = output.sequences.shape[1] - num_tokens
    found: Any = output.token_log_probs
    for beam in range(num_beams):
        ids = output.sequences[beam::num_beams]
        lengths = output.lengths[beam::num_beams, None] - begin
        log_probs = jax.nn.log_softmax(uncached(ids[:, :-1]).astype(jnp.float32))
        expected = jnp.take_along_axis(log_probs, ids[:, 1:, None], axis=-1)[..., 0]
        expected = expected[:, begin - 1 :]
        is_new = jnp.arange(num_tokens, dtype=jnp.int32)[None] < lengths
        _compare(
            jnp.where(is_new, found[beam::num_beams], 0),
            jnp.where(is_new, expected, 0),
            f"generate with num_beams={num_beams} says of its answer {beam} what",
        )
