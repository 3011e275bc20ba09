"""The log-probabilities of a text's tokens, as colours."""

import html
from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ..nn.processes import on_host
from .drawing import (
    check_log_probs,
    colours,
    LEAST,
    Page,
    readable,
    require_matplotlib,
    width,
)


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_COLUMNS, _GAP = 80, 0.5  # of a page, and between tokens


class Html(str):
    """A piece of HTML, which notebooks show as such."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return self


def plot_token_log_probs(tokens: Sequence[str], log_probs: Any) -> "Figure":
    """Draws a text, with each token in the colour of its log-probability: pale if it is
    likely, and dark if it is not, from -6 down.

    **Arguments:**

    - `tokens`: of the text. Tokens of bytes, such as BART's `Ġthe`, are written as they are
        read.
    - `log_probs`: a number for each token: of a row, the `token_log_probs` that `generate`
        returns, say.

    **Returns** a figure of matplotlib, which has a `savefig`.

    **Raises** `ValueError` if there are more or fewer log-probabilities than tokens, or if
    one is NaN; `ImportError` without matplotlib, which is in the extra `plot`.
    """
    looks = colours(_checked(tokens, log_probs))
    texts = readable(tokens)
    most = max(_COLUMNS, *map(width, texts))
    column, line = 0.0, 0
    places: list[tuple[float, int]] = []
    for text in texts:
        if column + width(text) > most:
            column, line = 0.0, line + 1
        places.append((column, line))
        column += width(text) + _GAP
    columns = max(x + width(text) for (x, _), text in zip(places, texts, strict=True))
    page = Page(columns, line + 1)
    for place, text, look in zip(places, texts, looks, strict=True):
        page.token(*place, text, look)
    return page.figure


def html_token_log_probs(tokens: Sequence[str], log_probs: Any) -> Html:
    """The same as [`plot_token_log_probs`][eqx_bart.plot_token_log_probs], as HTML that
    needs nothing else. A notebook shows it; where it is pointed at, a token says its
    log-probability.

    **Arguments** and **Raises**: as there.

    **Returns** a string.
    """
    numbers = _checked(tokens, log_probs)
    spans = "<wbr>".join(
        f'<span title="{number:.3f}" style="background:{look.background};'
        f'color:{look.text};border-radius:3px;margin-right:1px;padding:2px 0">'
        f"{html.escape(text)}</span>"
        for text, number, look in zip(
            readable(tokens), numbers, colours(numbers), strict=True
        )
    )
    scale = ",".join(x.background for x in colours(np.linspace(LEAST, 0, 9)))
    return Html(
        '<div style="font-family:monospace;line-height:1.8">'
        f'<div style="white-space:pre-wrap">{spans}</div>'
        f'<small>log-probability {LEAST:g} <span style="display:inline-block;width:12em;'
        f'height:.8em;background:linear-gradient(90deg,{scale})"></span> 0</small></div>'
    )


def _checked(tokens: Sequence[str], log_probs: Any) -> Float[np.ndarray, " tokens"]:
    require_matplotlib()
    numbers = on_host(log_probs).astype(np.float32)
    if numbers.shape != (len(tokens),) or not len(tokens):
        raise ValueError(
            f"There are {len(tokens)} tokens, and log_probs of shape {numbers.shape}: give "
            "one for each token, of one token or more."
        )
    check_log_probs(numbers)
    return numbers
