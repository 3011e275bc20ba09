"""The tokenizer of a checkpoint, of whatever kind transformers knows."""

import os
from pathlib import Path
from typing import Any

from .common import InputError


def load_tokenizer(checkpoint: str | Path) -> Any:
    """The tokenizer beside a checkpoint on this machine, or of a model on the Hugging Face
    hub, from which its files are then in the cache.

    **Raises** `InputError` if there is none, or if it cannot be read.
    """
    # Otherwise transformers advises users without PyTorch to install it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    path = Path(checkpoint)
    place = path.parent if path.is_file() else checkpoint
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place, local_files_only=path.exists(), trust_remote_code=False
        )
    except Exception as error:  # of any library, about any file
        raise InputError(
            f"the tokenizer of {checkpoint} cannot be read: {type(error).__name__}: {error}"
        ) from error
    # Without its files, transformers makes up a tokenizer that knows no words.
    names = sorted({*type(tokenizer).vocab_files_names.values()})
    if names and not any(_is_there(place, name) for name in names):
        raise InputError(
            f"{checkpoint} has no tokenizer: a {type(tokenizer).__name__} has its words in "
            f"{' or '.join(names)}, and there is none of them"
        )
    return tokenizer


def _is_there(place: str | Path, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if Path(place).exists():
        return (Path(place) / name).is_file()
    return isinstance(try_to_load_from_cache(str(place), name), str)
