"""How long something takes."""

import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(run: Callable[[], Any]) -> float:
    """How long a run takes, to the end of what it computes."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
