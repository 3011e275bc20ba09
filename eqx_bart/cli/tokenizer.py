"""The tokenizer of a checkpoint, of whatever kind transformers knows."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .common import InputError


#: What a `tokenizer_config.json` may have if `tokenizer.json` says everything else.
_PLAIN = {"backend", "model_max_length", "tokenizer_class"}
#: In larger ones, transformers may correct a mistake of Mistral's.
_MOST_PLAIN = 90_000
_NAMED_TOKENS = {"bos_token", "eos_token", "pad_token", "unk_token"}


class PlainTokenizer:
    """A `tokenizer.json`, as transformers' `TokenizersBackend` reads it, for one text at a
    time. To import transformers takes longer than an answer."""

    def __init__(self, tokenizer: Any, unk_token: str | None):
        self._tokenizer = tokenizer
        self.unk_token_id = None if unk_token is None else tokenizer.token_to_id(unk_token)

    def __call__(
        self,
        text: str,
        *,
        verbose: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
    ) -> dict[str, list[int]]:
        """`input_ids`, as transformers gives them."""
        if truncation:
            self._tokenizer.enable_truncation(max_length)
        ids = self._tokenizer.encode(text).ids
        self._tokenizer.no_truncation()
        return {"input_ids": ids}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens with these ids."""
        return [self._tokenizer.id_to_token(x) for x in ids]

    def batch_decode(self, rows: Any, *, skip_special_tokens: bool) -> list[str]:
        """The text of each row."""
        return [
            self._tokenizer.decode(row, skip_special_tokens=skip_special_tokens)
            for row in rows.tolist()
        ]


def load_tokenizer(checkpoint: str | Path) -> Any:
    """The tokenizer beside a checkpoint on this machine, or of a model on the Hugging Face
    hub, from which its files are then in the cache. It does what `PlainTokenizer` does.

    **Raises** `InputError` if there is none, or if it cannot be read.
    """
    return _plain_tokenizer(Path(_place(checkpoint))) or full_tokenizer(checkpoint)


def full_tokenizer(checkpoint: str | Path) -> Any:
    """The same, with all that transformers' tokenizers do."""
    path, place = Path(checkpoint), _place(checkpoint)
    # Otherwise transformers advises users without PyTorch to install it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

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


def _place(checkpoint: str | Path) -> str | Path:
    """Where the files are that lie beside the weights."""
    path = Path(checkpoint)
    return path.parent if path.is_file() else checkpoint


def _plain_tokenizer(directory: Path) -> PlainTokenizer | None:
    """The tokenizer in a directory, if `tokenizer.json` says all about it; in doubt `None`,
    so that transformers decides, or says what is wrong."""
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_bytes())
        contents = (directory / "tokenizer.json").read_text(encoding="utf-8")
        if not _is_plain(settings, json.loads(contents)) or any(
            (directory / name).exists()
            for name in ("added_tokens.json", "special_tokens_map.json")
        ):
            return None
        from tokenizers import Tokenizer

        return PlainTokenizer(Tokenizer.from_str(contents), settings.get("unk_token"))
    except Exception:  # noqa: BLE001  # of a library, about any contents
        return None


def _is_plain(settings: Mapping[str, Any], contents: Mapping[str, Any]) -> bool:
    """Whether transformers adds nothing to what these files say."""
    special = {x["content"] for x in contents["added_tokens"] if x["special"]}
    return (
        settings["tokenizer_class"] == "TokenizersBackend"
        and settings.keys() <= _PLAIN | _NAMED_TOKENS
        and special.issuperset(settings[x] for x in _NAMED_TOKENS & settings.keys())
        and contents["truncation"] is None
        and contents["padding"] is None
        and contents["post_processor"] is not None
        and len(contents["model"]["vocab"]) <= _MOST_PLAIN
    )


def _is_there(place: str | Path, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if Path(place).exists():
        return (Path(place) / name).is_file()
    return isinstance(try_to_load_from_cache(str(place), name), str)
