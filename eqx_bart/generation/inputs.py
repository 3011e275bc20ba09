"""What a generation starts from: checked, and padded to usual shapes."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Integer, Shaped

from ..nn.checks import ArrayLike, error_if, Mask, outside, widened
from ..nn.matmul import power_of_two
from ..nn.mesh import is_spread, put_rows, rows_sharding
from ..nn.processes import on_host
from ..nn.tree import leaves


#: Shorter sequences are padded to this length.
SMALLEST_LENGTH = 16


class GenerationInputs(eqx.Module):
    """What a generation starts from. Token ids are -1 where they are masked.

    **Fields:**

    - `prompt`: the first tokens of each row.
    - `input_ids`: the source; for a decoder alone the prompt, as in HF.
    - `encoder_outputs`: what an encoder has made of the source, which only the model reads:
        any pytree of arrays, each with a row for each input.
    - `encoder_attention_mask`: which positions of the source are not padding.
    - `source_offset`: how far the source has been moved to the left.
    - `inputs_embeds`: embeddings of the source, instead of `input_ids`, which a mask then
        comes with.
    """

    prompt: Integer[ArrayLike, "batch prompt"]
    input_ids: Integer[ArrayLike, "batch tokens"] | None = None
    encoder_outputs: Any = None
    encoder_attention_mask: Bool[ArrayLike, "batch source"] | None = None
    source_offset: Integer[Array, " batch"] | None = None
    inputs_embeds: Float[ArrayLike, "batch source d_model"] | None = None

    @property
    def source_length(self) -> int | None:
        """The length of the source; `None` if only the model knows it."""
        mask, ids = self.encoder_attention_mask, self.input_ids
        if mask is not None:
            return mask.shape[1]
        return None if ids is None or self.encoder_outputs is not None else ids.shape[1]

    def bucketed(self, limit: int) -> "GenerationInputs":
        """These inputs, with rows and tokens padded to a power of two, but not beyond
        `limit` tokens, so that few programs are compiled. Rows that are split over devices
        stay so, as many on each of them."""
        sharding = rows_sharding(self)
        num_rows = usual_rows(len(self.prompt), sharding)

        pad = functools.partial(_pad, num_rows=num_rows, limit=limit)
        prompt, mask, offset = self.prompt, self.encoder_attention_mask, self.source_offset
        padded = GenerationInputs(
            # A prompt of one token is the usual one, and needs no prefill.
            _pad_rows(prompt, num_rows) if prompt.shape[1] == 1 else pad(prompt, -1),
            None if self.input_ids is None else pad(self.input_ids, -1),
            jax.tree.map(
                lambda x: pad(x, 0) if _is_by_position(x, mask) else _pad_rows(x, num_rows),
                self.encoder_outputs,
            ),
            None if mask is None else pad(mask, 0),
            None if offset is None else as_jax(_pad_rows(offset, num_rows)),
            inputs_embeds=None
            if self.inputs_embeds is None
            else pad(self.inputs_embeds, 0),
        )
        return put_rows(padded, sharding, num_rows)

    def trimmed(
        self, prompt: Integer[ArrayLike, "batch prompt"], source_length: int | None
    ) -> "GenerationInputs":
        """What `encode_source` has made of bucketed inputs, without their padding, and with
        this prompt, which has none."""
        mask, library = self.encoder_attention_mask, array_library(self)

        def cut(x: Any) -> Any:
            places = (slice(len(prompt)), slice(source_length))
            places = places if _is_by_position(x, mask) else places[:1]
            return as_jax(library.asarray(x)[places])

        return dataclasses.replace(jax.tree.map(cut, self), prompt=prompt)


def _is_by_position(x: Any, mask: Bool[ArrayLike, "batch source"] | None) -> bool:
    """Whether an array has an entry for each position of the source."""
    return mask is not None and x.shape[:2] == mask.shape


def usual_length(length: int, limit: int, smallest: int = SMALLEST_LENGTH) -> int:
    """The length that so many tokens are padded to: quarters of a power of two, or
    multiples of `smallest`, but not beyond `limit`."""
    quarter = max(power_of_two(length) // 8, smallest)
    return max(min(-(-length // quarter) * quarter, limit), length)


def usual_rows(size: int, sharding: NamedSharding | None) -> int:
    """How many rows `size` are padded to: a power of two on each device."""
    parts = 1 if sharding is None else size // sharding.shard_shape((size,))[0]
    return parts * power_of_two(size // parts)


def _pad(x: ArrayLike, value: int, num_rows: int, limit: int) -> ArrayLike:
    """`x`, padded along its second axis, and to `num_rows`."""
    length = x.shape[1]
    usual = min(power_of_two(max(length, SMALLEST_LENGTH)), limit)
    missing = max(usual - length, 0)
    widths = [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)]
    return _pad_rows(array_library(x).pad(x, widths, constant_values=value), num_rows)


def _pad_rows(x: ArrayLike, size: int) -> ArrayLike:
    """`x`, with its last row repeated up to `size`; no rows become one of zeros."""
    library = array_library(x)
    last = x[-1:] if len(x) else library.zeros_like(x, shape=(1, *x.shape[1:]))
    return library.concatenate([x, library.repeat(last, size - len(x), axis=0)])


def array_library(*arrays: Any) -> Any:
    """What computes with these arrays: JAX if they are traced, or spread over devices;
    otherwise NumPy, because JAX would compile a program for each shape."""
    return jnp if is_traced(arrays) or is_spread(arrays) else np


def as_jax(x: ArrayLike) -> Array:
    """`x`, on JAX's default device if it is NumPy's: without a program for each shape."""
    return x if isinstance(x, jax.Array) else jax.device_put(x)


def is_traced(*values: Any) -> bool:
    """Whether any array in `values` is being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves(*values))


