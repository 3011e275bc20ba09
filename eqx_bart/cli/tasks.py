"""`eqx-bart classify`, `answer` and the other tasks: each is an entry of a table."""

import argparse
import collections
import dataclasses
import functools
import itertools
import operator
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from .. import tasks
from ..files.hub import locate
from ..tasks.texts import Inputs, Named
from .common import in_a_line, InputError, json_line, report
from .inputs import Input
from .options import (
    add_inputs,
    add_running,
    inputs_on_device,
    natural,
    NUM_SEEDS,
    Option,
    positive,
    SEED,
    SET,
    settings,
    TRUNCATE,
)
from .progress import Bar, progress_bar, Rate
from .tokenizer import full_tokenizer


@dataclasses.dataclass(frozen=True)
class Command:
    """A task on the command line.

    **Fields:**

    - `function`: of `eqx_bart.tasks`.
    - `help`: what it does; and `answers`, what it says in a line.
    - `lines`: what to say of an answer, a dict for each line: the whole of it in JSON, and
        otherwise what `columns` makes of it.
    - `options`: those of `function`, by the names of its arguments.
    - `texts`: what the texts of an input are called.
    - `aliases`: its other names.
    """

    function: Callable[..., Any]
    help: str
    answers: str
    lines: Callable[[Any], Iterable[dict[str, Any]]]
    columns: Callable[[dict[str, Any]], Iterable[Any]]
    options: tuple[Option, ...] = ()
    texts: tuple[str, ...] = ("text",)
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As it is typed."""
        return self.function.__name__.replace("_", "-")

    @property
    def description(self) -> str:
        """What `--help` says first."""
        kind = "An input is a text."
        if len(self.texts) > 1:
            first, second = self.texts
            kind = (
                f"An input is a {first} and a {second}: two words, a line with a tabulator "
                "between them, or a JSON object."
            )
        return (
            f"{self.help[0].upper()}{self.help[1:]}. {kind} {self.answers} An input that "
            "cannot be read is reported with its number on standard error, and the others "
            "are answered; the exit status is then 1. Files and pipes are UTF-8; blank "
            "lines are passed over."
        )


def add_tasks(commands: Any) -> None:
    """Adds a command for each task to the parser."""
    for command in COMMANDS:
        _add(commands, command)


def _add(commands: Any, command: Command) -> None:
    parser = commands.add_parser(
        command.name,
        aliases=command.aliases,
        help=command.help,
        description=command.description,
    )
    parser.set_defaults(run=functools.partial(_run, command))
    add_inputs(parser, *command.texts)
    parser.add_argument(
        "--model",
        required=True,
        metavar="CHECKPOINT",
        help="a directory, or a name on the Hugging Face hub, that has a tokenizer too",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="write objects, with the number of the word or line, and all that is known",
    )
    dests = [parser.add_argument(name, **option).dest for name, option in command.options]
    parser.set_defaults(dests=dests)
    add_running(parser)


def _run(command: Command, args: argparse.Namespace) -> int:
    options = {name: getattr(args, name) for name in args.dests}
    if "settings" in options:
        options |= settings(options.pop("settings"))
        seed = options.pop("seed")
        options["key"] = jax.random.key(
            secrets.randbelow(NUM_SEEDS) if seed is None else seed
        )
    with (
        inputs_on_device(args) as (sources, total),
        progress_bar(Rate()) as progress,
    ):
        locate(args.model, weights=False)  # which says so if there is no such model
        bar = Bar(progress, total, command.name)
        reading = _Reading(sources, bar)
        inputs = Inputs(reading, reading.refuse)
        answers = command.function(
            args.model,
            *[inputs] * len(command.texts),
            tokenizer=full_tokenizer(args.model),
            batch_size=args.batch_size,
            **options,
        )
        for answer in answers:
            source = reading.next_answered()
            for line in command.lines(answer):
                values = _texts(source) | line
                if args.json:
                    bar.write_line(json_line({"number": source.number} | values))
                else:
                    bar.write_line("\t".join(map(_cell, command.columns(values))))
            bar.advance([source])
    return 0 if reading.is_all_well else 1


class _Reading:
    """Inputs, as they are read by a task, until they are answered."""

    def __init__(self, sources: Iterable[Input], bar: Bar):
        self._sources, self._bar = sources, bar
        self._waiting = collections.deque[Input]()
        self.is_all_well = True

    def __iter__(self) -> Iterator[Named]:
        for source in self._sources:
            self._waiting.append(source)
            try:
                texts = source.texts
            except InputError as error:
                self.refuse(f"{source.name} {error}")
            else:
                yield Named(_names(source), texts)

    def refuse(self, error: object) -> None:
        """Says what is wrong with the input that was read last."""
        report(error)
        self._bar.advance([self._waiting.pop()])
        self.is_all_well = False

    def next_answered(self) -> Input:
        """The input that the next answer is to."""
        return self._waiting.popleft()


def _names(source: Input) -> tuple[str, ...]:
    """What errors call the texts of an input."""
    if len(source.names) == 1:
        return (source.name,)
    return tuple([f"the {name} of {source.name}" for name in source.names])


def _texts(source: Input) -> dict[str, Any]:
    """The texts of an input, by what its answers call them."""
    names = source.names if len(source.names) > 1 else ("input",)
    return dict(zip(names, source.texts, strict=True))


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else in_a_line(str(value))


def _labels(found: tasks.Classification) -> Iterator[dict[str, Any]]:
    yield {"labels": found.labels, "scores": found.scores}


def _ranking(values: dict[str, Any]) -> Iterator[Any]:
    pairs = zip(values["labels"], values["scores"], strict=True)
    return itertools.chain((values["input"],), *pairs)


def _score(found: tasks.Score) -> Iterator[dict[str, Any]]:
    yield {
        "sum": found.sum,
        "mean": found.mean,
        "token_log_probs": found.token_log_probs,
    }


def _fillings(masks: tuple[tuple[tasks.Filling, ...], ...]) -> Iterator[dict[str, Any]]:
    for number, fillings in enumerate(masks, 1):
        for filling in fillings:
            yield {"mask": number, **vars(filling)}


def _summary(found: tasks.Summary) -> Iterator[dict[str, Any]]:
    names = ("start", "end", "summary_text")
    windows = [{name: getattr(one, name) for name in names} for one in found.windows]
    yield {"summary_text": found.summary_text, "windows": windows}


def _infillings(found: tuple[tasks.Infilling, ...]) -> Iterator[dict[str, Any]]:
    for infilling in found:
        yield {**vars(infilling), "score": infilling.score}


def _spans(found: tuple[tasks.Answer, ...]) -> Iterator[dict[str, Any]]:
    return (vars(answer) for answer in found)


def _count(name: str, default: int, what: str) -> Option:
    return name, {
        "type": positive,
        "default": default,
        "metavar": "N",
        "help": f"{what}; {default} by default",
    }


_RANKING = (
    "The answer is a line, with tabulators: the text, the best label, its score, the next "
    "label, its score, and so on."
)
COMMANDS = (
    Command(
        tasks.summarise,
        help="write a summary of each text",
        answers="The answer is a line: the text, a tabulator and its summary. A text that "
        "is too long is read in windows, whose summaries are summarised.",
        lines=_summary,
        columns=operator.itemgetter("input", "summary_text"),
        options=(
            (
                "--truncate",
                {
                    "action": "store_const",
                    "const": "truncate",
                    "default": "windows",
                    "dest": "long",
                    "help": "cut texts that are too long, rather than read them in windows",
                },
            ),
            (
                "--language",
                {
                    "default": "en",
                    "metavar": "CODE",
                    "help": "of the sentences, such as fr; en by default",
                },
            ),
            SEED,
            SET,
        ),
        aliases=("summarize",),
    ),
    Command(
        tasks.classify,
        help="give each text the labels that a classifier was trained for",
        answers=_RANKING,
        lines=_labels,
        columns=_ranking,
        options=(
            TRUNCATE,
            (
                "--function-to-apply",
                {
                    "choices": ("softmax", "sigmoid", "none"),
                    "help": "what makes scores of logits; by default the config says so",
                },
            ),
        ),
    ),
    Command(
        tasks.zero_shot,
        help="give each text labels of your own, by a model of entailment",
        answers=_RANKING,
        lines=_labels,
        columns=_ranking,
        options=(
            (
                "--labels",
                {
                    "nargs": "+",
                    "action": "extend",
                    "required": True,
                    "metavar": "LABEL",
                    "help": "the labels to choose from; words that are texts come first",
                },
            ),
            (
                "--template",
                {
                    "dest": "hypothesis_template",
                    "default": "This example is {}.",
                    "metavar": "SENTENCE",
                    "help": "what a text is asked to entail, with {} for the label; by "
                    "default %(default)r",
                },
            ),
            (
                "--multi-label",
                {
                    "action": "store_true",
                    "help": "score each label by itself; otherwise one of them is right",
                },
            ),
            TRUNCATE,
        ),
    ),
    Command(
        tasks.score,
        help="say how likely each target is, given its source",
        answers="The answer is a line: the source, the target, the log-likelihood of the "
        "target and that for each of its tokens, with tabulators between them.",
        lines=_score,
        columns=operator.itemgetter("source", "target", "sum", "mean"),
        options=(TRUNCATE,),
        texts=("source", "target"),
    ),
    Command(
        tasks.fill_mask,
        help="find the likeliest tokens in the place of each <mask>",
        answers="The answers are lines, mask by mask, the likeliest token first: the text, "
        "the token, its probability and the text with it, with tabulators between them.",
        lines=_fillings,
        columns=operator.itemgetter("input", "token_str", "score", "sequence"),
        options=(
            _count("--top-k", 5, "how many tokens for each mask"),
            (
                "--targets",
                {
                    "nargs": "+",
                    "action": "extend",
                    "metavar": "TOKEN",
                    "help": "the tokens to choose from, most of which begin with a space: "
                    "' Paris'",
                },
            ),
        ),
    ),
    Command(
        tasks.infill,
        help="write any number of tokens in the place of each <mask>",
        answers="The answers are lines, the likeliest first: the text, a tabulator, the "
        "text without masks, a tabulator and its probability.",
        lines=_infillings,
        columns=operator.itemgetter("input", "sequence", "score"),
        options=(SEED, SET),
    ),
    Command(
        tasks.answer,
        help="find the answer to each question in its context",
        answers="The answers are lines, the best first: the question, a tabulator, the "
        "answer, a tabulator and its score. A long context is read in windows.",
        lines=_spans,
        columns=operator.itemgetter("question", "answer", "score"),
        options=(
            _count("--top-k", 1, "how many answers"),
            _count("--max-answer-len", 15, "how many tokens an answer may have"),
            (
                "--max-seq-len",
                {
                    "type": positive,
                    "metavar": "N",
                    "help": "how many tokens a window has, the question included; 384 by "
                    "default, or as many as the model reads",
                },
            ),
            (
                "--doc-stride",
                {
                    "type": natural,
                    "metavar": "N",
                    "help": "how many tokens two windows share; 128 by default, or half a "
                    "window",
                },
            ),
            (
                "--no-answer",
                {
                    "action": "store_true",
                    "dest": "handle_impossible_answer",
                    "help": "there may be no answer: it is then empty",
                },
            ),
        ),
        texts=("question", "context"),
    ),
)
