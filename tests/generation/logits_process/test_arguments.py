"""Processors made by hand take the arguments that HF's take."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers.generation.logits_process as hf

import eqx_bart as eb
from eqx_bart.generation import logits_process as ours


IDS = np.ones((2, 3), int)
SCORES = np.random.default_rng(0).normal(size=(2, 10)).astype(np.float32)


def check(name, *arguments, **options):
    expected = getattr(hf, name)(*arguments, **options)
    expected = expected(torch.tensor(IDS), torch.tensor(SCORES)).numpy()
    processor = getattr(ours, name)(*arguments, **options)
    scores = processor(
        jnp.asarray(IDS), jnp.asarray(SCORES), jnp.full((len(IDS), 1), 3, jnp.int32)
    )
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


@pytest.mark.parametrize(
    ("num_beams", "eos_token_id", "expected"),
    [(1, (2, 3), 1), (3, (2,), 2), (3, (), 2), (3, (2, 3), 3), (3, (2, 3, 4), 4)],
)
def test_beam_sampling_keeps_a_token_that_does_not_end(num_beams, eos_token_id, expected):
    """As many as HF's `GenerationMixin._get_logits_processor` says."""
    config = eb.GenerationConfig(
        do_sample=True,
        num_beams=num_beams,
        eos_token_id=eos_token_id,
        top_k=1,
        top_p=0.1,
        min_p=0.9,
        typical_p=0.1,
        epsilon_cutoff=0.9,
        eta_cutoff=0.9,
    )
    _, *warpers = ours.logits_processors(config.settled(1, 9, 9), 1, None, ())
    assert [warper.min_tokens_to_keep for warper in warpers] == [expected] * 6
    assert isinstance(warpers[0], ours.TopKLogitsWarper)
