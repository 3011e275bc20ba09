"""Diverse beam search: groups of beams that avoid one another's tokens."""

import dataclasses
from itertools import chain

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Key

from ..nn.processes import on_host
from .beam_search import answers, BeamSearch, common_prefix
from .logits_process import HammingDiversityLogitsProcessor, LogitsProcessor
from .places import take_at
from .state import AbstractStrategy, Progress, Result
from .top_k import top_k_of_few


class DiverseBeamSearch(AbstractStrategy):
    """Beam search in groups; the beams of a group are rows that follow one another.

    Each group is a beam search of its own, with its own answers and its own end. In each
    step the groups choose one after another, and what those before have chosen is
    disfavoured; a group that has ended chooses `pad_token_id`.

    **Fields:**

    - `groups`: the search of each group.

    Source: arXiv:1610.02424, algorithm 1; HF's `_group_beam_search` of transformers 4.56.2,
    which later versions load from `transformers-community/group-beam-search`.
    """

    groups: tuple[BeamSearch, ...]

    @classmethod
    def init(
        cls, progress: Progress, dtype: jnp.dtype, keys: Key[Array, " batch"] | None
    ) -> tuple["DiverseBeamSearch", Progress]:
        """The strategy before the first step, and the progress; see `BeamSearch.init`."""
        parts = _parts(progress)
        groups = tuple([BeamSearch.init(part, dtype, keys)[0] for _, part in parts])
        return cls(groups), progress

    def scores(
        self, logits: Float[Array, "batch rows 1 vocab"]
    ) -> Float[Array, "batch rows 1 vocab"]:
        return self.groups[0].scores(logits)

    def choose(
        self,
        scores: Float[Array, "batch rows 1 vocab"],
        processors: tuple[LogitsProcessor, ...],
        progress: Progress,
        drafts: Integer[Array, "batch rows 0"],
    ) -> tuple[Float[Array, "batch rows 1 vocab"], "DiverseBeamSearch", Progress]:
        results = list[tuple[Array, BeamSearch, Progress]]()
        chosen, parts = list[Array](), _parts(progress)
        for group, (first, part) in zip(self.groups, parts, strict=True):
            rows = slice(first, first + part.num_rows)
            result = group.choose(
                scores[:, rows], _after(processors, chosen), part, drafts[:, rows]
            )
            results.append(result)
            tokens = take_at(result[2].input_ids, progress.length)
            padding = progress.settings.pad_token_id
            chosen.append(jnp.where(group.is_settled[:, None], padding, tokens))
        all_scores, groups, new = zip(*results, strict=True)
        ancestors = [x.ancestors + first for x, (first, _) in zip(new, parts, strict=True)]
        new_progress = progress.advance(
            jnp.concatenate([x.input_ids for x in new], axis=1),
            jnp.concatenate(ancestors, axis=1),
            self.is_going_on(progress).astype(jnp.int32),
        )
        scores = jnp.concatenate(all_scores, axis=1)
        return scores, DiverseBeamSearch(groups), new_progress

    def is_going_on(self, progress: Progress) -> Bool[Array, "batch rows"]:
        settled = jnp.stack([group.is_settled for group in self.groups])
        is_going_on = ~jnp.all(settled, axis=0)
        return jnp.broadcast_to(is_going_on[:, None], progress.input_ids.shape[:2])

    def result(self, progress: Progress) -> Result:
        finished = [
            eqx.tree_at(lambda x: x.ancestors, group.finished, group.finished.ancestors + n)
            for group, (n, _) in zip(self.groups, _parts(progress), strict=True)
        ]
        rows = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *finished)
        count = progress.settings.num_return_sequences
        return answers(rows.select(top_k_of_few(rows.scores, count)[1]), progress)

    def decided(self, progress: Progress) -> list[np.ndarray]:
        """The prefix that all rows of all groups that may still win have in common."""
        pairs = zip(self.groups, _parts(progress), strict=True)
        may_win = zip(*[group.may_win(part) for group, (_, part) in pairs], strict=True)
        scores = np.stack([on_host(group.finished.scores)[:, 0] for group in self.groups])
        best = np.argmax(scores, axis=0)
        is_going_on = on_host(self.is_going_on(progress))[:, 0]
        return [
            common_prefix([*chain(*rows)] if is_going_on[i] else rows[best[i]])
            for i, rows in enumerate(may_win)
        ]


def _parts(progress: Progress) -> list[tuple[int, Progress]]:
    """The first row of each group, and the progress of the group."""
    size = progress.num_rows // progress.settings.num_beam_groups
    firsts = range(0, progress.num_rows, size)
    return [(first, progress.part(first, size)) for first in firsts]


def _after(
    processors: tuple[LogitsProcessor, ...], chosen: list[Array]
) -> tuple[LogitsProcessor, ...]:
    """The processors of the group after those that have chosen these tokens."""
    tokens = jnp.concatenate(chosen, axis=1) if chosen else None
    return tuple(
        [
            dataclasses.replace(x, chosen=tokens)
            if isinstance(x, HammingDiversityLogitsProcessor)
            else x
            for x in processors
        ]
    )
