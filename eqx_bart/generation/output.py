"""What `generate` returns."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, Integer

from ..nn.mesh import ROWS, split, TENSOR
from ..nn.output import ModelOutput
from ..nn.processes import on_host
from .cache import GenerationCache
from .inputs import array_library, as_jax


class GenerationOutput(ModelOutput):
    """What `generate` returns, under HF's names. A field that does not exist, or that was
    not asked for, is `None`.

    There is a row for each answer. The answers for one input follow one another, the best
    first. The axis `steps` has the length `max_new_tokens` of the settings.

    **Fields:**

    - `sequences`: the token ids, the prompt first, and padding after the end of a row.
    - `lengths`: the number of tokens of each row, including the prompt and the end of
        sequence, but not the padding after it.
    - `sequences_scores`: with beams, the log-probability of each row, divided by its number
        of new tokens to the power `length_penalty`.
    - `scores`: with `output_scores`, what each step has chosen from: the logits, or with
        beams the log-probabilities, after all processors. A row is a beam or a sample.
        Steps that were not needed are 0.
    - `logits`: with `output_logits`, the same before all processors.
    - `beam_indices`: with beams, which row of `scores` each new token came from, and -1
        after the end.
    - `token_log_probs`: with `output_token_log_probs`, the log-probability of each new
        token, after all processors, and 0 after the end.
    - `cross_attentions`: with `output_attentions`, for each decoder layer, the attention
        to the source that led to each new token, and 0 after the end.
    - `cache`: with `output_cache`, what another `generate` may continue from.
    """

    sequences: Integer[Array, "rows max_length"]
    lengths: Integer[Array, " rows"]
    sequences_scores: Float[Array, " rows"] | None = None
    scores: Float[Array, "steps beams vocab"] | None = eqx.field(
        default=None, metadata=split(None, ROWS, TENSOR)
    )
    logits: Float[Array, "steps beams vocab"] | None = eqx.field(
        default=None, metadata=split(None, ROWS, TENSOR)
    )
    beam_indices: Integer[Array, "rows steps"] | None = None
    token_log_probs: Float[Array, "rows steps"] | None = None
    cross_attentions: tuple[Float[Array, "rows heads steps source"] | None, ...] | None = (
        None
    )
    cache: GenerationCache | None = None

    def part(
        self,
        rows: slice,
        beams: slice,
        tokens: slice,
        steps: slice,
        source: slice,
    ) -> "GenerationOutput":
        """These rows, or beams, with these of their tokens, steps and source positions;
        without the cache."""
        library = array_library(self)

        lengths = library.asarray(self.lengths) - library.int32(tokens.start)
        beam_indices = self.beam_indices
        if beam_indices is not None:
            beam_indices = library.asarray(beam_indices)
            first = library.int32(beams.start)
            beam_indices = library.where(beam_indices < 0, -1, beam_indices - first)
        return GenerationOutput(
            sequences=_cut(self.sequences, rows, tokens),
            lengths=_cut(lengths, rows),
            sequences_scores=_cut(self.sequences_scores, rows),
            scores=_cut(self.scores, steps, beams),
            logits=_cut(self.logits, steps, beams),
            beam_indices=_cut(beam_indices, rows, steps),
            token_log_probs=_cut(self.token_log_probs, rows, steps),
            cross_attentions=jax.tree.map(
                lambda x: _cut(x, rows, slice(None), steps, source), self.cross_attentions
            ),
        )

    def decode(
        self, tokenizer: Any, *, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """The text of each row, without the padding after its end.

        **Arguments:**

        - `tokenizer`: one of transformers'; its `batch_decode` gets the `options` too.
        - `skip_special_tokens`: whether to leave out the start, the end and their like.
        """
        lengths = on_host(self.lengths)
        rows = zip(on_host(self.sequences).tolist(), lengths, strict=True)
        return tokenizer.batch_decode(
            [row[:length] for row, length in rows],
            skip_special_tokens=skip_special_tokens,
            **options,
        )


def _cut(x: Any, *slices: slice) -> Any:
    return None if x is None else as_jax(array_library(x).asarray(x)[slices])
