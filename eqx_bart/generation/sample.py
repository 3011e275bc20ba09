"""Greedy search and sampling: token by token, the likeliest or one drawn at random."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Key

from ..nn.checks import unknown_if_nan
from ..nn.processes import on_host
from .logits_process import LogitsProcessor
from .places import places_from, put_at
from .state import AbstractStrategy, processed, Progress, Result
from .top_k import take, top_k


class Sampling(AbstractStrategy):
    """Greedy search and sampling; a row is a sample.

    **Fields:**

    - `lengths`: the number of tokens of each row that has ended; for the others,
        `max_length`.
    - `log_probs`: the log-probabilities of the new tokens, if they are asked for.
    - `keys`: for sampling, the key of each row.

    Source: HF's `GenerationMixin._sample`.
    """

    lengths: Integer[Array, "batch rows"]
    log_probs: Float[Array, "batch rows steps"] | None
    keys: Key[Array, "batch rows"] | None

    @classmethod
    def init(
        cls, progress: Progress, dtype: jnp.dtype, keys: Key[Array, " batch"] | None
    ) -> tuple["Sampling", Progress]:
        """The strategy before the first step, and the progress, in which each row continues
        its own tokens; `dtype` is that of the scores, and there is one of `keys` for each
        input."""
        shape = progress.ancestors.shape
        row = jnp.arange(shape[1], dtype=jnp.int32)
        own = jnp.broadcast_to(row[:, None], shape)
        if keys is not None:
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
            keys = fold(keys, row)
        settings = progress.settings
        max_length = progress.prompt_length + jnp.asarray(settings.max_new_tokens)
        sampling = cls(
            jnp.broadcast_to(max_length.astype(jnp.int32), shape[:2]),
            jnp.zeros(shape, dtype) if settings.output_token_log_probs else None,
            keys,
        )
        return sampling, eqx.tree_at(lambda p: p.ancestors, progress, own)

    def scores(
        self, logits: Float[Array, "batch rows new vocab"]
    ) -> Float[Array, "batch rows new vocab"]:
        return logits

    def choose(
        self,
        scores: Float[Array, "batch rows new vocab"],
        processors: tuple[LogitsProcessor, ...],
        progress: Progress,
        drafts: Integer[Array, "batch rows drafts"],
    ) -> tuple[Float[Array, "batch rows new vocab"], "Sampling", Progress]:
        settings = progress.settings
        scores = processed(processors, scores, progress, drafts)
        tokens = self._tokens(scores, progress)
        is_end = jnp.isin(tokens, jnp.asarray(settings.eos_token_id))
        goes_on = jnp.cumprod((tokens[..., :-1] == drafts) & ~is_end[..., :-1], axis=-1)
        place = places_from(progress.length, tokens.shape[2])
        is_taken = place < self.lengths[..., None]
        is_taken &= jnp.pad(goes_on > 0, ((0, 0), (0, 0), (1, 0)), constant_values=True)
        counts = jnp.sum(is_taken, axis=-1, dtype=jnp.int32)
        tokens = jnp.where(is_taken, tokens, settings.pad_token_id)
        lengths = jnp.where(
            jnp.any(is_end & is_taken, axis=-1), progress.length + counts, self.lengths
        )
        log_probs = self.log_probs
        if log_probs is not None:
            new = _log_prob(scores, tokens)
            new = jnp.where(is_taken, new, 0).astype(log_probs.dtype)
            log_probs = put_at(log_probs, progress.num_new, new)
        sampling = Sampling(lengths, log_probs, self.keys)
        input_ids = put_at(progress.input_ids, progress.length, tokens)
        return scores, sampling, progress.advance(input_ids, progress.ancestors, counts)

    def _tokens(
        self, scores: Float[Array, "batch rows new vocab"], progress: Progress
    ) -> Integer[Array, "batch rows new"]:
        shape = scores.shape[:-1]
        if self.keys is not None:  # the largest of Gumbel-perturbed scores is a sample
            step = places_from(progress.num_new, shape[2])
            keys = jnp.broadcast_to(self.keys[..., None], shape).reshape(-1)
            noise = _noise(keys, jnp.broadcast_to(step, shape).reshape(-1), scores)
            scores = scores + noise.reshape(scores.shape)
        best, tokens = top_k(scores.reshape(-1, scores.shape[-1]), 1)
        return unknown_if_nan(tokens, best).reshape(shape)

    def is_going_on(self, progress: Progress) -> Bool[Array, "batch rows"]:
        return progress.length < self.lengths

    def result(self, progress: Progress) -> Result:
        input_ids = progress.input_ids.reshape(-1, progress.input_ids.shape[-1])
        num_new = self.lengths - progress.prompt_length
        _, _, steps = progress.ancestors.shape
        is_end = jnp.arange(steps, dtype=jnp.int32)[None, None] >= num_new[..., None]
        log_probs = self.log_probs
        return Result(
            progress.padded(input_ids),
            self.lengths.reshape(-1),
            jnp.where(is_end, -1, progress.ancestors),
            token_log_probs=(
                None if log_probs is None else log_probs.reshape(-1, log_probs.shape[-1])
            ),
        )

    def decided(self, progress: Progress) -> list[np.ndarray]:
        lengths = np.minimum(on_host(self.lengths), on_host(progress.length)).reshape(-1)
        input_ids = on_host(progress.input_ids).reshape(len(lengths), -1)
        pairs = zip(input_ids, lengths, strict=True)
        return [row[progress.prompt_length : length] for row, length in pairs]


def _noise(
    keys: Key[Array, " rows"], steps: Integer[Array, " rows"], scores: Array
) -> Float[Array, "rows vocab"]:
    """Gumbel noise for the scores of a step of each row."""

    def noise(key: Key[Array, ""], step: Integer[Array, ""]) -> Float[Array, " vocab"]:
        key = jax.random.fold_in(key, step)
        return jax.random.gumbel(key, scores.shape[-1:], scores.dtype)

    return jax.vmap(noise)(keys, steps)


def _log_prob(
    scores: Float[Array, "batch rows new vocab"], tokens: Integer[Array, "batch rows new"]
) -> Float[Array, "batch rows new"]:
    flat = scores.reshape(-1, scores.shape[-1])
    chosen = take(flat, tokens.reshape(-1, 1)).reshape(tokens.shape)
    return chosen - jax.nn.logsumexp(scores, axis=-1)
