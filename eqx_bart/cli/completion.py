"""`eqx-bart --print-completion`: what a shell needs to complete a command."""

import argparse
from collections.abc import Sequence
from typing import Any


#: The shells that shtab knows, which is imported when it is wanted.
SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")

#: What an argument with this metavar is.
_FILES, _DIRECTORIES = {"FILE"}, {"CHECKPOINT", "SOURCE", "DESTINATION"}


class PrintCompletion(argparse.Action):
    """Prints a script that makes a shell complete commands, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any):
        super().__init__(
            option_strings,
            dest,
            choices=SHELLS,
            help="print a script that makes the shell complete commands and options: "
            'eval "$(eqx-bart --print-completion bash)" in ~/.bashrc, for instance',
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        import shtab

        _say_what_are_files(parser, shtab)
        print(shtab.complete(parser, values))
        parser.exit()


def _say_what_are_files(parser: argparse.ArgumentParser, shtab: Any) -> None:
    for action in vars(parser)["_actions"]:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _say_what_are_files(command, shtab)
        elif action.metavar in _FILES:
            action.complete = shtab.FILE
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY
