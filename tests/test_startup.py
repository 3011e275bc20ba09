"""What an import of the package brings with it, and what it leaves to the first call."""

import subprocess
import sys


SCRIPT = """
import sys
import beartype

decorated = []
checked = beartype.beartype

def counted(*args, **kwargs):
    made = checked(*args, **kwargs)
    return lambda function: decorated.append(function) or made(function)

beartype.beartype = counted
import {name}

unwanted = ("transformers", "huggingface_hub", "tokenizers", "torch", "optax", "rich")
print(*(x for x in unwanted if x in sys.modules))
print(len(decorated))
"""


def lines(name):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=name)],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.splitlines()


def test_what_an_import_brings():
    modules, decorated = lines("eqx_bart")
    assert modules == ""
    assert int(decorated) < 100  # of more than a thousand functions


def test_what_the_command_line_brings():
    modules, _ = lines("eqx_bart.cli")
    assert modules == "rich"
