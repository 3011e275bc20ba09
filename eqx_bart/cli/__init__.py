"""The command line, for those who only want an answer."""

import argparse
import contextlib
import gc
import importlib.metadata
import io
import os
import sys
from collections.abc import Generator, Sequence

import jaxtyping

from .checkpoint import add_convert, add_info
from .common import InputError, report
from .completion import PrintCompletion
from .generate import add_generate
from .programs import kept_programs, VARIABLE
from .tasks import add_tasks


_EPILOG = f"""\
eqx-bart COMMAND --help has the options of a command.

examples:
  eqx-bart generate transformer equinox
  eqx-bart generate --model facebook/bart-large-cnn --stream < article.txt
  eqx-bart summarise --model facebook/bart-large-cnn --input articles.jsonl
  eqx-bart classify "I liked it." --model ./my-classifier
  eqx-bart zero-shot "It ended in a draw." --labels politics sport \\
      --model facebook/bart-large-mnli
  eqx-bart fill-mask "Paris is the <mask> of France." --model facebook/bart-base
  eqx-bart score --model ./my-model --input pairs.tsv
  eqx-bart answer --model ./my-model --json --input questions.jsonl > answers.jsonl

inputs and answers:
  Inputs are the words of the command; or else the lines of --input FILE, or of a pipe. A
  line is a text, or, of a file named *.jsonl and with --field, a JSON object. Answers are
  lines on standard output, and objects with --json. What is wrong with a line is said on
  standard error, with its number, and the other lines are answered.

models:
  --model is a directory with a model and its tokenizer, as Hugging Face's save_pretrained
  writes it, or a name on huggingface.co, from where it is fetched once and kept. Only
  generate has a model of its own, which turns English words into their phonemes.
  eqx-bart info CHECKPOINT says what is in one.

exit status:
  0: all is well. 1: bad input; all that could be answered is. 2: bad usage.

environment variables:
  {VARIABLE:15} where compiled programs are kept, so that the next command starts
                  sooner; nowhere if it is empty. By default ~/.cache/eqx-bart, or
                  eqx-bart in XDG_CACHE_HOME.
  HF_HOME         where models from huggingface.co are kept
  HF_HUB_OFFLINE  1 to use no network
  HF_TOKEN        for models that are not public
  JAX_PLATFORMS   where to run, as --device: cpu, cuda, tpu
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 1 for bad input, 2 for bad
    usage."""
    if argv is None:  # the process is ours: what imports have made is no garbage
        gc.freeze()
    args = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        with kept_programs(), _unchecked():
            status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, ValueError, OSError, ModuleNotFoundError) as error:
        report(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


@contextlib.contextmanager
def _unchecked() -> Generator[None]:
    """A context in which annotations are not checked: no user passes any arrays."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", value=True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def parser() -> argparse.ArgumentParser:
    """What reads the command line."""
    made = argparse.ArgumentParser(
        prog="eqx-bart",
        description="BART, a model that reads a text and writes another, in JAX.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("eqx-bart")
    made.add_argument("--version", action="version", version=f"%(prog)s {version}")
    made.add_argument("--print-completion", action=PrintCompletion)
    commands = made.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    add_generate(commands)
    add_tasks(commands)
    add_info(commands)
    add_convert(commands)
    return made
