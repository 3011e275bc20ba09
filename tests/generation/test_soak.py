"""A process that answers requests of all kinds for a long time. It is a script too: it
reads requests, and writes answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import eqx_bart as eb


NUMBERS = {
    "temperature": lambda rng: rng.uniform(0.3, 2),
    "top_p": lambda rng: rng.uniform(0.3, 0.99),
    "top_k": lambda rng: int(rng.integers(1, 60)),
    "length_penalty": lambda rng: rng.uniform(-1, 2),
    "repetition_penalty": lambda rng: rng.uniform(1.01, 1.5),
    "min_new_tokens": lambda rng: int(rng.integers(1, 4)),
    "forced_bos_token_id": lambda rng: int(rng.integers(4, 20)),
    "bad_words_ids": lambda rng: rng.integers(4, 20, (rng.integers(3, 5), 2)).tolist(),
}
STRATEGIES = (
    {},
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 2},
    {"do_sample": True},
    {"do_sample": True, "num_return_sequences": 3},
    {"do_sample": True, "num_beams": 2},
)


def structures(count):
    """A strategy, and which numbers are set with it."""
    rng = np.random.default_rng(0)
    sampling = {"temperature", "top_p", "top_k"}
    for _ in range(count):
        strategy = STRATEGIES[rng.integers(len(STRATEGIES))]
        names = set(rng.choice(list(NUMBERS), rng.integers(0, 4), replace=False))
        if not strategy.get("do_sample"):
            names -= sampling
        if strategy.get("num_beams", 1) == 1:
            names -= {"length_penalty"}
        yield strategy, sorted(names)


def requests(count, kinds=30):
    """Requests as a server gets them, a few kinds more often than the others."""
    rng, kinds = np.random.default_rng(1), list(structures(kinds))
    share = 1 / np.arange(1, len(kinds) + 1) ** 1.5
    for i in range(count):
        strategy, names = kinds[rng.choice(len(kinds), p=share / share.sum())]
        shape = rng.integers(1, 3), rng.integers(3, 17)
        yield {
            "ids": rng.integers(4, 30, shape).tolist(),
            "seed": i,
            "settings": strategy
            | {name: NUMBERS[name](rng) for name in names}
            | {"max_new_tokens": int(rng.integers(5, 25))},
        }


def answer(model, request):
    output = model.generate(
        np.array(request["ids"]), key=jax.random.key(request["seed"]), **request["settings"]
    )
    return np.asarray(output.sequences).tolist()


def memory():
    """Memory maps, and resident megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    maps = Path("/proc/self/maps").read_text().count("\n")
    return maps, pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_five_thousand_requests():
    """Memory levels off, and answers are those of a fresh process."""
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    asked, answers, used = list(requests(5000)), [], []
    for i, request in enumerate(asked):
        answers.append(answer(model, request))
        if i % 500 == 499:
            used.append(memory())
    maps, megabytes = np.array(used).T
    assert maps.max() < 45_000, used
    assert maps[-1] < 1.1 * maps[4], used
    assert megabytes[-1] < 1.1 * megabytes[4], used
    some = np.random.default_rng(2).choice(len(asked), 100, replace=False)
    fresh = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asked[i] for i in some]),
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(fresh.stdout) == [answers[i] for i in some]


if __name__ == "__main__":
    builtin = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    found = [answer(builtin, request) for request in json.load(sys.stdin)]
    json.dump(found, sys.stdout)
