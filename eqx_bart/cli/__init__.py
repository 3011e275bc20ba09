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
from .generate import add_generate
from .programs import kept_programs, VARIABLE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 1 for bad input, 2 for bad
    usage."""
    if argv is None:  # the process is ours: what imports have made is no garbage
        gc.freeze()
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        with kept_programs(), _unchecked():
            status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, ValueError, OSError) as error:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eqx-bart",
        description="BART in JAX.",
        epilog="Compiled programs are kept in ~/.cache/eqx-bart, or where XDG_CACHE_HOME "
        f"says; {VARIABLE} is another directory, and none if it is empty.",
    )
    version = importlib.metadata.version("eqx-bart")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    commands = parser.add_subparsers(dest="command", required=True)
    add_generate(commands)
    add_info(commands)
    add_convert(commands)
    return parser
