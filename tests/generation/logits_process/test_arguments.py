"""Processors made by hand take the arguments that HF's take."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers.generation.logits_process as hf

from eqx_bart.generation import logits_process as ours


IDS = np.ones((2, 3), int)
SCORES = np.random.default_rng(0).normal(size=(2, 10)).astype(np.float32)


def check(name, *arguments, **options):
    expected = getattr(hf, name)(*arguments, **options)
    expected = expected(torch.tensor(IDS), torch.tensor(SCORES)).numpy()
    processor = getattr(ours, name)(*arguments, **options)
    scores = processor(jnp.asarray(IDS), jnp.asarray(SCORES), jnp.asarray(3))
    assert np.allclose(scores, expected)
    assert not np.allclose(scores, SCORES)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TopKLogitsWarper", 1),
        ("TopPLogitsWarper", 0.2),
        ("MinPLogitsWarper", 0.9),
        ("TypicalLogitsWarper", 0.1),
        ("EpsilonLogitsWarper", 0.9),
        ("EtaLogitsWarper", 0.9),
    ],
)
def test_filters(name, number):
    """HF's `test_top_k_dist_warper` and its siblings."""
    check(name, number)
    check(name, number, filter_value=-7.0, min_tokens_to_keep=3)
    check(name, number, 0.0, 2)


@pytest.mark.parametrize("eos_token_id", [3, [3], [3, 4]])
def test_one_id_or_more(eos_token_id):
    """HF's `test_min_length_dist_processor`, and its siblings."""
    check("MinLengthLogitsProcessor", 5, eos_token_id)
    check("ForcedEOSTokenLogitsProcessor", 4, eos_token_id)


def test_lists_of_ids():
    check("SuppressTokensLogitsProcessor", [3, 4])
    check("SuppressTokensAtBeginLogitsProcessor", [3, 4], 3)