def masked_ids(
    ids: Integer[ArrayLike, "batch length"],
    attention_mask: Mask[ArrayLike, "batch length"] | None,
    vocab_size: int,
    names: tuple[str, str],
) -> Integer[ArrayLike, "batch length"]:
    """The ids, -1 where they are masked; `names` are what errors call the two arrays.

    **Raises** `ValueError` if there are none, if one lies outside the vocabulary, or if a
    row is masked completely.
    """
    if ids.shape[1] == 0:
        raise ValueError(f"{names[0]} are empty: a sequence needs at least one token.")
    ids = error_if(widened(ids), *outside(ids, vocab_size, names[0], "the vocabulary"))
    if attention_mask is None:
        return ids
    mask, empty, message = _empty_rows(attention_mask, names[1])
    ids = array_library(ids, mask).where(mask, ids, -1)
    return error_if(ids, empty, message)


def masked_states(
    states: Float[ArrayLike, "batch source d_model"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    name: str,
) -> tuple[Float[ArrayLike, "batch source d_model"], Bool[ArrayLike, "batch source"]]:
    """States, or embeddings, of the source and their mask; all of them by default.

    **Raises** `ValueError` if a row is masked completely; `name` is what the error calls
    the mask.
    """
    if attention_mask is None:
        return states, np.ones(states.shape[:2], bool)
    mask, empty, message = _empty_rows(attention_mask, name)
    return error_if(states, empty, message), mask


def _empty_rows(
    attention_mask: Mask[ArrayLike, "batch length"], name: str
) -> tuple[Bool[ArrayLike, "batch length"], Bool[ArrayLike, "batch"], str]:
    """The mask as booleans, which rows it masks completely, and what the error says."""
    mask = array_library(attention_mask).asarray(attention_mask, bool)
    empty = ~mask.any(axis=1)
    if is_traced(empty):
        return mask, empty, f"{name} masks every token of a row."
    empty = on_host(empty)
    row = np.argmax(empty) if len(empty) else 0
    return mask, empty, f"{name} masks every token of row {row}."


def align_left(
    x: Shaped[Array, "batch length *rest"], mask: Bool[Array, "batch length"]
) -> tuple[Shaped[Array, "batch length *rest"], Integer[Array, " batch"]]:
    """`x` with the padding on the left of its rows moved to the right; and how much there
    is."""
    offset = jnp.argmax(mask, axis=1)
    return _roll(x, -offset), offset


def align_right(ids: Integer[Array, "batch length"]) -> Integer[Array, "batch length"]:
    """The ids with the padding on their right moved to the left."""
    return _roll(ids, jnp.argmax(ids[:, ::-1] >= 0, axis=1))


def _roll(x: Array, shift: Integer[Array, " batch"]) -> Array:
    return jax.vmap(functools.partial(jnp.roll, axis=0))(x, shift)


def with_start_token(
    prompt: Integer[ArrayLike, "batch prompt"], token_id: int
) -> Integer[ArrayLike, "batch prompt2"]:
    """The prompt, after `token_id` if no row begins with it, as in HF.

    A prompt that is being traced is not changed.
    """
    if is_traced(prompt):
        return prompt
    prompt = on_host(prompt)
    first = np.argmax(prompt >= 0, axis=1)
    rows = np.arange(len(prompt))
    if len(prompt) == 0 or np.any(prompt[rows, first] == token_id):
        return prompt
    longer = np.pad(prompt, ((0, 0), (1, 0)), constant_values=-1)
    longer[rows, first] = token_id
    return longer
