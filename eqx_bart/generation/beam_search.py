"""Beam search and beam sampling."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Key

from ..nn.processes import on_host
from .logits_process import LogitsProcessor
from .places import Places, put_at, take_at
from .state import AbstractStrategy, processed, Progress, Result
from .top_k import take, top_k, top_k_of_few


#: The score of what may not be chosen, in HF's beam search.
DEAD = -1e9


class Hypotheses(eqx.Module):
    """Rows with their scores, the best first.

    **Fields:**

    - `input_ids`, `ancestors`: as in `Progress`.
    - `scores`: summed over the row's tokens; for rows that have ended, divided by the
        length penalty.
    - `log_probs`: of each new token, if they are asked for.
    """

    input_ids: Integer[Array, "batch rows max_length"]
    ancestors: Integer[Array, "batch rows steps"]
    scores: Float[Array, "batch rows"]
    log_probs: Float[Array, "batch rows steps"] | None

    def select(self, rows: Integer[Array, "batch new"]) -> "Hypotheses":
        """These rows of each input."""

        def select(x: Array) -> Array:
            index = rows.reshape(rows.shape + (1,) * (x.ndim - 2))
            return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")

        return jax.tree.map(select, self)


class BeamSearch(AbstractStrategy):
    """Beam search and beam sampling; a row is a beam.

    **Fields:**

    - `running_scores`, `running_log_probs`: those of the beams that go on; see
        `Hypotheses`.
    - `finished`: the best rows that have ended; their scores are NaN where those of the
        beams became NaN first.
    - `is_finished`: which of these exist.
    - `is_settled`: which inputs have their final answer.
    - `keys`: for beam sampling, the key of each input.

    Source: HF's `GenerationMixin._beam_search`; length normalisation is that of
    arXiv:1609.08144, section 7, without its constants.
    """

    running_scores: Float[Array, "batch rows"]
    running_log_probs: Float[Array, "batch rows steps"] | None
    finished: Hypotheses
    is_finished: Bool[Array, "batch rows"]
    is_settled: Bool[Array, " batch"]
    keys: Key[Array, " batch"] | None

    @classmethod
    def init(
        cls, progress: Progress, dtype: jnp.dtype, keys: Key[Array, " batch"] | None
    ) -> tuple["BeamSearch", Progress]:
        """The strategy before the first step, and the progress; `dtype` is that of the
        scores, and there is one of `keys` for each input."""
        batch, rows, steps = progress.ancestors.shape
        log_probs = None
        if progress.settings.output_token_log_probs:
            log_probs = jnp.zeros((batch, rows, steps), dtype)
        # All beams are the same at first, so only one may go on.
        scores = jnp.full((batch, rows), DEAD, dtype)
        search = cls(
            running_scores=scores.at[:, 0].set(0),
            running_log_probs=log_probs,
            finished=Hypotheses(progress.input_ids, progress.ancestors, scores, log_probs),
            is_finished=jnp.zeros((batch, rows), bool),
            is_settled=jnp.zeros(batch, bool),
            keys=keys,
        )
        return search, progress

    def scores(
        self, logits: Float[Array, "batch rows 1 vocab"]
    ) -> Float[Array, "batch rows 1 vocab"]:
        return jax.nn.log_softmax(logits)

    def choose(
        self,
        scores: Float[Array, "batch rows 1 vocab"],
        processors: tuple[LogitsProcessor, ...],
        progress: Progress,
        drafts: Integer[Array, "batch rows 0"],
    ) -> tuple[Float[Array, "batch rows 1 vocab"], "BeamSearch", Progress]:
        scores = processed(processors, scores, progress, drafts)
        candidates = self._candidates(scores[:, :, 0], progress)
        is_end = _is_end(candidates, progress)
        going_on = eqx.tree_at(
            lambda c: c.scores, candidates, candidates.scores + _dead_if(is_end)
        )
        running = going_on.select(top_k_of_few(going_on.scores, progress.num_rows)[1])
        is_end |= self._ends_now(is_end, progress)
        finished, is_finished = self._finish(candidates, is_end, progress)
        # Of a group, HF compares what has ended in this step as well.
        best = candidates if progress.settings.num_beam_groups > 1 else running
        settled = _settle(best.scores[:, :1], finished, is_finished, progress)
        is_lost = jnp.any(jnp.isnan(running.scores), axis=1) & ~self.is_settled
        finished = eqx.tree_at(
            lambda rows: rows.scores,
            finished,
            jnp.where(is_lost[:, None], jnp.nan, finished.scores),
        )
        search = BeamSearch(
            running_scores=running.scores,
            running_log_probs=running.log_probs,
            finished=finished,
            is_finished=is_finished,
            is_settled=self.is_settled | is_lost | settled | jnp.all(is_end, axis=1),
            keys=self.keys,
        )
        counts = self.is_going_on(progress).astype(jnp.int32)
        return (
            scores,
            search,
            progress.advance(running.input_ids, running.ancestors, counts),
        )

    def _candidates(
        self, scores: Float[Array, "batch rows vocab"], progress: Progress
    ) -> Hypotheses:
        """The best continuations: enough that `num_beams` of them do not end the row."""
        _, rows, vocab = scores.shape
        count = rows * max(2, 1 + len(progress.settings.eos_token_id))
        totals = scores + self.running_scores[..., None]
        if self.keys is None:
            values, places = top_k(totals, count)
        else:  # the largest of Gumbel-perturbed scores are a sample without replacement
            noise = _noise(self.keys, totals, progress.num_new)
            _, places = top_k(totals + noise, count)
            values = take(totals, places)
        row, token = places // vocab, places % vocab
        beams = Hypotheses(
            progress.input_ids,
            progress.ancestors,
            self.running_scores,
            self.running_log_probs,
        )
        chosen = beams.select(row)
        log_probs = chosen.log_probs
        if log_probs is not None:
            new = take(scores, places)
            log_probs = put_at(log_probs, progress.num_new, new[..., None])
        return Hypotheses(
            put_at(chosen.input_ids, progress.length, token[..., None]),
            put_at(chosen.ancestors, progress.num_new, row[..., None]),
            values,
            log_probs,
        )

    def _ends_now(
        self, is_end: Bool[Array, "batch candidates"], progress: Progress
    ) -> Bool[Array, "#batch 1"]:
        """Whether all candidates end with this step, since it is the last. In a group that
        stops early they do not, if enough others have ended, as in HF."""
        settings, rows = progress.settings, progress.num_rows
        is_last = progress.num_new + 1 == settings.max_new_tokens
        if settings.num_beam_groups == 1 or settings.early_stopping is not True:
            return is_last
        have_ended = jnp.concatenate([self.is_finished, is_end[:, :rows]], axis=1)
        num_ended = jnp.sum(have_ended, axis=1, keepdims=True, dtype=jnp.int32)
        return is_last & (num_ended < rows)

    def _finish(
        self,
        candidates: Hypotheses,
        is_end: Bool[Array, "batch candidates"],
        progress: Progress,
    ) -> tuple[Hypotheses, Bool[Array, "batch rows"]]:
        """The best rows that have ended, those of this step included."""
        rows = progress.num_rows
        is_new = is_end & (jnp.arange(is_end.shape[1], dtype=jnp.int32)[None] < rows)
        scores = candidates.scores / _length_penalty(
            progress, progress.num_new, candidates.scores.dtype
        )
        candidates = eqx.tree_at(lambda c: c.scores, candidates, scores + _dead_if(~is_new))
        merged = jax.tree.map(
            lambda *x: jnp.concatenate(x, axis=1), self.finished, candidates
        )
        best = top_k_of_few(merged.scores, rows)[1]
        are_finished = jnp.concatenate([self.is_finished, is_new], axis=1)
        is_finished = jnp.take_along_axis(are_finished, best, axis=1)

        def unless_settled(new: Array, old: Array) -> Array:
            is_settled = self.is_settled.reshape((-1,) + (1,) * (new.ndim - 1))
            return jnp.where(is_settled, old, new)

        return jax.tree.map(
            unless_settled,
            (merged.select(best), is_finished),
            (self.finished, self.is_finished),
        )

    def is_going_on(self, progress: Progress) -> Bool[Array, "batch rows"]:
        shape = progress.input_ids.shape[:2]
        return jnp.broadcast_to(~self.is_settled[:, None], shape)

    def result(self, progress: Progress) -> Result:
        return answers(self.finished, progress)

    def decided(self, progress: Progress) -> list[np.ndarray]:
        """With beams, the prefix that all rows that may still win have in common."""
        return [common_prefix(rows) for rows in self.may_win(progress)]

    def may_win(self, progress: Progress) -> list[list[np.ndarray]]:
        """The new tokens of all rows of each input that may still win."""
        begin = progress.prompt_length
        ends = on_host(progress.lengths)[:, 0]
        running = on_host(progress.input_ids)
        finished = on_host(self.finished.input_ids)
        lengths = begin + np.sum(on_host(self.finished.ancestors) >= 0, axis=-1)
        is_finished = on_host(self.is_finished)
        found: list[list[np.ndarray]] = []
        for i, is_settled in enumerate(on_host(self.is_settled)):
            rows = [row[begin:n] for row, n in zip(finished[i], lengths[i], strict=True)]
            if not is_settled:
                rows = [
                    row for row, is_row in zip(rows, is_finished[i], strict=True) if is_row
                ]
                rows += [row[begin : ends[i]] for row in running[i]]
            else:
                rows = rows[:1]
            found.append(rows)
        return found


def answers(rows: Hypotheses, progress: Progress) -> Result:
    """The result, of rows that have ended, the best first."""
    settings = progress.settings
    best = jax.tree.map(lambda x: x[:, : settings.num_return_sequences], rows)
    ancestors = best.ancestors
    batch, _, steps = ancestors.shape
    offset = progress.num_rows * jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    input_ids = best.input_ids.reshape(-1, best.input_ids.shape[-1])
    num_new = jnp.sum(ancestors >= 0, axis=-1, dtype=jnp.int32)
    lengths = progress.prompt_length + num_new.reshape(-1)
    place = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
    input_ids = jnp.where(place < lengths[:, None], input_ids, settings.pad_token_id)
    is_lost = jnp.isnan(best.scores).reshape(-1, 1)
    is_new = place >= progress.prompt_length
    log_probs = best.log_probs
    return Result(
        progress.padded(jnp.where(is_lost & is_new, -1, input_ids)),
        jnp.where(is_lost[:, 0], progress.prompt_length + settings.max_new_tokens, lengths),
        ancestors,
        best.scores.reshape(-1),
        jnp.where(ancestors < 0, -1, ancestors + offset).reshape(-1, steps),
        None if log_probs is None else log_probs.reshape(-1, steps),
    )


def _noise(
    keys: Key[Array, " batch"],
    totals: Float[Array, "batch rows vocab"],
    step: Places,
) -> Float[Array, "batch rows vocab"]:
    def noise(key: Key[Array, ""], step: Integer[Array, ""]) -> Array:
        key = jax.random.fold_in(key, step)
        return jax.random.gumbel(key, totals.shape[1:], totals.dtype)

    return jax.vmap(noise)(keys, jnp.broadcast_to(step[:, 0], keys.shape))


def _is_end(candidates: Hypotheses, progress: Progress) -> Bool[Array, "batch candidates"]:
    newest = take_at(candidates.input_ids, progress.length)
    return jnp.isin(newest, jnp.asarray(progress.settings.eos_token_id))


def _settle(
    best: Float[Array, "batch 1"],
    finished: Hypotheses,
    is_finished: Bool[Array, "batch rows"],
    progress: Progress,
) -> Bool[Array, " batch"]:
    """The inputs whose search may end, by `early_stopping` and the best score there is."""
    settings, early_stopping = progress.settings, progress.settings.early_stopping
    length = progress.num_new
    if early_stopping == "never":
        longest = jnp.asarray(settings.max_new_tokens) - 1
        length = jnp.where(jnp.asarray(settings.length_penalty) > 0, longest, length)
    best_possible = best / _length_penalty(progress, length, best.dtype)
    worst = jnp.min(finished.scores, axis=1, keepdims=True)
    worst = jnp.where(is_finished, worst, DEAD)
    is_settled = ~jnp.any(best_possible > worst, axis=1)
    return is_settled | (jnp.all(is_finished, axis=1) & (early_stopping is True))


def _length_penalty(
    progress: Progress, step: Places, dtype: jnp.dtype
) -> Float[Array, "#batch #rows"]:
    """What scores are divided by after this step."""
    return jnp.asarray(progress.settings.penalties, dtype)[step]


def common_prefix(rows: list[np.ndarray]) -> np.ndarray:
    """What all of these begin with."""
    length = min(map(len, rows))
    shortened = np.stack([row[:length] for row in rows])
    is_common = np.all(shortened == shortened[0], axis=0)
    return shortened[0, : np.argmin([*is_common, False])]


def _dead_if(condition: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """What to add to scores, so that those where `condition` holds are not chosen."""
    return jnp.where(condition, DEAD, 0.0)
