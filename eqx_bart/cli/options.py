"""The options that commands share, and what is made of them."""

import argparse
import contextlib
import json
import math
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import jax

from ..generation.config import GenerationConfig
from .common import InputError
from .inputs import Input, open_inputs


NUM_SEEDS = 2**32  # JAX drops what is above

#: The names of an option, and the other arguments of `add_argument`.
Option = tuple[str, dict[str, Any]]


def add_inputs(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds where the inputs are. Each has a text for each of these names."""
    parser.set_defaults(names=names)
    add, is_one = parser.add_argument, len(names) == 1
    metavars = tuple(name.upper() for name in names)
    add(
        "inputs",
        nargs="*",
        metavar="WORD" if is_one else "TEXT",
        help=f"{'an input' if is_one else ' and '.join(metavars)}; else lines from --input",
    )
    add("--input", metavar="FILE", help="lines to read; - is standard input, the default")
    add(
        "--field" if is_one else "--fields",
        dest="fields",
        nargs=len(names),
        metavar="NAME" if is_one else metavars,
        help="the lines are JSON objects, with their "
        + ("text in this field" if is_one else "texts in these fields")
        + "; of a file named *.jsonl they are, by default with "
        + f"{'the field' if is_one else 'the fields'} {' and '.join(names)}",
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Adds how inputs are answered."""
    add = parser.add_argument
    add("--device", help="where to run: cpu, gpu, tpu; JAX's choice by default")
    add("--batch-size", type=positive, default=32, metavar="N", help="inputs at a time")


@contextlib.contextmanager
def inputs_on_device(
    args: argparse.Namespace,
) -> Generator[tuple[Iterable[Input], int | None]]:
    """What `open_inputs` gives for these options, in a context of the device."""
    with (
        _device(args.device),
        open_inputs(args.inputs, args.input, args.names, fields(args)) as found,
    ):
        yield found


def _device(platform: str | None) -> contextlib.AbstractContextManager[Any]:
    if platform is None:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.devices(platform)[0])
    except RuntimeError:
        raise InputError(f"there is no device {platform!r} here") from None


def fields(args: argparse.Namespace) -> Sequence[str] | None:
    """The fields of JSON objects, if the inputs are such."""
    if args.fields is None and args.input is not None and args.input.endswith(".jsonl"):
        return args.names
    return args.fields


def settings(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The settings of `--set`.

    **Raises** `InputError` if there is no such setting.
    """
    found = dict(pairs)
    try:
        GenerationConfig().updated(None, found)
    except TypeError as error:
        raise InputError(str(error)) from error
    return found


def _integer(text: str, least: int, most: float = math.inf) -> int:
    with contextlib.suppress(ValueError):
        if least <= (value := int(text)) <= most:
            return value
    bound = "or more" if most == math.inf else f"to {most}"
    raise argparse.ArgumentTypeError(f"must be an integer, {least} {bound}, not {text!r}")


def positive(text: str) -> int:
    """An integer, 1 or more."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """An integer, 0 or more."""
    return _integer(text, 0)


def _seed(text: str) -> int:
    return _integer(text, 0, NUM_SEEDS - 1)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"the value of {name} is not JSON") from None


SEED: Option = (
    "--seed",
    {
        "type": _seed,
        "metavar": "N",
        "help": "what sampling starts from: the same texts for the same inputs in the same "
        "order, whatever the batch size; without it others at each run",
    },
)
SET: Option = (
    "--set",
    {
        "action": "append",
        "type": _setting,
        "default": [],
        "dest": "settings",
        "metavar": "NAME=VALUE",
        "help": "a generation setting by its Hugging Face name, for instance "
        "max_new_tokens=50; may be repeated",
    },
)
TRUNCATE: Option = (
    "--truncate",
    {
        "action": "store_true",
        "dest": "truncation",
        "help": "cut inputs that are too long for the model, which are errors otherwise",
    },
)
