"""Engines that are processes of their own."""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any


class Process:
    """One that answers each line of JSON with another."""

    def __init__(self, name: str, command: Sequence[str], **environment: str) -> None:
        """Starts it, on the CPU."""
        quiet = {"JAX_PLATFORMS": "cpu", "TRANSFORMERS_VERBOSITY": "error"}
        self.name = name
        self.process = subprocess.Popen(  # noqa: S603, the command is our own
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | quiet | environment,
        )

    def ask(self, question: Any) -> Any:
        """The answer, which it may take a while to find."""
        ask, answers = self.process.stdin, self.process.stdout
        assert ask is not None
        assert answers is not None
        ask.write(json.dumps(question) + "\n")
        ask.flush()
        line = answers.readline()
        if not line:
            raise SystemExit(f"The process of {self.name} has ended.")
        return json.loads(line)
