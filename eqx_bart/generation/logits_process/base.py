"""What all logits processors have in common."""

import abc
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ...config import as_id_tuple
from ...nn.checks import ArrayLike
from ...nn.matmul import power_of_two


Scores = Float[Array, "rows vocab"]
Tokens = Integer[Array, "rows max_length"]
Lengths = Integer[Array, "rows 1"]

#: A setting that is a number. It is an operand of the compiled program, so that programs
#: are compiled for no other value of it.
Number = Float[ArrayLike, ""] | Integer[ArrayLike, ""]
#: A setting of token ids, with -1 after the last of them up to a length that many share.
Ids = Integer[ArrayLike, " ids"]


class LogitsProcessor(eqx.Module):
    """The base of all processors. Subclass it for one of your own.

    Keep what may change from call to call in arrays: a program is compiled for each value
    of anything else.
    """

    @abc.abstractmethod
    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        """The scores of the next token, changed.

        **Arguments:**

        - `input_ids`: the rows so far, the prompt first. A row is a beam, or a sample; the
            rows of one input follow one another. Padding of the prompt is -1. Only the
            first `length` places count. Where tokens are drafted, there is a row for each
            of them, as if it was right.
        - `scores`: logits, or log-probabilities for beams; float32 or better.
        - `length`: how many places of each row are decided. It goes with `input_ids` and
            `scores` as it is: `scores[i]` are those of what comes at `length[i, 0]`.
        """

    def for_batch(self, batch_size: int, padded_size: int) -> "LogitsProcessor":
        """This processor, for a batch of inputs whose last one is repeated up to
        `padded_size`. To be overridden by one that holds something for each input.

        **Raises** `ValueError` if it is not for `batch_size` inputs.
        """
        return self


def number(value: Any) -> Number:
    """A number as an array; an integer as one of 32 bits."""
    if isinstance(value, jax.Array):
        return value
    array = np.asarray(value)
    return array.astype(np.int32) if np.issubdtype(array.dtype, np.integer) else array


def id_array(token_ids: Any) -> Ids:
    """One or more token ids as `Ids`."""
    if isinstance(token_ids, jax.Array | np.ndarray):
        return token_ids
    return padded(as_id_tuple(token_ids), -1, np.int32)


def padded(values: Iterable[Any], fill: Any, dtype: Any) -> np.ndarray:
    """The values as an array of one axis, with `fill` after them up to a power of two."""
    values = list(values)
    size = power_of_two(len(values))
    return np.asarray(values + [fill] * (size - len(values)), dtype)


def columns(token_ids: Integer[ArrayLike, "*ids"], scores: Scores) -> Array:
    """Where these tokens are in `scores`; those that are negative are outside of it."""
    return jnp.where(jnp.asarray(token_ids) < 0, scores.shape[-1], token_ids)


def forbid(
    scores: Scores,
    token_ids: Ids,
    *,
    when: bool | Bool[Array, "rows 1"],
) -> Scores:
    """The scores, with -inf for these tokens where `when` holds."""
    places = columns(token_ids, scores)
    kept = jnp.where(when, -jnp.inf, scores.at[:, places].get(mode="fill", fill_value=0))
    return scores.at[:, places].set(kept, mode="drop")


def count(input_ids: Tokens, length: Integer[Array, "#rows 1"]) -> Lengths:
    """How many of the first `length` places are not padding."""
    place = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
    is_token = (input_ids >= 0) & (place < length)
    return jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)
