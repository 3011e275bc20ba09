"""`eqx-bart generate`: texts from each input."""

import argparse
import contextlib
import itertools
import json
import math
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from ..checkpoint.pretrained import BUILTIN_MODEL
from ..models.conditional_generation import BartForConditionalGeneration
from .answers import Answer, Answerer, Row
from .common import InputError, line_writer, progress_bar, report
from .inputs import Input, open_inputs
from .tokenizer import load_tokenizer


_NUM_SEEDS = 2**32  # JAX drops what is above
_IN_A_LINE = str.maketrans("\t\r\n", "   ")


def add_generate(commands: Any) -> None:
    """Adds the command to the parser."""
    generate = commands.add_parser(
        "generate",
        help="generate texts from each input",
        description="Generates texts from each input, and writes a line for each of them: "
        "the input, a tabulator and the text. Without --model, the model turns English "
        "words into their phonemes, as the CMU Pronouncing Dictionary writes them. An "
        "input that cannot be read is reported with its number on standard error, and "
        "the others are answered; the exit status is then 1. Files and pipes are UTF-8; "
        "blank lines are passed over.",
    )
    generate.set_defaults(run=_generate)
    add = generate.add_argument
    add("inputs", nargs="*", metavar="WORD", help="an input; else lines from --input")
    add("--input", metavar="FILE", help="lines to read; - is standard input, the default")
    add(
        "--model",
        default=BUILTIN_MODEL,
        metavar="CHECKPOINT",
        help="a directory, or a name on the Hugging Face hub, that has a tokenizer too; "
        "the built-in model by default",
    )
    add(
        "--json",
        action="store_true",
        help="write an object for each text: the number of its word or line, the input, "
        "the output exactly as it is, and the score, which is the text's log-probability "
        "over its length in tokens to the power length_penalty",
    )
    add(
        "--truncate",
        action="store_true",
        help="cut inputs that are too long for the model, which are errors otherwise",
    )
    add(
        "--seed",
        type=_seed,
        metavar="N",
        help="what sampling starts from: the same texts for the same inputs in the same "
        "order, whatever the batch size; without it others at each run",
    )
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


def _integer(text: str, least: int, most: float = math.inf) -> int:
    with contextlib.suppress(ValueError):
        if least <= (value := int(text)) <= most:
            return value
    bound = "or more" if most == math.inf else f"to {most}"
    raise argparse.ArgumentTypeError(f"must be an integer, {least} {bound}, not {text!r}")


def _positive(text: str) -> int:
    return _integer(text, 1)


def _seed(text: str) -> int:
    return _integer(text, 0, _NUM_SEEDS - 1)


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


def _generate(args: argparse.Namespace) -> int:
    with _device(args.device), open_inputs(args.inputs, args.input) as (inputs, total):
        answerer = _answerer(args)
        is_all_well = True
        with progress_bar() as progress:
            task = progress.add_task("generating", total=total)
            write = line_writer(progress)
            for batch in _batched(inputs, args.batch_size):
                rows = _rows(answerer, batch, truncate=args.truncate)
                is_all_well &= len(rows) == len(batch)
                answers = answerer.answers([row for _, row in rows])
                for (source, _), texts in zip(rows, answers, strict=True):
                    for answer in texts:
                        write(_format(source, answer, as_json=args.json))
                progress.advance(task, sum(source.size for source in batch))
    return 0 if is_all_well else 1


def _answerer(args: argparse.Namespace) -> Answerer:
    settings = dict(args.settings)
    if args.json:
        settings["output_token_log_probs"] = True
    model = BartForConditionalGeneration.from_pretrained(args.model)
    seed = secrets.randbelow(_NUM_SEEDS) if args.seed is None else args.seed
    return Answerer(model, load_tokenizer(args.model), settings, seed)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _rows(
    answerer: Answerer, batch: Iterable[Input], *, truncate: bool
) -> list[tuple[Input, Row]]:
    """The inputs that can be read, each with what the model reads; reports the others."""
    rows: list[tuple[Input, Row]] = []
    for source in batch:
        try:
            rows.append((source, answerer.row(source.text, truncate=truncate)))
        except InputError as error:
            report(f"{source.name} {error}")
    return rows


def _format(source: Input, answer: Answer, *, as_json: bool) -> str:
    if not as_json:
        return "\t".join(x.translate(_IN_A_LINE) for x in (source.text, answer.text))
    fields = {
        "number": source.number,
        "input": source.text,
        "output": answer.text,
        "score": answer.score,
    }
    return json.dumps(fields, ensure_ascii=False)
