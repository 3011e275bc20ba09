"""What a generation starts from, against HF's."""

import numpy as np
import pytest
import torch
from oracle import assert_close, convert, random_config, random_ids, random_model

from eqx_bart.generation.call import usual_steps
from eqx_bart.generation.inputs import GenerationInputs
from eqx_bart.nn.matmul import power_of_two


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng([0, 11])
    config = random_config(rng)
    config.tie_word_embeddings, config.forced_eos_token_id = False, None
    config.max_position_embeddings, config.vocab_size = 16, 30
    config.decoder_start_token_id = 3
    theirs = random_model("BartForConditionalGeneration", config, 0, torch.float32)
    return theirs, convert(theirs), random_ids(rng, config, 2, 6)


@pytest.mark.parametrize(
    "prompts",
    [[[5, 6], [7, 8]], [[3, 6], [3, 8]], [[3, 6], [7, 8]], [[5], [6]], [[5, 3], [7, 3]]],
)
def test_a_prompt_goes_on_from_the_start_token(prompts, models):
    """It is put before all rows, unless one of them begins with it."""
    theirs, ours, ids = models
    call = {"max_new_tokens": 5, "min_new_tokens": 5}
    expected = theirs.generate(
        torch.from_numpy(ids), decoder_input_ids=torch.tensor(prompts), **call
    )
    found = ours.generate(ids, decoder_input_ids=np.array(prompts), **call)
    assert np.array_equal(found.sequences, expected)
    assert np.all(found.lengths == expected.shape[1])


def test_the_start_token_comes_after_the_padding_of_a_prompt(models):
    _, ours, ids = models
    found = ours.generate(
        ids,
        decoder_input_ids=np.array([[9, 9, 5], [6, 7, 8]]),
        decoder_attention_mask=np.array([[0, 0, 1], [1, 1, 1]]),
        max_new_tokens=5,
    )
    for row, prompt, padding in zip(found.sequences, ([5], [6, 7, 8]), (2, 0), strict=True):
        i = 0 if padding else 1
        alone = ours.generate(
            ids[i : i + 1], decoder_input_ids=np.array([prompt]), max_new_tokens=5
        ).sequences[0]
        assert np.array_equal(row[padding:], alone)
        assert alone[: 1 + len(prompt)].tolist() == [3, *prompt]


@pytest.mark.parametrize("padding", [(0, 0), (3, 0), (0, 3)])
def test_a_prompt_of_the_smallest_ids(models, padding):
    """They are tokens like others, at the end and beside padding, too."""
    _, ours, ids = models
    prompt = np.array([[3, 0, 1, 0, 0], [3, 1, 0, 1, 0]])
    start = ours(ids, decoder_input_ids=prompt)
    mask = np.pad(np.ones_like(prompt), ((0, 0), padding))
    padded = np.pad(prompt, ((0, 0), padding), constant_values=9)
    found = ours.generate(
        ids,
        decoder_input_ids=padded,
        decoder_attention_mask=mask,
        max_new_tokens=1,
        output_logits=True,
    )
    assert_close(found.logits[0], start.logits[:, -1], 1e-5)
    assert found.sequences.shape == (2, padded.shape[1] + 1)


def test_usual_sizes():
    """Numbers of rows and tokens are padded to powers of two, and buffers to those and one
    and a half of them: little more than what is needed, and the same for many calls."""
    assert [power_of_two(n) for n in range(10)] == [1, 1, 2, 4, 4, 8, 8, 8, 8, 16]
    found = [usual_steps(n, 1000) for n in (0, 1, 16, 17, 24, 25, 32, 33, 48, 49, 999)]
    assert found == [16, 16, 16, 24, 24, 32, 32, 48, 48, 64, 1000]
    assert [usual_steps(n, 20) for n in (16, 17, 21)] == [16, 20, 21]
    inputs = GenerationInputs(np.full((3, 1), 5), np.full((3, 17), 6))
    padded = inputs.bucketed(100)
    assert padded.prompt.tolist() == [[5]] * 4
    assert padded.input_ids.tolist() == [[6] * 17 + [-1] * 15] * 4
    assert inputs.bucketed(20).input_ids.shape == (4, 20)
