"""Greedy search and sampling: one token after the other, the likeliest or one at random."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Key

from ..config import as_id_tuple
from .output import GenerationOutput
from .state import Decode, GenerationState
from .top_k import take, top_k


class SampleState(GenerationState):
    """The state of greedy search and of sampling; a row is a sample.

    **Fields** beside those of `GenerationState`:

    - `lengths`: the number of tokens of each row that has ended, and the `max_length` of
        all others.
    - `log_probs`: the log-probabilities of the new tokens, if they are asked for.
    - `keys`: for sampling, what each row draws by.

    Source: HF's `GenerationMixin._sample`.
    """

    lengths: Integer[Array, "batch rows"]
    log_probs: Float[Array, "batch rows steps"] | None
    keys: Key[Array, "batch rows"] | None

    @classmethod
    def init(
        cls, fields: dict[str, Any], dtype: jnp.dtype, keys: Key[Array, " batch"] | None
    ) -> "SampleState":
        """The state before the first step; see `initial_fields`."""
        shape = fields["ancestors"].shape
        row = jnp.arange(shape[1], dtype=jnp.int32)
        own: dict[str, Any] = {"ancestors": jnp.broadcast_to(row[:, None], shape)}
        if keys is not None:
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
            keys = fold(keys, row)
        return cls(
            **fields | own,
            lengths=jnp.full(shape[:2], fields["input_ids"].shape[-1], jnp.int32),
            log_probs=(
                jnp.zeros(shape, dtype) if fields["config"].output_token_log_probs else None
            ),
            keys=keys,
        )

    @property
    def is_finished(self) -> Bool[Array, "batch rows"]:
        """Which rows have ended."""
        return self.lengths <= self.length

    @property
    def is_done(self) -> Bool[Array, ""]:
        return jnp.all(self.is_finished)

    def step(self, decode: Decode) -> "SampleState":
        logits, cross_attentions, cache = self.decode(decode)
        scores = self.process(logits)
        tokens = self._choose(scores)
        is_end = jnp.isin(
            tokens, jnp.asarray(as_id_tuple(self.config.eos_token_id), jnp.int32)
        )
        tokens = jnp.where(self.is_finished, self.config.pad_token_id, tokens)
        lengths = jnp.where(is_end & ~self.is_finished, self.length + 1, self.lengths)
        log_probs = self.log_probs
        if log_probs is not None:
            new = _log_prob(scores, tokens)
            new = jnp.where(self.is_finished, 0, new).astype(log_probs.dtype)
            log_probs = log_probs.at[:, :, self.num_new].set(new)
        return eqx.tree_at(
            lambda state: (
                state.input_ids,
                state.num_new,
                state.cache,
                state.records,
                state.lengths,
                state.log_probs,
            ),
            self,
            (
                self.input_ids.at[:, :, self.length].set(tokens),
                self.num_new + 1,
                cache,
                self.record(scores, logits, cross_attentions),
                lengths,
                log_probs,
            ),
            is_leaf=lambda x: x is None,
        )

    def _choose(
        self, scores: Float[Array, "batch rows vocab"]
    ) -> Integer[Array, "batch rows"]:
        if self.keys is not None:  # the largest of Gumbel-perturbed scores is a sample
            noise = jax.vmap(jax.vmap(self._noise, (0, None)), (0, None))
            scores = scores + noise(self.keys, scores[0, 0])
        _, tokens = top_k(scores.reshape(-1, scores.shape[-1]), 1)
        return tokens.reshape(scores.shape[:-1])

    def _noise(
        self, key: Key[Array, ""], scores: Float[Array, " vocab"]
    ) -> Float[Array, " vocab"]:
        key = jax.random.fold_in(key, self.num_new)
        return jax.random.gumbel(key, scores.shape, scores.dtype)

    def output(self) -> GenerationOutput:
        rows, max_length = self.ancestors.shape[1], self.input_ids.shape[-1]
        input_ids = self.input_ids.reshape(-1, max_length)
        num_new = self.lengths - self.prompt_length
        is_end = jnp.arange(self.ancestors.shape[2]) >= num_new[..., None]
        log_probs = self.log_probs
        return GenerationOutput(
            sequences=jnp.where(input_ids < 0, self.config.pad_token_id, input_ids),
            lengths=self.lengths.reshape(-1),
            scores=self._recorded("scores"),
            logits=self._recorded("logits"),
            token_log_probs=(
                None if log_probs is None else log_probs.reshape(-1, log_probs.shape[-1])
            ),
            cross_attentions=self._cross_attentions(
                jnp.where(is_end, -1, jnp.arange(rows)[:, None])
            ),
        )

    def decided(self) -> list[np.ndarray]:
        lengths = np.minimum(self.lengths, self.length).reshape(-1)
        input_ids = np.asarray(self.input_ids).reshape(len(lengths), -1)
        pairs = zip(input_ids, lengths, strict=True)
        return [row[self.prompt_length : length] for row, length in pairs]


def _log_prob(
    scores: Float[Array, "batch rows vocab"], tokens: Integer[Array, "batch rows"]
) -> Float[Array, "batch rows"]:
    chosen = take(scores, tokens[..., None])[..., 0]
    return chosen - jax.nn.logsumexp(scores, axis=-1)
