"""Attention weights as heat maps."""

from collections.abc import Sequence
from typing import Any, Literal, TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ..generation.output import GenerationOutput
from ..nn.output import ModelOutput
from ..nn.processes import on_host
from .drawing import labels, require_matplotlib, width


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Kind = Literal["cross", "encoder", "decoder"]
_Weights = Float[np.ndarray, "heads queries keys"]

#: Where the outputs have them, and what the axes are: what attends, and to what.
_FIELDS: dict[Kind, tuple[str, ...]] = {
    "cross": ("cross_attentions",),
    "encoder": ("encoder_attentions", "attentions"),
    "decoder": ("decoder_attentions", "attentions"),
}
_SIDES: dict[Kind, tuple[str, str]] = {
    "cross": ("target", "source"),
    "encoder": ("source", "source"),
    "decoder": ("target", "target"),
}
_CELL, _CHARACTER = 0.24, 0.085  # inches
_LARGEST = 60.0  # inches


def plot_attention(
    outputs: ModelOutput,
    tokens: Sequence[str],
    target_tokens: Sequence[str] | None = None,
    *,
    kind: Kind = "cross",
    layer: int | None = None,
    head: int | Literal["all"] | None = None,
    row: int = 0,
) -> "Figure":
    """Draws which tokens attend to which: a column for each token that is attended to, and
    a row for each that attends.

    Attention to the source is an alignment. Of what `generate` returns, each row is a new
    token, with the attention that led to it. Of what a model returns, each row is a token
    that the decoder reads, with the attention that leads to the next one.

    **Arguments:**

    - `outputs`: what `generate` or a model returns with `output_attentions=True`.
    - `tokens`: those that are attended to, without the padding after them: of the source,
        or for the decoder's self-attention of the target. Tokens of bytes, such as BART's
        `Ġthe`, are written as they are read, with `␣` for a space.
    - `target_tokens`: for attention to the source, the tokens that attend; of what
        `generate` returns, all that are new. By default they are numbered.
    - `kind`: `"cross"` for the decoder's attention to the source, `"encoder"` or
        `"decoder"` for self-attention.
    - `layer`: which layer; by default the mean of all.
    - `head`: which head; `"all"` for a map of each; by default their mean.
    - `row`: which row of the batch, or of the answers.

    **Returns** a figure of matplotlib, which has a `savefig`.

    **Raises** `ValueError` if the outputs have no such weights, or if the tokens are more
    or fewer than those of the row; `ImportError` without matplotlib, which is in the extra
    `plot`.
    """
    require_matplotlib()
    weights = _weights(outputs, kind, layer, head, row)
    if kind == "cross":
        target_tokens = _target_tokens(outputs, target_tokens, weights.shape[1], row)
    elif target_tokens is None:
        target_tokens = tokens
    else:
        raise ValueError(f"The {kind}'s tokens attend to themselves: give them once.")
    return _heat_maps(
        _without_padding(weights, len(target_tokens), len(tokens)),
        (labels(target_tokens), labels(tokens)),
        _SIDES[kind],
        _titles(kind, layer, head, len(weights)),
    )


def _target_tokens(
    outputs: ModelOutput, tokens: Sequence[str] | None, steps: int, row: int
) -> Sequence[str]:
    """Those that attend to the source."""
    if not isinstance(outputs, GenerationOutput):
        return [str(i) for i in range(steps)] if tokens is None else tokens
    prompt = outputs.sequences.shape[1] - steps
    num_new = int(on_host(outputs.lengths)[row]) - prompt
    if tokens is None:
        return [str(i) for i in range(num_new)]
    if len(tokens) != num_new:
        raise ValueError(
            f"There are {len(tokens)} target tokens, and row {row} has {num_new} new ones: "
            "leave out the prompt, and what follows the end."
        )
    return tokens


def _titles(
    kind: Kind, layer: int | None, head: int | Literal["all"] | None, count: int
) -> tuple[str, list[str]]:
    """That of the figure, and those of its maps."""
    what = "cross-attention" if kind == "cross" else f"{kind} self-attention"
    what += ", mean of layers" if layer is None else f", layer {layer}"
    if head == "all":
        return what, [f"head {i}" for i in range(count)]
    return "", [what + (", mean of heads" if head is None else f", head {head}")]


