"""`eqx-bart generate`: texts from each input."""

import argparse
import contextlib
import itertools
import json
import math
import secrets
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from ..checkpoint.pretrained import BUILTIN_MODEL
from ..models.conditional_generation import BartForConditionalGeneration
from .answers import Answer, Answerer, Row
from .common import InputError, line_writer, progress_bar, report
from .documents import open_output, Output, Window
from .inputs import Input, open_inputs
from .picture import check_picture
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
        "--field",
        metavar="NAME",
        help="the lines are JSON objects, with their text in this field; of a file named "
        "*.jsonl they are, by default with the field text",
    )
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="the file to write, with batches made by length; after a run that was killed, "
        "the same command goes on. If it is named *.jsonl, its lines are objects with the "
        "number of the line and the output, or what is wrong with that line",
    )
    add(
        "--process-index",
        type=_natural,
        metavar="I",
        help="which of --process-count machines this is, from 0: each answers its share of "
        "the inputs, into an --output of its own",
    )
    add("--process-count", type=_positive, metavar="N", help="how many machines there are")
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
    add(
        "--picture",
        type=Path,
        metavar="FILE",
        help="for one input: draw which of its tokens each token of the answer attends to, "
        "in a file named *.png, *.svg or *.pdf",
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


def _natural(text: str) -> int:
    return _integer(text, 0)


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


class _Rate(ProgressColumn):
    """How many inputs are answered in a second."""

    def render(self, task: Task) -> Text:
        rate = task.fields["num_done"] / task.elapsed if task.elapsed else 0
        return Text(f"{rate:.3g} inputs/s", style="progress.data.speed")


class _Bar:
    """A bar over inputs, as long as the share of their total size that is done."""

    def __init__(self, progress: Progress, total: int | None):
        self._progress, self._num_done = progress, 0
        self._task = progress.add_task("generating", total=total, num_done=0)
        self.write_line = line_writer(progress)

    def advance(self, sources: Collection[Input]) -> None:
        self._num_done += len(sources)
        size = sum(source.size for source in sources)
        self._progress.update(self._task, advance=size, num_done=self._num_done)

    def start_from(self, size: int) -> None:
        """Starts anew, after inputs that take no time."""
        self._num_done = 0
        self._progress.reset(self._task, completed=size, num_done=0)


def _generate(args: argparse.Namespace) -> int:
    with (
        _device(args.device),
        open_inputs(args.inputs, args.input, _field(args)) as (inputs, total),
        progress_bar(_Rate()) as progress,
    ):
        inputs, total = _share(args, inputs, total)
        if args.picture is not None:
            inputs = _only(args, inputs)
        bar = _Bar(progress, total)
        seed = secrets.randbelow(_NUM_SEEDS) if args.seed is None else args.seed
        if args.output is None:
            return _to_stdout(args, inputs, _answerer(args, seed), bar)
        with open_output(args.output, _asked(args), seed) as output:
            return _to_file(args, inputs, output, bar)


def _field(args: argparse.Namespace) -> str | None:
    if args.field is None and args.input is not None and args.input.endswith(".jsonl"):
        return "text"
    return args.field


def _share(
    args: argparse.Namespace, inputs: Iterable[Input], total: int | None
) -> tuple[Iterable[Input], int | None]:
    """The inputs of this process, and about their total size."""
    index, count = args.process_index, args.process_count
    if index is None and count is None:
        return inputs, total
    if index is None or count is None or index >= count:
        raise InputError(
            f"--process-index {index} and --process-count {count} do not fit: with a count "
            "of n, the indices are 0 to n - 1; give both or neither"
        )
    share = None if total is None else total // count
    return (source for source in inputs if source.window % count == index), share


def _only(args: argparse.Namespace, inputs: Iterable[Input]) -> list[Input]:
    """The one input of which there is a picture."""
    check_picture(args.picture)
    if args.output is not None:
        raise InputError("--picture is of one input, and --output for many: give one")
    first = list(itertools.islice(inputs, 2))
    if len(first) != 1:
        raise InputError(f"--picture is of one input, and there are {len(first)} or more")
    return first


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide what the output says."""
    model = "the built-in one" if args.model is BUILTIN_MODEL else args.model
    options = {"--model": model, "--set": dict(args.settings), "--field": _field(args)}
    names = ("json", "truncate", "seed", "process_index", "process_count")
    return options | {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}


def _to_stdout(
    args: argparse.Namespace, inputs: Iterable[Input], answerer: Answerer, bar: _Bar
) -> int:
    is_all_well = True
    for batch in _batched(inputs, args.batch_size):
        rows, wrong = _rows(answerer, batch, truncate=args.truncate)
        is_all_well &= not wrong
        answers = answerer.answers([row for _, row in rows])
        for (source, _), texts in zip(rows, answers, strict=True):
            for answer in texts:
                bar.write_line(_format(source, answer, _columns(args)))
        bar.advance(batch)
    return 0 if is_all_well else 1


def _to_file(
    args: argparse.Namespace, inputs: Iterable[Input], output: Output, bar: _Bar
) -> int:
    unfinished = output.unfinished(inputs)
    if output.state.is_finished:
        list(unfinished)  # which checks that the inputs are the same
        print(f"{args.output} is finished: there is nothing to do")
    else:
        answerer = _answerer(args, output.state.seed)
        for window in unfinished:
            if window.index == output.state.window:
                bar.start_from(window.start)
            _answer_window(args, window, answerer, output, bar)
        output.finish()
    return 1 if output.state.num_wrong else 0


def _answer_window(
    args: argparse.Namespace, window: Window, answerer: Answerer, output: Output, bar: _Bar
) -> None:
    """Answers what is not answered yet, in batches of about one length, the longest
    first."""
    output.begin(window)
    columns = _columns(args)
    rows, wrong = _rows(answerer, window.inputs, truncate=args.truncate)
    rows = [row for row in rows if row[0].number not in output.answered]
    known = output.answered.keys() | wrong.keys()
    bar.advance([source for source in window.inputs if source.number in known])
    rows.sort(key=lambda row: (row[1].draw, -len(row[1].ids)))
    for batch in _batched(rows, args.batch_size):
        sources = [source for source, _ in batch]
        answers = answerer.answers([row for _, row in batch])
        output.record(
            {
                source.number: "".join(_format(source, x, columns) + "\n" for x in texts)
                for source, texts in zip(sources, answers, strict=True)
            }
        )
        bar.advance(sources)
    output.end(window, {n: _format_error(n, error, columns) for n, error in wrong.items()})


def _answerer(args: argparse.Namespace, seed: int) -> Answerer:
    settings = dict(args.settings)
    if args.json:
        settings["output_token_log_probs"] = True
    model = BartForConditionalGeneration.from_pretrained(args.model)
    return Answerer(model, load_tokenizer(args.model), settings, seed, args.picture)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _rows(
    answerer: Answerer, batch: Iterable[Input], *, truncate: bool
) -> tuple[list[tuple[Input, Row]], dict[int, str]]:
    """The inputs that can be read, each with what the model reads; and what is wrong with
    the others, by number, which is reported."""
    rows: list[tuple[Input, Row]] = []
    wrong: dict[int, str] = {}
    for source in batch:
        try:
            rows.append((source, answerer.row(source, truncate=truncate)))
        except InputError as error:
            report(f"{source.name} {error}")
            wrong[source.number] = str(error)
    return rows, wrong


def _columns(args: argparse.Namespace) -> tuple[str, ...]:
    """What an object says of an answer; nothing if the answer is not an object."""
    if args.json:
        return ("number", "input", "output", "score")
    is_jsonl = args.output is not None and args.output.suffix == ".jsonl"
    return ("number", "output") if is_jsonl else ()


def _format(source: Input, answer: Answer, columns: tuple[str, ...]) -> str:
    if not columns:
        return "\t".join(x.translate(_IN_A_LINE) for x in (source.text, answer.text))
    fields = {
        "number": source.number,
        "input": source.text,
        "output": answer.text,
        "score": answer.score,
    }
    return json.dumps({name: fields[name] for name in columns}, ensure_ascii=False)


def _format_error(number: int, error: str, columns: tuple[str, ...]) -> str:
    """The line of an input that cannot be read, among objects; none among others."""
    if not columns:
        return ""
    return json.dumps({"number": number, "error": error}, ensure_ascii=False) + "\n"
