"""What all logits processors have in common."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer


Scores = Float[Array, "rows vocab"]
Tokens = Integer[Array, "rows max_length"]


class LogitsProcessor(eqx.Module):
    """The base of all processors. Subclass it for one of your own."""

    @abc.abstractmethod
    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        """The scores of the next token, changed.

        **Arguments:**

        - `input_ids`: the rows so far, the prompt first. A row is a beam, or a sample; the
            rows of one input follow one another. Padding of the prompt is -1. Only the
            first `length` places count.
        - `scores`: logits, or log-probabilities for beams; float32 or better.
        - `length`: how many places are decided, the same for all rows.
        """


def forbid(
    scores: Scores,
    token_ids: tuple[int, ...],
    *,
    when: bool | Bool[Array, "#rows #one"] | Bool[Array, ""],
) -> Scores:
    """The scores, with -inf for these tokens where `when` holds."""
    columns = jnp.asarray(token_ids)
    kept = jnp.where(when, -jnp.inf, scores[:, columns])
    return scores.at[:, columns].set(kept)


def count(input_ids: Tokens, length: Integer[Array, ""]) -> Integer[Array, "rows 1"]:
    """How many of the first `length` places are not padding."""
    is_token = (input_ids >= 0) & (jnp.arange(input_ids.shape[1]) < length)
    return jnp.sum(is_token, axis=1, keepdims=True)
