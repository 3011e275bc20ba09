"""The answers of beam search as a tree."""

from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Integer

from ..generation.output import GenerationOutput
from ..nn.processes import on_host
from .drawing import (
    check_log_probs,
    Colours,
    colours,
    labels,
    Page,
    require_matplotlib,
    starts,
    width,
)


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_GAP = 2  # columns between a token and the next


def plot_beams(
    output: GenerationOutput,
    tokenizer: Any,
    *,
    row: int = 0,
    num_return_sequences: int | None = None,
) -> "Figure":
    """Draws the answers that beam search gave to an input, as a tree: what they begin with
    in common is drawn once.

    The best answer is on the first line; the others leave it where they differ. A token has
    the colour of its log-probability, and the line to it is the thicker the likelier it
    is. After each answer is its score. Tokens of the same step are below one another.

    **Arguments:**

    - `output`: what `generate` returns with `num_beams`, `output_token_log_probs=True`, and
        `num_return_sequences` for the number of answers.
    - `tokenizer`: one of transformers'; its `convert_ids_to_tokens` is used.
    - `row`: a row of the output; drawn are all answers to the same input.
    - `num_return_sequences`: how many answers an input has, as `generate` was told. By
        default those that come from one beam, which with `num_beam_groups` are the answers
        of one group.

    **Returns** a figure of matplotlib, which has a `savefig`.

    **Raises** `ValueError` if the output lacks what is drawn, or has no such row, or not as
    many answers to each input; `ImportError` without matplotlib, which is in the extra
    `plot`.
    """
    require_matplotlib()
    if output.beam_indices is None or output.sequences_scores is None:
        raise ValueError("There are no beams: generate with num_beams.")
    if output.token_log_probs is None:
        raise ValueError("generate with output_token_log_probs=True, for the colours.")
    first_beams = on_host(output.beam_indices)[:, 0]
    if not -len(first_beams) <= row < len(first_beams):
        raise ValueError(f"There is no row {row}: there are {len(first_beams)}.")
    rows = _rows(first_beams, row, num_return_sequences)
    log_probs = on_host(output.token_log_probs)[rows].astype(np.float32)
    begin = output.sequences.shape[1] - log_probs.shape[1]
    sequences = on_host(output.sequences)[rows].tolist()
    lengths = on_host(output.lengths)[rows].tolist()
    answers = [tuple(x[begin:n]) for x, n in zip(sequences, lengths, strict=True)]
    (root,) = labels(tokenizer.convert_ids_to_tokens(sequences[0][begin - 1 : begin]))
    texts = [labels(tokenizer.convert_ids_to_tokens([*x])) for x in answers]
    scores = [f"{x:.2f}" for x in on_host(output.sequences_scores)[rows].tolist()]
    return _draw(root, answers, texts, log_probs, scores)


def _rows(
    first_beams: Integer[np.ndarray, " rows"], row: int, num_return_sequences: int | None
) -> Integer[np.ndarray, " answers"]:
    """The rows of the answers to the input that `row` answers."""
    if num_return_sequences is None:
        # Of the beams of an input, or of a group, only the first goes on from the prompt.
        return np.flatnonzero(first_beams == first_beams[row])
    rows = np.arange(len(first_beams))
    if num_return_sequences < 1 or len(rows) % num_return_sequences:
        raise ValueError(
            f"num_return_sequences={num_return_sequences}: the output has {len(rows)} rows."
        )
    return rows.reshape(-1, num_return_sequences)[rows[row] // num_return_sequences]


def _draw(
    root: str,
    answers: list[tuple[int, ...]],
    texts: list[list[str]],
    log_probs: np.ndarray,
    scores: list[str],
) -> "Figure":
    first, lines = _layout(answers)
    depth = max(map(len, texts))
    widths = [max(width(x[i]) for x in texts if i < len(x)) for i in range(depth)]
    columns = starts([width(root), *widths], _GAP)
    ends = [columns[len(x)] + width(x[-1]) + 1 for x in texts]
    page = Page(max(end + len(x) for end, x in zip(ends, scores, strict=True)), len(lines))
    page.token(0, 0, root, Colours("lightgrey", "black"))
    for i, answer in enumerate(answers):
        check_log_probs(log_probs[i])
        looks = colours(log_probs[i])
        tokens = [root, *texts[i]]
        for step in range(len(answer)):
            if first[answer[: step + 1]] == i:
                begin = columns[step] + width(tokens[step]), lines[first[answer[:step]]]
                place = columns[step + 1], lines[i]
                page.edge(begin, place, float(np.exp(log_probs[i, step])))
                page.token(*place, tokens[step + 1], looks[step])
        page.write(ends[i], lines[i], scores[i], weight="bold")
    return page.figure


def _layout(
    answers: list[tuple[int, ...]],
) -> tuple[dict[tuple[int, ...], int], list[int]]:
    """The first answer that begins with each prefix, on whose line this is drawn; and the
    line of each answer, so that those with a prefix in common follow one another."""
    first: dict[tuple[int, ...], int] = {}
    for i, answer in enumerate(answers):
        for length in range(len(answer) + 1):
            first.setdefault(answer[:length], i)
    paths = [[first[x[:n]] for n in range(len(x) + 1)] for x in answers]
    order = sorted(range(len(answers)), key=paths.__getitem__)
    return first, [order.index(i) for i in range(len(answers))]
