"""Drafts from the source: tokens that are likely to come next, since they came before.

Source: Saxena 2023, "Prompt Lookup Decoding"; HF's `PromptLookupCandidateGenerator`.
Verification is that of Leviathan et al. 2022 (arXiv:2211.17192), section 2.1, with drafts
that are certain.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ..nn.matmul import rows_of_weights
from .places import Places, places_from, take_at


#: The weight of the newest draft in the share of those that are right.
_WEIGHT = 0.25

#: What `copied` is before the first right draft: before every place of any length.
_NOWHERE = -(2**30)


class PromptLookup(eqx.Module):
    """Drafts the next tokens of each row: what has come after its last n-gram before, in
    the source or in the row itself. Where there is no such n-gram, or it has come more than
    once, a row goes on copying from where its last right draft was: a denoiser changes a
    token, and then copies again.

    Whether a draft is right is known also where it was not tried. So drafts are tried where
    it pays, and otherwise cost next to nothing.

    **Fields:**

    - `source`: where padding is -1.
    - `drafts`: for the next tokens; -1 where there is none.
    - `begin`: where the drafts come from, a place in the source and the row together.
    - `copied`: `begin` less the length of the row, of the last right drafts.
    - `right`: the share of drafts that are right, of the last ones.
    - `ngram_size`: the longest n-gram that counts.
    """

    source: Integer[Array, "batch source"]
    drafts: Integer[Array, "batch rows drafts"]
    begin: Integer[Array, "batch rows"]
    copied: Integer[Array, "batch rows"]
    right: Float[Array, "batch rows"]
    ngram_size: int = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        source: Integer[Array, "batch source"],
        input_ids: Integer[Array, "batch rows max_length"],
        length: Places,
        *,
        num_tokens: int,
        ngram_size: int,
    ) -> "PromptLookup":
        """Before the first step; `input_ids` and `length` are those of `Progress`."""
        shape = input_ids.shape[:2]
        lookup = cls(
            source,
            jnp.full((*shape, num_tokens), -1, jnp.int32),
            jnp.zeros(shape, jnp.int32),
            jnp.full(shape, _NOWHERE, jnp.int32),
            jnp.full(shape, 0.5, jnp.float32),
            ngram_size,
        )
        return lookup.with_drafts(input_ids, length)

    @property
    def num_tokens(self) -> int:
        """How many tokens are drafted at most."""
        return self.drafts.shape[2]

    def is_worthwhile(self, is_going_on: Bool[Array, "batch rows"]) -> Bool[Array, ""]:
        """Whether trying the drafts takes less time for each token than not to."""
        nth = jnp.arange(1, self.num_tokens + 1, dtype=jnp.float32)[None, None]
        gains = jnp.where(self.drafts >= 0, self.right[..., None] ** nth, 0)
        gain = jnp.sum(jnp.where(is_going_on[..., None], gains, 0))
        rows = self.right.size
        cost = rows * self.num_tokens / (rows + rows_of_weights())
        return gain > cost * jnp.sum(is_going_on, dtype=gain.dtype)

    def after(
        self,
        input_ids: Integer[Array, "batch rows max_length"],
        old: Places,
        new: Places,
        num_read: int,
    ) -> "PromptLookup":
        """Before the next step.

        **Arguments:**

        - `input_ids`: the rows after a step.
        - `old`, `new`: how long they were before it, and are now.
        - `num_read`: how many tokens of each row the step has read.
        """
        place = jnp.broadcast_to(places_from(old, self.num_tokens), self.drafts.shape)
        chosen = jnp.take_along_axis(input_ids, place, axis=2, mode="clip")
        is_known = (self.drafts >= 0) & (place < old[..., None] + num_read)
        is_right = (chosen == self.drafts) & (place < new[..., None]) & is_known
        num_right = jnp.sum(jnp.cumprod(is_right, axis=-1), axis=-1, dtype=jnp.int32)
        kept = (1 - _WEIGHT) ** num_right.astype(self.right.dtype)
        right = 1 - (1 - self.right) * kept
        is_wrong = num_right < jnp.sum(is_known, axis=-1, dtype=jnp.int32)
        right = jnp.where(is_wrong, (1 - _WEIGHT) * right, right)
        lookup = dataclasses.replace(
            self,
            copied=jnp.where(num_right > 0, self.begin - old, self.copied),
            right=right.astype(self.right.dtype),
        )
        return lookup.with_drafts(input_ids, new)

    def with_drafts(
        self, input_ids: Integer[Array, "batch rows max_length"], length: Places
    ) -> "PromptLookup":
        """The same, with drafts for rows of this length."""
        batch, rows, max_length = input_ids.shape
        step = jnp.arange(max_length, dtype=jnp.int32)[None, None]
        own = jnp.where(step < length[..., None], input_ids, -1)
        source = jnp.pad(self.source, ((0, 0), (0, 1)), constant_values=-1)
        source = jnp.broadcast_to(source[:, None], (batch, rows, source.shape[1]))
        history = jnp.concatenate([source.astype(own.dtype), own], axis=-1)
        place = jnp.arange(history.shape[2], dtype=jnp.int32)[None, None]
        goes_on = place == (length + self.copied)[..., None]
        worth = 2 * self._num_matched(history, own, length) + goes_on.astype(jnp.int32)
        worth = jnp.where(history < 0, 0, worth)
        begin = jnp.argmax(worth, axis=-1).astype(jnp.int32)
        drafted = places_from(begin, self.num_tokens)
        drafts = jnp.take_along_axis(history, drafted, axis=2, mode="fill", fill_value=-1)
        is_draft = take_at(worth, begin)[..., None] > 0
        is_draft &= jnp.cumprod(drafts >= 0, axis=-1) > 0
        return dataclasses.replace(
            self, drafts=jnp.where(is_draft, drafts, -1), begin=begin
        )

    def _num_matched(
        self,
        history: Integer[Array, "batch rows tokens"],
        own: Integer[Array, "batch rows max_length"],
        length: Places,
    ) -> Integer[Array, "batch rows tokens"]:
        """How many tokens before each one are those that the row ends with."""
        size = self.ngram_size
        before = jnp.pad(history, ((0, 0), (0, 0), (size, 0)), constant_values=-1)
        own = jnp.pad(own, ((0, 0), (0, 0), (size, 0)), constant_values=-1)
        is_alike = jnp.ones(history.shape, bool)
        matched = jnp.zeros(history.shape, jnp.int32)
        for i in range(1, size + 1):
            last = take_at(own, length + size - i)[..., None]
            token = jax.lax.slice_in_dim(
                before, size - i, size - i + history.shape[2], axis=2
            )
            is_alike &= (token == last) & (last >= 0)
            matched += is_alike.astype(jnp.int32)
        return matched
