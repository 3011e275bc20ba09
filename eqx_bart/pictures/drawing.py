"""What the pictures share: tokens as they are read, colours, and a page of tokens.

Matplotlib is imported when something is drawn. Its global state, pyplot, is left alone.
"""

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


#: Where the colours of log-probabilities end: what is less likely is as dark.
LEAST = -6.0
_MOST_BYTES = 4  # of a character
#: Of a page, in inches: a character, a line, the margin, the scale of colours, and what is
#: written below it.
_CELL, _LINE, _MARGIN, _SCALE, _BELOW = 0.0836, 0.28, 0.15, np.array([2.4, 0.1]), 0.45
_FONT_SIZE = 10  # for which a character is as wide as a cell


def require_matplotlib() -> None:
    """**Raises** `ImportError` if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("Pictures are drawn by matplotlib: pip install 'eqx-bart[plot]'.")


def readable(tokens: Sequence[str]) -> list[str]:
    """Tokens as they are read: `Ġthe`, as BART's tokenizer writes it in bytes, is ` the`.
    A character of more than one token is with the last of them, and `…` with the others.
    What is not printed is escaped."""
    texts: list[str] = []
    while len(texts) < len(tokens):
        texts += _next_readable(tokens[len(texts) : len(texts) + _MOST_BYTES])
    return ["".join(x if x.isprintable() else _escaped(x) for x in y) for y in texts]


def _next_readable(tokens: Sequence[str]) -> list[str]:
    """The first token as it is read, and those that go on with its last character."""
    from tokenizers.decoders import ByteLevel

    for count in range(1, len(tokens) + 1):
        text = ByteLevel().decode([*tokens[:count]])
        if "\ufffd" not in text:
            return ["…"] * (count - 1) + [text]
    return [tokens[0]]  # it is not of bytes


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def labels(tokens: Sequence[str]) -> list[str]:
    """Tokens as they are read, with a mark for each space."""
    return [text.replace(" ", "␣") for text in readable(tokens)]


def width(text: str) -> int:
    """How many columns a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


class Colours(NamedTuple):
    """Of a token: its background, and the text on it."""

    background: str
    text: str


def colours(log_probs: Sequence[float] | np.ndarray) -> list[Colours]:
    """Pale for what is likely, and dark for what is not."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shares = np.clip(1 - np.asarray(log_probs) / LEAST, 0, 1)
    rgb = colormaps["magma"](shares)[:, :3]
    luminance = rgb**2.2 @ [0.2126, 0.7152, 0.0722]
    texts = np.where(luminance > 0.18, "black", "white")  # whichever differs more
    return [Colours(to_hex(x), str(text)) for x, text in zip(rgb, texts, strict=True)]


def check_log_probs(log_probs: np.ndarray) -> None:
    """**Raises** `ValueError` if a log-probability is NaN."""
    if len(places := np.flatnonzero(np.isnan(log_probs))):
        raise ValueError(f"The log-probability of token {places[0]} is NaN.")


class Page:
    """A figure of tokens in the colours of their log-probabilities, with the scale of
    these below. It is measured in columns and lines, from the top left."""

    def __init__(self, columns: float, lines: int):
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        inches = np.array([columns * _CELL, lines * _LINE])
        size = np.array([max(inches[0], _SCALE[0]), inches[1] + _BELOW]) + 2 * _MARGIN
        self.figure = Figure((float(size[0]), float(size[1])))
        page = np.concatenate([[_MARGIN, _BELOW + _MARGIN] / size, inches / size])
        scale = np.concatenate([[_MARGIN, _BELOW] / size, _SCALE / size])
        self._axes = self.figure.add_axes(tuple(page.tolist()))
        self._axes.set(xlim=(0, columns), ylim=(lines - 0.5, -0.5))
        self._axes.set_axis_off()
        self.figure.colorbar(
            ScalarMappable(Normalize(LEAST, 0), "magma"),
            cax=self.figure.add_axes(tuple(scale.tolist())),
            orientation="horizontal",
            extend="min",
            label="log-probability",
        )

    def write(self, column: float, line: float, text: str, **style: Any) -> None:
        """Writes a text, from its left."""
        from matplotlib import rcParams

        self._axes.text(
            column,
            line,
            text,
            family=["monospace", *rcParams["font.family"]],
            size=_FONT_SIZE,
            verticalalignment="center_baseline",
            parse_math=False,
            **style,
        )

    def token(self, column: float, line: float, text: str, look: Colours) -> None:
        """Writes a token on its colour."""
        from matplotlib.patches import Rectangle

        box = Rectangle((column, line - 0.4), width(text), 0.8, color=look.background)
        self._axes.add_patch(box)
        self.write(column, line, text, color=look.text)

    def edge(
        self, begin: tuple[float, float], end: tuple[float, float], probability: float
    ) -> None:
        """Draws a line from one token to another, the thicker the likelier, with its turns
        just before its end."""
        turn = end[0] - 1
        self._axes.plot(
            [begin[0], turn, turn, end[0]],
            [begin[1], begin[1], end[1], end[1]],
            color="0.5",
            linewidth=0.5 + 2.5 * probability,
            zorder=0,
        )


def starts(widths: Sequence[int], gap: int) -> list[int]:
    """Where columns of these widths begin, and where the last ends with its gap."""
    return list(itertools.accumulate((x + gap for x in widths), initial=0))
