"""Constraining rows to a set of sequences."""

from collections.abc import Iterable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from .base import LogitsProcessor, Scores, Tokens


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Constrains rows to a set of sequences: where HF calls a `prefix_allowed_tokens_fn` at
    each step, this walks a trie that is built once.

    The trie's edges are in the order of the nodes that they leave, then of their tokens.
    Node 0 is the root.

    **Fields:**

    - `starts`: for each node the first of its edges; the last entry is the end.
    - `tokens`, `targets`: the token of each edge, and the node it leads to.
    - `max_children`: the largest number of edges that leave one node.
    """

    starts: Integer[Array, " nodes+1"]
    tokens: Integer[Array, " edges"]
    targets: Integer[Array, " edges"]
    max_children: int = eqx.field(static=True)

    def __init__(
        self, sequences: Iterable[Iterable[int | np.integer]], prompt: Sequence[int] = ()
    ):
        """Builds the trie.

        **Arguments:**

        - `sequences`: the token ids of each allowed answer, its end of sequence included.
            After an answer without one, everything is allowed.
        - `prompt`: what comes before each answer, usually the model's
            `decoder_start_token_id` alone.

        **Raises** `ValueError` if there is no sequence, or an empty one, or a negative id.
        """
        children: list[dict[int, int]] = [{}]
        for sequence in sequences:
            answer = [int(token) for token in sequence]
            if not answer or min(answer) < 0:
                raise ValueError(
                    "PrefixConstrainedLogitsProcessor: a sequence needs token ids, 0 or "
                    f"more; one is {answer}."
                )
            node = 0
            for token in (*prompt, *answer):
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
        if not children[0]:
            raise ValueError("PrefixConstrainedLogitsProcessor: there are no sequences.")
        edges = [edge for node in children for edge in sorted(node.items())]
        counts = [len(node) for node in children]
        self.starts = jnp.asarray(np.cumsum([0, *counts]), jnp.int32)
        self.tokens = jnp.asarray([token for token, _ in edges], jnp.int32)
        self.targets = jnp.asarray([target for _, target in edges], jnp.int32)
        self.max_children = max(counts)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        node = self._walk(input_ids, length)
        first, end = self.starts[node], self.starts[node + 1]
        edge = first[:, None] + jnp.arange(self.max_children)
        is_edge = edge < end[:, None]
        token = self.tokens.at[edge].get(mode="fill", fill_value=0)
        token = jnp.where(is_edge, token, scores.shape[1])
        rows = jnp.arange(len(scores))[:, None]
        kept = scores.at[rows, token].get(mode="fill", fill_value=0)
        allowed = jnp.full_like(scores, -jnp.inf).at[rows, token].set(kept, mode="drop")
        return jnp.where((node < 0)[:, None] | (first == end)[:, None], scores, allowed)

    def _walk(
        self, input_ids: Tokens, length: Integer[Array, ""]
    ) -> Integer[Array, " rows"]:
        """The node that each row has reached; -1 if its sequence is over."""

        def down(i: Integer[Array, ""], node: Integer[Array, " rows"]) -> Array:
            token = input_ids[:, i]
            first, end = self.starts[node], self.starts[node + 1]
            edge = self._search(token, first, end)
            is_edge = (node >= 0) & (edge < end) & (self.tokens[edge] == token)
            target = jnp.where(is_edge, self.targets[edge], -1)
            return jnp.where(token < 0, node, target)

        root = jnp.zeros(len(input_ids), jnp.int32)
        return jax.lax.fori_loop(0, length, down, root)

    def _search(
        self,
        token: Integer[Array, " rows"],
        low: Integer[Array, " rows"],
        high: Integer[Array, " rows"],
    ) -> Integer[Array, " rows"]:
        """The first edge in `[low, high)` with this token or a larger one, or `high`."""
        for _ in range(self.max_children.bit_length()):
            middle = (low + high) // 2
            is_right = (low < high) & (self.tokens[middle] < token)
            low, high = (
                jnp.where(is_right, middle + 1, low),
                jnp.where(is_right, high, jnp.maximum(middle, low)),
            )
        return low
