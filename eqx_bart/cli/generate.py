"""`eqx-bart generate`: texts from each input."""

import argparse
import itertools
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..checkpoint.pretrained import BUILTIN_MODEL
from ..models.conditional_generation import BartForConditionalGeneration
from .answers import Answer, Answerer, Row
from .common import in_a_line, InputError, json_line, report
from .documents import open_output, Output, Window
from .inputs import Input
from .options import (
    add_inputs,
    add_running,
    fields,
    inputs_on_device,
    natural,
    NUM_SEEDS,
    positive,
    SEED,
    SET,
    settings,
    TRUNCATE,
)
from .picture import check_picture
from .progress import Bar, progress_bar, Rate
from .tokenizer import load_tokenizer


#: The options that --stream does without.
_NOT_STREAMED = ("output", "json", "picture")


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
    add_inputs(generate, "text")
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
        type=natural,
        metavar="I",
        help="which of --process-count machines this is, from 0: each answers its share of "
        "the inputs, into an --output of its own",
    )
    add("--process-count", type=positive, metavar="N", help="how many machines there are")
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
        "--stream",
        action="store_true",
        help="show a text as it comes, one input after another",
    )
    add(
        "--picture",
        type=Path,
        metavar="FILE",
        help="for one input: draw which of its tokens each token of the answer attends to, "
        "in a file named *.png, *.svg or *.pdf",
    )
    add_running(generate)
    for name, option in (TRUNCATE, SEED, SET):
        add(name, **option)


def _generate(args: argparse.Namespace) -> int:
    _check_stream(args)
    with inputs_on_device(args) as (inputs, total):
        inputs, total = _share(args, inputs, total)
        seed = secrets.randbelow(NUM_SEEDS) if args.seed is None else args.seed
        if args.stream:
            return _stream(args, inputs, _answerer(args, seed))
        if args.picture is not None:
            inputs = _only(args, inputs)
        with progress_bar(Rate()) as progress:
            bar = Bar(progress, total, "generating")
            if args.output is None:
                return _to_stdout(args, inputs, _answerer(args, seed), bar)
            with open_output(args.output, _asked(args), seed) as output:
                return _to_file(args, inputs, output, bar)


def _check_stream(args: argparse.Namespace) -> None:
    for name in _NOT_STREAMED if args.stream else ():
        if getattr(args, name):
            raise InputError(
                f"--stream shows a text before it is whole, and --{name} needs the whole: "
                "give one of them"
            )


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
    (field,) = fields(args) or (None,)
    options = {"--model": model, "--set": dict(args.settings), "--field": field}
    options["--truncate"] = args.truncation
    names = ("json", "seed", "process_index", "process_count")
    return options | {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}


def _stream(args: argparse.Namespace, inputs: Iterable[Input], answerer: Answerer) -> int:
    is_all_well = True
    for source in inputs:
        rows, wrong = _rows(answerer, [source], truncate=args.truncation)
        is_all_well &= not wrong
        for _, row in rows:
            print(in_a_line(source.text), end="\t", flush=True)
            for part in answerer.stream(row):
                print(in_a_line(part), end="", flush=True)
            print(flush=True)
    return 0 if is_all_well else 1


def _to_stdout(
    args: argparse.Namespace, inputs: Iterable[Input], answerer: Answerer, bar: Bar
) -> int:
    is_all_well = True
    for batch in _batched(inputs, args.batch_size):
        rows, wrong = _rows(answerer, batch, truncate=args.truncation)
        is_all_well &= not wrong
        answers = answerer.answers([row for _, row in rows])
        for (source, _), texts in zip(rows, answers, strict=True):
            for answer in texts:
                bar.write_line(_format(source, answer, _columns(args)))
        bar.advance(batch)
    return 0 if is_all_well else 1


def _to_file(
    args: argparse.Namespace, inputs: Iterable[Input], output: Output, bar: Bar
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
    args: argparse.Namespace, window: Window, answerer: Answerer, output: Output, bar: Bar
) -> None:
    """Answers what is not answered yet, in batches of about one length, the longest
    first."""
    output.begin(window)
    columns = _columns(args)
    rows, wrong = _rows(answerer, window.inputs, truncate=args.truncation)
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
    given = settings(args.settings)
    if args.json:
        given["output_token_log_probs"] = True
    model = BartForConditionalGeneration.from_pretrained(args.model)
    return Answerer(model, load_tokenizer(args.model), given, seed, args.picture)


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
        return "\t".join(map(in_a_line, (source.text, answer.text)))
    fields = {
        "number": source.number,
        "input": source.text,
        "output": answer.text,
        "score": answer.score,
    }
    return json_line({name: fields[name] for name in columns})


def _format_error(number: int, error: str, columns: tuple[str, ...]) -> str:
    """The line of an input that cannot be read, among objects; none among others."""
    return json_line({"number": number, "error": error}) + "\n" if columns else ""