def _weights(
    outputs: ModelOutput,
    kind: Kind,
    layer: int | None,
    head: int | Literal["all"] | None,
    row: int,
) -> _Weights:
    """Those that are drawn, a map for each."""
    if kind not in _FIELDS:
        raise ValueError(f"There is no kind {kind!r}: there are {', '.join(_FIELDS)}.")
    names = _FIELDS[kind]
    layers = next((outputs[name] for name in names if name in outputs), None)
    if layers is None:
        raise ValueError(
            f"This {type(outputs).__name__} has no {names[0]}: ask for them with "
            "output_attentions=True."
        )
    numbers = range(len(layers))
    chosen = numbers if layer is None else [_index(layer, len(layers), "layer")]
    if silent := [i for i in chosen if layers[i] is None]:
        raise ValueError(f"Layer {silent[0]} shows no weights of attention.")
    maps = [_of_heads(on_host(layers[i]), head, row) for i in chosen]
    return np.mean(maps, axis=0)


def _of_heads(
    layer: Float[np.ndarray, "rows heads queries keys"],
    head: int | Literal["all"] | None,
    row: int,
) -> _Weights:
    weights = layer[_index(row, len(layer), "row")].astype(np.float32)
    if head == "all":
        return weights
    if head is None:
        return weights.mean(axis=0, keepdims=True)
    return weights[[_index(head, len(weights), "head")]]


def _index(index: int, size: int, what: str) -> int:
    if not -size <= index < size:
        raise ValueError(f"There is no {what} {index}: there are {size}.")
    return index


def _without_padding(weights: _Weights, queries: int, keys: int) -> _Weights:
    _, most_queries, most_keys = weights.shape
    for count, most in ((queries, most_queries), (keys, most_keys)):
        if not 0 < count <= most:
            raise ValueError(f"There are {count} tokens, and attention has {most} there.")
    if np.any(weights[:, :queries, keys:]):
        raise ValueError(
            f"There are {keys} tokens, and attention to others of the {most_keys}: give "
            "all but the padding after them."
        )
    return weights[:, :queries, :keys]


def _heat_maps(
    weights: _Weights,
    tokens: tuple[list[str], list[str]],
    sides: tuple[str, str],
    titles: tuple[str, list[str]],
) -> "Figure":
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    columns = int(np.ceil(np.sqrt(len(weights))))
    lines = -(-len(weights) // columns)
    widest = [max(map(width, x)) for x in tokens]
    counts = columns * len(tokens[1]), lines * len(tokens[0])
    cell = min(_CELL, _LARGEST / max(counts))
    size = (
        max(counts[0] * cell, 3.2) + widest[0] * _CHARACTER + 1.2,
        counts[1] * cell + widest[1] * _CHARACTER + 0.4 * lines + 0.8,
    )
    figure = Figure(size, layout="compressed")
    colours, norm = "magma_r", Normalize(0, float(weights.max()))
    for i, x in enumerate(weights):
        axes = figure.add_subplot(lines, columns, i + 1)
        axes.imshow(x, colours, norm)
        axes.set_title(titles[1][i], size="medium")
        _label(axes, tokens, sides, cell)
    figure.suptitle(titles[0], size="medium")
    figure.colorbar(
        ScalarMappable(norm, colours),
        ax=figure.axes,
        label="attention",
        fraction=0.05,
        aspect=30,
    )
    return figure


def _label(
    axes: "Axes", tokens: tuple[list[str], list[str]], sides: tuple[str, str], cell: float
) -> None:
    """Writes the tokens on the left and above, where no other map is."""
    style: dict[str, Any] = {"size": 40 * cell, "parse_math": False}
    queries, keys = tokens
    upright = max(map(width, keys)) <= 2
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_yticks(range(len(queries)), queries, **style)
    axes.set_xticks(range(len(keys)), keys, rotation=0 if upright else 90, **style)
    axes.set(ylabel=sides[0], xlabel=sides[1])
    axes.tick_params(length=0)
    axes.label_outer()
