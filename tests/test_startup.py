"""What an import of the package brings with it, what it leaves to the first call, and what
that leaves to the next."""

import subprocess
import sys

import equinox as eqx
import jax
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart import typechecking


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

unwanted = (
    *("transformers", "huggingface_hub", "tokenizers", "torch", "optax", "rich"),
    *("matplotlib", "sentencex", "shtab"),
)
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


@pytest.mark.parametrize(
    "settings",
    [
        {"output_attentions": True},
        {"num_beams": 2, "num_return_sequences": 2, "output_scores": True},
        {"do_sample": True, "key": jax.random.key(0), "repetition_penalty": 1.5},
    ],
    ids=["greedy", "beams", "samples"],
)
def test_a_call_like_the_last_decorates_nothing(settings, config, getkey, monkeypatch):
    """A function that is defined in a function is another one at each call: what checks its
    annotations would be made anew."""
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    ids, mask = (
        np.array([[5, 6, 7, 2], [8, 9, 2, 1]]),
        np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
    )
    made = []
    checked = typechecking._checked
    monkeypatch.setattr(
        typechecking,
        "_checked",
        lambda function: made.append(function) or checked(function),
    )
    for _ in range(2):
        model.generate(ids, mask, max_new_tokens=3, **settings)
    del made[:]
    model.generate(ids, mask, max_new_tokens=3, **settings)
    assert not made
    typechecking.typechecker(abs)(-1)
    assert made == [abs]
