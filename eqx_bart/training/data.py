"""What the functions share that load data: they run in NumPy, outside `jit`."""

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..config import BartConfig


def generator(key: PRNGKeyArray) -> np.random.Generator:
    """NumPy's random numbers, from a key of JAX's."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).reshape(-1))


def pad_token_id(config: BartConfig) -> int:
    """The id of padding.

    **Raises** `ValueError` if there is none.
    """
    if config.pad_token_id is None:
        raise ValueError("The config has no pad_token_id: rows have no known end.")
    return config.pad_token_id
