"""`eqx-bart generate`: a text from each input."""

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..checkpoint.pretrained import BUILTIN_MODEL
from ..models.conditional_generation import BartForConditionalGeneration
from .common import InputError, progress_bar


def add_generate(commands: Any) -> None:
    """Adds the command to the parser."""
    generate = commands.add_parser(
        "generate",
        help="generate a text from each input",
        description="Generates a text from each input. Without --model, the model turns "
        "English words into their phonemes, as the CMU Pronouncing Dictionary writes them.",
    )
    generate.set_defaults(run=_generate)
    add = generate.add_argument
    add("inputs", nargs="*", metavar="WORD", help="an input; else lines from --input")
    add("--input", default="-", metavar="FILE", help="lines to read; - is standard input")
    add(
        "--model",
        default=BUILTIN_MODEL,
        metavar="CHECKPOINT",
        help="a directory, or a name on the Hugging Face hub, that has a tokenizer too; "
        "the built-in model by default",
    )
    add("--json", action="store_true", help="write an object a line, not input TAB output")
    add("--device", help="where to run: cpu, gpu, tpu; JAX's choice by default")
    add("--batch-size", type=_positive, default=32, metavar="N", help="inputs at a time")
    add(
        "--set",
        action="append",
        type=_setting,
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="a generation setting by its Hugging Face name, for instance "
        "max_new_tokens=50; may be repeated",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"the value of {name} is not JSON") from None


def _device(platform: str | None) -> contextlib.AbstractContextManager[Any]:
    if platform is None:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.devices(platform)[0])
    except RuntimeError:
        raise InputError(f"there is no device {platform!r} here") from None


def _generate(args: argparse.Namespace) -> None:
    with _device(args.device):
        _generate_here(args)


def _generate_here(args: argparse.Namespace) -> None:
    model = BartForConditionalGeneration.from_pretrained(args.model)
    tokenizer = _load_tokenizer(args.model)
    settings = _checked_settings(model, dict(args.settings))
    texts = args.inputs or _read_lines(args.input)
    total = len(texts) if isinstance(texts, list) else None
    with progress_bar(is_long=total is None or total > args.batch_size) as progress:
        task = progress.add_task("generating", total=total)
        for batch in _batched(enumerate(texts, 1), args.batch_size):
            rows = [_encode(tokenizer, model, number, text) for number, text in batch]
            outputs = _answer(model, tokenizer, rows, settings)
            for (_, text), output in zip(batch, outputs, strict=True):
                print(_format(text, output, as_json=args.json), flush=True)
            progress.advance(task, len(batch))


def _load_tokenizer(path: str | Path) -> Any:
    # Otherwise transformers advises users without PyTorch to install it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    # If there is neither file, transformers makes up a tokenizer without a vocabulary.
    is_local = Path(path).exists()
    files = ("tokenizer.json", "vocab.json")
    if is_local and not any((Path(path) / file).is_file() for file in files):
        raise InputError(f"{path} has no tokenizer: no tokenizer.json, no vocab.json")
    return AutoTokenizer.from_pretrained(path, local_files_only=is_local)


def _checked_settings(
    model: BartForConditionalGeneration, settings: dict[str, Any]
) -> dict[str, Any]:
    try:
        model.generation_config.updated(None, settings)
    except TypeError as error:
        raise InputError(str(error)) from error
    return settings


def _read_lines(file: str) -> Iterable[str]:
    """The lines that are not blank."""
    if file != "-":
        with Path(file).open(encoding="utf-8") as lines:
            return [line.rstrip("\n") for line in lines if line.strip()]
    if sys.stdin.isatty():
        raise InputError("there is nothing to read: give words, --input or a pipe")
    return (line.rstrip("\n") for line in sys.stdin if line.strip())


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _encode(
    tokenizer: Any, model: BartForConditionalGeneration, number: int, text: str
) -> list[int]:
    """The token ids of an input; `number` is what messages call it."""
    if not text.strip():
        raise InputError(f"input {number} is empty")
    ids = tokenizer(text, verbose=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        unknown = sorted(
            {c for c in text if tokenizer.unk_token_id in tokenizer(c)["input_ids"]}
        )
        raise InputError(
            f"input {number}, {text!r}, has characters that the model does not know: "
            f"{' '.join(map(repr, unknown))}"
        )
    limit = model.config.max_position_embeddings
    if len(ids) > limit:
        raise InputError(
            f"input {number} has {len(ids)} tokens and the model reads at most {limit}"
        )
    return ids


def _answer(
    model: BartForConditionalGeneration,
    tokenizer: Any,
    rows: list[list[int]],
    settings: dict[str, Any],
) -> list[str]:
    """The text that the model generates from each row."""
    input_ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    attention_mask = np.zeros(input_ids.shape, bool)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        attention_mask[i, : len(row)] = True
    sequences = model.generate(input_ids, attention_mask, **settings).sequences
    count = len(sequences) // len(rows)
    texts = tokenizer.batch_decode(np.asarray(sequences)[::count], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _format(text: str, output: str, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"input": text, "output": output}, ensure_ascii=False)
    return f"{text}\t{output}"
