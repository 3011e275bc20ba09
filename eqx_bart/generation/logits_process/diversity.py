"""A processor that depends on what other groups of beams have chosen."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Integer

from .base import Lengths, LogitsProcessor, Number, number, Scores, Tokens


class HammingDiversityLogitsProcessor(LogitsProcessor):
    """Disfavours the tokens that groups of beams before have chosen in the same step.

    **Fields:**

    - `diversity_penalty`: what is subtracted for each beam that has chosen a token.
    - `chosen`: the tokens of these beams of each input; `None` for the first group.

    Source: arXiv:1610.02424, section 4.1.
    """

    diversity_penalty: Number = eqx.field(converter=number)
    chosen: Integer[Array, "batch beams"] | None = None

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        if self.chosen is None:
            return scores
        chosen = jnp.repeat(self.chosen, len(scores) // len(self.chosen), axis=0)
        row = jnp.arange(len(scores), dtype=jnp.int32)[:, None]
        penalty = jnp.asarray(self.diversity_penalty, scores.dtype)
        return scores.at[row, chosen].add(-penalty)
