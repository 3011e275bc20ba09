"""Rows with slots of their own against rows that share them, and against HF."""

import jax
import numpy as np
import pytest
import torch
from conftest import with_slow
from oracle import assert_close, convert, random_config, random_ids, random_model

from eqx_bart.generation import mixin, programs
from eqx_bart.generation.slots import by_row


def pair(kind, seed):
    rng = np.random.default_rng([seed, 12])
    config = random_config(rng)
    config.tie_word_embeddings, config.forced_eos_token_id = False, None
    config.max_position_embeddings, config.vocab_size = 16, 60
    theirs = random_model(kind, config, seed, torch.float32)
    return theirs, convert(theirs), rng


KINDS = ("BartForConditionalGeneration", "BartForCausalLM")
SETTINGS = {
    "beams": {"num_beams": 4, "num_return_sequences": 3, "no_repeat_ngram_size": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True, "key": jax.random.key(1)},
}


@pytest.mark.parametrize("settings", with_slow("beams", slow=SETTINGS))
@pytest.mark.parametrize("kind", with_slow(KINDS[0], slow=KINDS))
def test_both_forms_of_slots_are_one(kind, settings, monkeypatch):
    theirs, ours, rng = pair(kind, 0)
    ids, mask = random_ids(rng, theirs.config, 3, 5), np.ones((3, 5), int)
    mask[1, :2] = 0
    asked = {"output_scores": True, "output_attentions": kind != "BartForCausalLM"}
    call = {"max_new_tokens": 7, **SETTINGS[settings], **asked}
    shared = ours.generate(ids, mask, **call)
    monkeypatch.setattr(mixin, "_FEW_BEAMS", 1)
    programs._program.cache_clear()
    own = ours.generate(ids, mask, **call)
    pairs = zip(jax.tree.leaves(own), jax.tree.leaves(shared), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)


@pytest.mark.parametrize("kind", with_slow(KINDS[0], slow=KINDS))
def test_many_beams(kind):
    """More than share slots."""
    theirs, ours, rng = pair(kind, 1)
    ids = random_ids(rng, theirs.config, 2, 4)
    settings = {"num_beams": 20, "num_return_sequences": 20, "max_new_tokens": 6}
    expected = theirs.generate(
        torch.from_numpy(ids),
        attention_mask=torch.ones(2, 4, dtype=int),
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    output = ours.generate(ids, np.ones((2, 4), int), **settings)
    assert_close(output.sequences_scores, expected.sequences_scores, 1e-4)
    found = zip(output.sequences, output.lengths, expected.sequences, strict=True)
    same = [np.array_equal(row[:n], theirs[:n]) for row, n, theirs in found]
    assert np.mean(same) > 0.9  # ties of a random model may come in another order


@pytest.mark.parametrize("kind", with_slow(KINDS[0], slow=KINDS))
def test_samples_are_rows(kind):
    """The samples of an input go on from its source and its prompt, as greedy search
    does."""
    theirs, ours, rng = pair(kind, 2)
    ids = random_ids(rng, theirs.config, 3, 6)
    greedy = ours.generate(ids, max_new_tokens=6).sequences
    samples = ours.generate(
        ids,
        do_sample=True,
        top_k=1,
        num_return_sequences=3,
        max_new_tokens=6,
        key=jax.random.key(0),
    )
    assert np.array_equal(samples.sequences, np.repeat(greedy, 3, axis=0))


@pytest.mark.parametrize("many", [(2, 12), (2, 3), (3, 2, 4), (5, 4)])
def test_a_cache_whose_rows_are_not_its_first_axis(many):
    """A cache of one's own, for 3 rows of each of 2 inputs."""
    one = (np.zeros((2, 4)), np.zeros(7))
    assert by_row(one, (np.zeros((6, 4)), np.zeros(7)), 3) == (True, False)
    with pytest.raises(
        ValueError, match=r"shape \(2, 4\) for one row .* must be its first"
    ):
        by_row(one, (np.zeros(many), np.zeros(7)), 3)
