"""`eqx-bart generate --picture`: what an answer attends to in its source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..generation.output import GenerationOutput
from ..pictures.attention import plot_attention
from ..pictures.drawing import require_matplotlib
from .common import InputError


def check_picture(file: Path) -> None:
    """Checks, before there is an answer, that a picture can be written to `file`.

    **Raises** `InputError` if matplotlib is missing, or does not know such files.
    """
    try:
        require_matplotlib()
    except ImportError as error:
        raise InputError(str(error)) from error
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.lower().removeprefix(".") not in kinds:
        raise InputError(
            f"--picture {file} is no picture: its name must end in {', '.join(kinds)}"
        )


def write_picture(
    file: Path, tokenizer: Any, source: Sequence[int], output: GenerationOutput
) -> None:
    """Draws the attention of the first answer to its source."""
    answer = np.asarray(output.sequences)[0, 1 : output.lengths[0]].tolist()
    tokens = [tokenizer.convert_ids_to_tokens([*ids]) for ids in (source, answer)]
    plot_attention(output, *tokens).savefig(file)
