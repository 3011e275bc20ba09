"""Constraining rows to a set of sequences."""

from collections.abc import Iterable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from ...nn.checks import ArrayLike
from ...nn.matmul import power_of_two
from .base import Lengths, LogitsProcessor, padded, Scores, Tokens


#: The token ids of each allowed answer.
Answers = Iterable[Iterable[int | np.integer]]


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Constrains rows to a set of sequences: where HF calls a `prefix_allowed_tokens_fn` at
    each step, this walks a trie that is built once.

    Each input has a root; or one root is that of all. The trie's edges are in the order of
    the nodes that they leave, then of their tokens. Arrays are padded up to a power of two,
    so that many constraints share a program.

    **Fields:**

    - `roots`: where each input begins; a scalar for all inputs.
    - `starts`: for each node the first of its edges; the next entry is their end.
    - `tokens`, `targets`: the token of each edge, and the node it leads to.
    - `max_children`: no more edges leave one node.
    """

    roots: Integer[ArrayLike, "*inputs"]
    starts: Integer[ArrayLike, " nodes+1"]
    tokens: Integer[ArrayLike, " edges"]
    targets: Integer[ArrayLike, " edges"]
    max_children: int = eqx.field(static=True)

    def __init__(
        self,
        sequences: Answers | None = None,
        prompt: Sequence[int] = (),
        *,
        by_input: Iterable[Answers] | None = None,
    ):
        """Builds the trie.

        **Arguments:**

        - `sequences`: the token ids of each allowed answer, its end of sequence included.
            After an answer without one, everything is allowed.
        - `prompt`: what comes before each answer, usually the model's
            `decoder_start_token_id` alone.
        - `by_input`: instead of `sequences`, those of each input of a batch.

        **Raises** `ValueError` if there is no sequence, or an empty one, or a negative id;
        `TypeError` unless there is one of `sequences` and `by_input`.
        """
        of_inputs = by_input if sequences is None else [sequences]
        if of_inputs is None or not (sequences is None or by_input is None):
            raise TypeError(
                "PrefixConstrainedLogitsProcessor needs sequences, for all inputs, or "
                "by_input, sequences for each: one of the two."
            )
        children: list[dict[int, int]] = []
        roots = [_add_trie(children, answers, prompt) for answers in of_inputs]
        if not roots:
            raise ValueError("PrefixConstrainedLogitsProcessor: by_input has no inputs.")
        edges = [edge for node in children for edge in sorted(node.items())]
        counts = [len(node) for node in children]
        self.roots = np.asarray(roots if sequences is None else roots[0], np.int32)
        self.starts = padded(np.cumsum([0, *counts]), len(edges), np.int32)
        self.tokens = padded((token for token, _ in edges), 0, np.int32)
        self.targets = padded((target for _, target in edges), 0, np.int32)
        self.max_children = power_of_two(max(counts))

    def for_batch(
        self, batch_size: int, padded_size: int
    ) -> "PrefixConstrainedLogitsProcessor":
        if self.roots.ndim == 0:
            return self
        if len(self.roots) != batch_size:
            raise ValueError(
                f"PrefixConstrainedLogitsProcessor: by_input is for {len(self.roots)} "
                f"inputs, and the batch has {batch_size}."
            )
        missing = (0, padded_size - batch_size)
        roots = jnp if isinstance(self.roots, jax.Array) else np
        return eqx.tree_at(
            lambda p: p.roots, self, roots.pad(self.roots, missing, mode="edge")
        )

    def __call__(self, input_ids: Tokens, scores: Scores, length: Lengths) -> Scores:
        starts, tokens = jnp.asarray(self.starts), jnp.asarray(self.tokens)
        node = self._walk(input_ids, length)
        first, end = starts[node], starts[node + 1]
        edge = first[:, None] + jnp.arange(self.max_children, dtype=jnp.int32)[None]
        token = tokens.at[edge].get(mode="fill", fill_value=0)
        token = jnp.where(edge < end[:, None], token, scores.shape[1])
        rows = jnp.arange(len(scores), dtype=jnp.int32)[:, None]
        kept = scores.at[rows, token].get(mode="fill", fill_value=0)
        allowed = jnp.full_like(scores, -jnp.inf).at[rows, token].set(kept, mode="drop")
        return jnp.where((node < 0)[:, None] | (first == end)[:, None], scores, allowed)

    def _walk(self, input_ids: Tokens, length: Lengths) -> Integer[Array, " rows"]:
        """The node that each row has reached; -1 if its sequence is over."""
        starts, tokens = jnp.asarray(self.starts), jnp.asarray(self.tokens)
        targets = jnp.asarray(self.targets)

        def down(i: Integer[Array, ""], node: Integer[Array, " rows"]) -> Array:
            token = input_ids[:, i]
            first, end = starts[node], starts[node + 1]
            edge = self._search(tokens, token, first, end)
            is_edge = (node >= 0) & (edge < end) & (tokens[edge] == token)
            target = jnp.where(is_edge, targets[edge], -1)
            return jnp.where((token < 0) | (i >= length[:, 0]), node, target)

        roots = jnp.repeat(jnp.asarray(self.roots), len(input_ids) // self.roots.size)
        return jax.lax.fori_loop(0, jnp.max(length), down, roots)

    def _search(
        self,
        tokens: Integer[Array, " edges"],
        token: Integer[Array, " rows"],
        low: Integer[Array, " rows"],
        high: Integer[Array, " rows"],
    ) -> Integer[Array, " rows"]:
        """The first edge in `[low, high)` with this token or a larger one, or `high`."""
        for _ in range(self.max_children.bit_length()):
            middle = (low + high) // 2
            is_right = (low < high) & (tokens[middle] < token)
            low, high = (
                jnp.where(is_right, middle + 1, low),
                jnp.where(is_right, high, jnp.maximum(middle, low)),
            )
        return low


def _add_trie(
    children: list[dict[int, int]], answers: Answers, prompt: Sequence[int]
) -> int:
    """Adds a trie to the nodes. **Returns** its root."""
    root = len(children)
    children.append({})
    for sequence in answers:
        answer = [int(token) for token in sequence]
        if not answer or min(answer) < 0:
            raise ValueError(
                "PrefixConstrainedLogitsProcessor: a sequence needs token ids, 0 or "
                f"more; one is {answer}."
            )
        node = root
        for token in (*prompt, *answer):
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
    if not children[root]:
        raise ValueError("PrefixConstrainedLogitsProcessor: there are no sequences.")
    return root
