"""Sampling, streaming, results, constraints, and that a row stands for itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from conftest import with_slow
from oracle import assert_close, convert, random_config, random_ids, random_model

import eqx_bart as eb


GREEDY = {}
SAMPLING = {"do_sample": True, "top_k": 0, "key": jax.random.key(5)}
BEAMS = {"num_beams": 3, "no_repeat_ngram_size": 2}
BEAM_SAMPLING = {"do_sample": True, "num_beams": 2, "key": jax.random.key(5)}
STRATEGIES = (GREEDY, SAMPLING, BEAMS, BEAM_SAMPLING)


def pair(seed, **changes):
    """HF's model and ours, with other answers for other inputs."""
    rng = np.random.default_rng([seed, 11])
    config = random_config(rng)
    config.tie_word_embeddings = False
    config.forced_eos_token_id = None
    for name, value in changes.items():
        setattr(config, name, value)
    theirs = random_model("BartForConditionalGeneration", config, seed, torch.float32)
    return theirs, convert(theirs), rng


@pytest.fixture(scope="module")
def models():
    return pair(0, max_position_embeddings=16, vocab_size=30)


def first_logits(theirs, ids):
    start = torch.tensor([[theirs.config.decoder_start_token_id]])
    with torch.no_grad():
        outputs = theirs(torch.from_numpy(ids), decoder_input_ids=start)
    return outputs.logits[:, -1]


WARPERS = {
    "temperature": (0.5, transformers.TemperatureLogitsWarper),
    "top_k": (5, transformers.TopKLogitsWarper),
    "top_p": (0.7, transformers.TopPLogitsWarper),
    "min_p": (0.2, transformers.MinPLogitsWarper),
    "typical_p": (0.6, transformers.TypicalLogitsWarper),
    "epsilon_cutoff": (0.05, transformers.EpsilonLogitsWarper),
    "eta_cutoff": (0.2, transformers.EtaLogitsWarper),
}


@pytest.mark.parametrize("names", [*((name,) for name in WARPERS), tuple(WARPERS)])
def test_samples_have_the_distribution_of_the_warpers(models, names):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 1, 6)
    scores = first_logits(theirs, ids)
    for name in names:
        value, warper = WARPERS[name]
        scores = warper(value)(None, scores)
    exact = torch.softmax(scores[0].double(), 0).numpy()
    settings = {"top_k": 0} | {name: WARPERS[name][0] for name in names}
    tokens = ours.generate(
        np.repeat(ids, 8, axis=0),
        do_sample=True,
        max_new_tokens=1,
        num_return_sequences=500,
        key=jax.random.key(len(names)),
        **settings,
    ).sequences[:, 1]
    counts = np.bincount(np.asarray(tokens), minlength=len(exact))
    support = exact > 0
    assert counts[~support].sum() == 0
    expected = exact[support] * counts.sum()
    if support.sum() > 1:
        assert scipy.stats.chisquare(counts[support], expected).pvalue > 1e-3


def test_beam_sampling_has_the_distribution_of_drawing_without_replacement(models):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 1, 6)
    p = torch.softmax(first_logits(theirs, ids)[0].double(), 0).numpy()
    # The first two draws compete, and the likelier one wins.
    both = p[:, None] * p / (1 - p[:, None]) * ~np.eye(len(p), dtype=bool)
    both = both + both.T
    exact = np.array([both[i, p < p[i]].sum() for i in range(len(p))])
    assert np.isclose(exact.sum(), 1)
    tokens = [
        ours.generate(
            np.repeat(ids, 512, axis=0),
            do_sample=True,
            num_beams=2,
            top_k=0,
            max_new_tokens=1,
            key=jax.random.key(i),
        ).sequences[:, 1]
        for i in range(8)
    ]
    counts = np.bincount(np.concatenate(tokens), minlength=len(p))
    rare = exact * counts.sum() < 5
    observed = [*counts[~rare], counts[rare].sum()]
    expected = [*exact[~rare] * counts.sum(), exact[rare].sum() * counts.sum()]
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("beams", "ends", "expected"), [(1, [3, 4], 1), (2, 3, 2), (3, [3, 4], 3)]
)
def test_beams_always_have_a_token_that_does_not_end_them(beams, ends, expected, models):
    """Whatever the warpers would leave, as in HF."""
    _, ours, _ = models
    call = {"do_sample": True, "max_new_tokens": 3, "key": jax.random.key(0)}
    call |= {"num_beams": beams, "eos_token_id": ends, "output_scores": True}
    least = {"top_k": 1, "top_p": 0.0, "min_p": 1.0}
    scores = ours.generate(np.array([[5, 6, 7]]), **least, **call).scores
    assert np.all(np.sum(np.asarray(scores)[0] > -np.inf, axis=-1) == expected)


def test_rows_that_are_alike_draw_other_samples(models):
    theirs, ours, rng = models
    ids = np.repeat(random_ids(rng, theirs.config, 1, 6), 4, axis=0)
    settings = {"do_sample": True, "num_return_sequences": 4, "top_k": 0}
    key = jax.random.key(2)
    drawn = ours.generate(ids, max_new_tokens=10, key=key, **settings).sequences
    assert len(np.unique(np.asarray(drawn), axis=0)) > 12
    again = ours.generate(ids, max_new_tokens=10, key=key, **settings).sequences
    assert np.array_equal(drawn, again)
    raw = ours.generate(ids, max_new_tokens=10, key=jax.random.key_data(key), **settings)
    assert np.array_equal(drawn, raw.sequences)


@pytest.mark.parametrize("settings", with_slow(BEAMS, slow=STRATEGIES), ids=str)
@pytest.mark.parametrize("seed", with_slow(0, slow=range(4)))
def test_a_row_stands_for_itself(settings, seed):
    """Alone, in any batch, at any place in it, with padding on either side."""
    theirs, ours, rng = pair(seed, max_position_embeddings=16, vocab_size=25)
    pad, start = theirs.config.pad_token_id, theirs.config.decoder_start_token_id
    rows = [rng.integers(0, 25, rng.integers(1, 12)) for _ in range(5)]
    prompts = [[start, *rng.integers(0, 25, rng.integers(0, 3))] for _ in rows]

    def padded(rows, width):
        ids = rng.integers(0, 25, (len(rows), width))
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            first = rng.integers(0, width - len(row) + 1)
            ids[i, first : first + len(row)] = row
            mask[i, first : first + len(row)] = 1
        return ids, mask

    def answers(order, width, prompt_width):
        ids, mask = padded([rows[i] for i in order], width)
        prompt, prompt_mask = padded([prompts[i] for i in order], prompt_width)
        output = ours.generate(
            ids,
            mask,
            decoder_input_ids=prompt,
            decoder_attention_mask=prompt_mask,
            max_new_tokens=8,
            pad_token_id=pad,
            output_token_log_probs=True,
            **settings,
        )
        new = np.asarray(output.sequences)[:, -8:]
        return dict(zip(order, zip(new, output.token_log_probs, strict=True), strict=True))

    together = answers(range(5), 12, 4)
    for order, width, prompt_width in (
        ([3, 0], 15, 6),
        ([4, 2, 1, 0], 12, 4),
        ([1], 12, 3),
    ):
        for i, (tokens, log_probs) in answers(order, width, prompt_width).items():
            assert np.array_equal(tokens, together[i][0])
            assert np.allclose(log_probs, together[i][1], atol=1e-4)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        alone = ours.generate(
            row[None],
            decoder_input_ids=np.array([prompt]),
            max_new_tokens=8,
            **settings,
        ).sequences[0, -8:]
        assert np.array_equal(alone, together[i][0])


@pytest.mark.parametrize("settings", with_slow(BEAMS, slow=STRATEGIES), ids=str)
def test_inside_jit_and_step_by_step(models, settings):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 3, 7)
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    arguments = {"max_new_tokens": 9, **settings}
    expected = ours.generate(ids, mask, **arguments)
    inside = eqx.filter_jit(lambda model, ids, mask: model.generate(ids, mask, **arguments))
    assert np.array_equal(
        inside(ours, jnp.asarray(ids), mask).sequences, expected.sequences
    )

    state = ours.init_generation(ids, mask, **arguments)
    step, count = eqx.filter_jit(ours.step), 0
    while not state.is_done:
        state, count = step(state), count + 1
    assert 1 <= count <= 9
    assert np.array_equal(state.output().sequences, expected.sequences)
    assert np.array_equal(state.output().lengths, expected.lengths)


@pytest.mark.parametrize("settings", with_slow(BEAMS, slow=STRATEGIES), ids=str)
def test_streaming(models, settings):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 3, 7)
    arguments = {"max_new_tokens": 12, "eos_token_id": [3, 4], **settings}
    expected = ours.generate(ids, **arguments)
    chunks = list(ours.stream(ids, **arguments))
    for i, length in enumerate(expected.lengths):
        answer = np.asarray(expected.sequences)[i, 1:length]
        parts = [chunk[i] for chunk in chunks]
        assert np.array_equal(np.concatenate(parts), answer)
        if "num_beams" not in settings:
            assert all(len(part) == 1 for part in parts[: len(answer)])
    if "num_beams" in settings:
        assert any(len(part) for chunk in chunks[:-3] for part in chunk)


def test_several_samples_are_streamed(models):
    _, ours, _ = models
    settings = SAMPLING | {"num_return_sequences": 3, "max_new_tokens": 5}
    ids = np.array([[5, 6], [7, 8]])
    chunks = list(ours.stream(ids, **settings))
    rows = [np.concatenate(row).tolist() for row in zip(*chunks, strict=True)]
    expected = ours.generate(ids, **settings)
    answers = zip(expected.sequences, expected.lengths, strict=True)
    assert rows == [row[1:length].tolist() for row, length in answers]


def test_streaming_refuses(models):
    _, ours, _ = models
    ids = np.array([[5, 6]])
    with pytest.raises(ValueError, match="gives the best beam alone"):
        ours.stream(ids, num_beams=2, num_return_sequences=2)
    with pytest.raises(ValueError, match="cannot run inside jit"):
        jax.jit(lambda ids: next(ours.stream(ids)))(jnp.asarray(ids))


@pytest.mark.parametrize("num_ends", [11, 22])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_when_a_beam_search_ends(models, early_stopping, num_ends):
    """Where many tokens are ends, so that which answer is the best depends on how long the
    search goes on, and on how many candidates a step has."""
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 64, 7)
    settings = {"num_beams": 2, "length_penalty": 3.0, "early_stopping": early_stopping}
    settings |= {"eos_token_id": list(range(3, 3 + num_ends)), "max_new_tokens": 12}
    expected = theirs.generate(torch.from_numpy(ids), do_sample=False, **settings).numpy()
    found = np.asarray(ours.generate(ids, **settings).sequences)
    assert np.array_equal(found[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_results_on_request(models, settings):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 2, 7)
    settings = {"max_new_tokens": 6, "repetition_penalty": 1.3, **settings}
    settings["eos_token_id"] = list(range(20, 30))
    settings |= dict.fromkeys(("output_scores", "output_logits", "output_attentions"), True)
    expected = theirs.generate(
        torch.from_numpy(ids), do_sample=False, return_dict_in_generate=True, **settings
    )
    output = ours.generate(ids, output_token_log_probs=True, **settings)
    steps = len(expected.scores)
    assert_close(output.scores[:steps], torch.stack(expected.scores), 1e-4)
    assert_close(output.logits[:steps], torch.stack(expected.logits), 1e-4)
    beams = expected.get("beam_indices")
    if beams is not None:
        width = beams.shape[1]
        assert np.array_equal(output.beam_indices[:, :width], beams)
        new = np.asarray(output.lengths) - 1
        log_probs = np.asarray(output.token_log_probs)
        assert_close(log_probs.sum(1) / new, output.sequences_scores, 1e-5)
        assert_close(output.sequences_scores, expected.sequences_scores, 1e-4)
    transitions = theirs.compute_transition_scores(
        expected.sequences, expected.scores, beams, normalize_logits=beams is None
    )
    width = transitions.shape[1]
    is_new = np.arange(1, width + 1) < np.asarray(output.lengths)[:, None]
    log_probs = np.where(is_new, transitions, 0)
    assert_close(output.token_log_probs[:, :width], log_probs, 1e-4)
    for layer, weights in enumerate(np.asarray(output.cross_attentions)):
        for step, theirs_at in enumerate(expected.cross_attentions):
            for row in np.flatnonzero(is_new[:, step]):
                beam = row if beams is None else int(beams[row, step])
                chosen = theirs_at[layer][beam, :, 0]
                assert_close(weights[row, :, step], chosen, 1e-4)


@pytest.mark.parametrize("settings", [SAMPLING, {"num_beams": 8}], ids=str)
def test_cross_attentions_end_with_their_row(models, settings):
    _, ours, _ = models
    output = ours.generate(
        np.array([[5, 6, 7]]),
        num_return_sequences=8,
        max_new_tokens=6,
        eos_token_id=list(range(20, 30)),
        output_attentions=True,
        **settings,
    )
    lengths = np.asarray(output.lengths)
    assert len(set(lengths.tolist())) > 2
    is_new = np.arange(1, 7) < lengths[:, None]
    for weights in output.cross_attentions:
        total = np.asarray(weights.sum(-1))
        assert_close(total, np.broadcast_to(is_new[:, None], total.shape), 1e-5)


def test_cross_attentions_stay_with_their_source(models):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 1, 5)
    settings = {"max_new_tokens": 4, "num_beams": 2, "output_attentions": True}
    alone = ours.generate(ids, **settings).cross_attentions[0]
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 0]])
    padded = ours.generate(np.pad(ids, ((0, 0), (3, 1))), mask, **settings)
    assert padded.cross_attentions[0].shape[-1] == 9
    assert_close(padded.cross_attentions[0][..., 3:8], alone, 1e-5)


class Favour(eb.LogitsProcessor):
    """Makes one token likelier."""

    token: int
    bonus: jax.Array

    def __call__(self, input_ids, scores, length):
        assert input_ids.shape[0] == scores.shape[0]
        return scores.at[:, self.token].add(jnp.where(length[:, 0] == 3, self.bonus, 0))


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=str)
def test_a_processor_of_ones_own(models, settings):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 2, 5)
    processor = Favour(7, jnp.asarray(1e6))
    output = ours.generate(
        ids, logits_processors=[processor], max_new_tokens=5, min_new_tokens=5, **settings
    )
    assert np.all(np.asarray(output.sequences)[:, 3] == 7)


def test_invalid_scores_are_removed_on_request(models):
    _, ours, _ = models
    broken = eqx.tree_at(
        lambda m: m.final_logits_bias,
        ours,
        eb.nn.Buffer(jnp.full((1, 30), jnp.nan)),
    )
    ids, call = np.array([[5, 6, 7]]), {"max_new_tokens": 3, "min_new_tokens": 3}
    assert broken.generate(ids, **call).sequences[0, 1] == -1
    kept = broken.generate(ids, remove_invalid_values=True, output_scores=True, **call)
    assert np.all(np.asarray(kept.sequences) >= 0)
    assert not np.any(np.isnan(kept.scores))


@pytest.mark.parametrize("beams", [1, 2])
def test_constrained_to_a_set_of_sequences(models, beams):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 3, 5)
    start, eos = theirs.config.decoder_start_token_id, theirs.config.eos_token_id
    others = np.setdiff1d(np.arange(30), [eos])
    allowed = [[*rng.choice(others, rng.integers(1, 5)), eos] for _ in range(40)]
    prefixes = {}
    for sequence in allowed:
        for i, token in enumerate(sequence):
            prefixes.setdefault(tuple(sequence[:i]), set()).add(int(token))

    def children(_, sentence):
        return sorted(prefixes.get(tuple(sentence[1:].tolist()), {eos}))

    expected = theirs.generate(
        torch.from_numpy(ids),
        prefix_allowed_tokens_fn=children,
        do_sample=False,
        num_beams=beams,
        max_new_tokens=6,
    ).numpy()
    trie = eb.PrefixConstrainedLogitsProcessor(allowed, prompt=[start])
    output = ours.generate(ids, logits_processors=[trie], num_beams=beams, max_new_tokens=6)
    for row, length, theirs_row in zip(*output.to_tuple()[:2], expected, strict=True):
        answer = np.asarray(row)[:length]
        assert np.array_equal(answer, theirs_row[:length])
        assert answer[1:].tolist() in [list(map(int, sequence)) for sequence in allowed]


def test_each_input_has_its_own_constraint(models):
    """Five inputs, which a program for eight rows answers."""
    theirs, ours, rng = models
    ids, end = random_ids(rng, theirs.config, 5, 5), theirs.config.eos_token_id
    start = theirs.config.decoder_start_token_id
    own = [[[9, 10, end], [9, 11, end]], [[12, 13, end]], [[14, end], [15, end]]]
    own += [[[16, end]], [[17, 18, 19, end]]]
    constraint = eb.PrefixConstrainedLogitsProcessor(by_input=own, prompt=[start])
    call = {"max_new_tokens": 4, "num_beams": 2}
    found = ours.generate(ids, logits_processors=[constraint], **call)
    for row, length, allowed in zip(found.sequences, found.lengths, own, strict=True):
        assert np.asarray(row)[1:length].tolist() in allowed

    @eqx.filter_jit
    def inside(constraint):
        return ours.generate(ids, logits_processors=[constraint], **call).sequences

    constraint = jax.tree.map(jnp.asarray, constraint)
    assert np.array_equal(inside(constraint), found.sequences)
    with pytest.raises(ValueError, match="is for 5 inputs, and the batch has 2"):
        ours.generate(ids[:2], logits_processors=[constraint], **call)


def test_constraints_that_are_none():
    with pytest.raises(ValueError, match="there are no sequences"):
        eb.PrefixConstrainedLogitsProcessor([])
    for empty in ([[]], [[3, -1]]):
        with pytest.raises(ValueError, match="a sequence needs token ids"):
            eb.PrefixConstrainedLogitsProcessor(empty)
    for both in ({}, {"sequences": [[3]], "by_input": [[[3]]]}):
        with pytest.raises(TypeError, match="one of the two"):
            eb.PrefixConstrainedLogitsProcessor(**both)


@pytest.mark.slow
def test_inputs_of_many_lengths_share_a_few_programs(config, getkey):
    config = eb.BartConfig.from_dict(config.to_dict() | {"max_position_embeddings": 512})
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    compilations = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    rng = np.random.default_rng(0)
    for length in rng.permutation(np.arange(1, 501, 13)):
        ids = rng.integers(0, config.vocab_size, (rng.integers(3, 5), length))
        model.generate(ids, max_new_tokens=2, num_beams=2)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compilations) <= 8


def test_encoder_outputs_instead_of_the_source(models):
    theirs, ours, rng = models
    ids = random_ids(rng, theirs.config, 3, 6)
    mask = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    expected = ours.generate(ids, mask, num_beams=2, encoder_no_repeat_ngram_size=2)
    encoded = eqx.filter_jit(ours.encode)(ids, mask)
    settings = {"num_beams": 2, "encoder_no_repeat_ngram_size": 2}
    output = ours.generate(ids, mask, encoder_outputs=encoded, **settings)
    assert np.array_equal(output.sequences, expected.sequences)
    with pytest.raises(
        ValueError, match="encoder_no_repeat_ngram_size needs the input_ids"
    ):
        ours.generate(None, mask, encoder_outputs=encoded, **settings)
    with pytest.raises(ValueError, match="needs input_ids or encoder_outputs"):
        ours.generate()
    for wrong in (
        {"decoder_input_ids": ids[:2]},
        {"encoder_outputs": jax.tree.map(lambda x: x[:2], encoded)},
    ):
        with pytest.raises(jaxtyping.TypeCheckError, match="batch"):
            ours.generate(ids, mask, **wrong)


def test_inputs_that_do_not_fit(models):
    _, ours, _ = models
    ids = np.array([[5, 6], [7, 8]])
    with pytest.raises(jaxtyping.TypeCheckError, match="attention_mask"):
        ours.generate(ids, np.ones((2, 3), int))
    with pytest.raises(ValueError, match="17 tokens is longer than the position table"):
        ours.generate(np.full((1, 17), 5))
    with pytest.raises(ValueError, match=r"decoder_input_ids\[1, 0\] is 30"):
        ours.generate(ids, decoder_input_ids=np.array([[5, 6], [30, 31]]))
    assert ours.generate(ids[:0], num_beams=2, max_new_tokens=3).sequences.shape == (0, 4)
    with pytest.raises(ValueError, match="The batch is empty"):
        ours.init_generation(ids[:0])


def test_masks_that_leave_nothing(models):
    _, ours, _ = models
    ids, mask = np.array([[5, 6], [7, 8]]), np.array([[1, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"^attention_mask masks every token of row 1"):
        ours.generate(ids, mask)
    with pytest.raises(
        ValueError, match=r"decoder_attention_mask masks every token of row 1"
    ):
        ours.generate(ids, decoder_input_ids=ids, decoder_attention_mask=mask)
    with pytest.raises(Exception, match="attention_mask masks every token"):
        jax.block_until_ready(jax.jit(lambda *x: ours.generate(*x).sequences)(ids, mask))


def test_half_precision(models):
    theirs, ours, rng = models
    dtype = jnp.bfloat16
    ids = random_ids(rng, theirs.config, 1, 6)
    half = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, ours)
    for settings in (GREEDY, BEAM_SAMPLING):
        output = half.generate(ids, max_new_tokens=6, output_scores=True, **settings)
        assert output.scores.dtype == jnp.float32
        assert np.all(np.asarray(output.lengths) >= 2)


def test_a_decoder_alone_continues_its_prompt():
    config = random_config(np.random.default_rng(4))
    config.tie_word_embeddings, config.forced_eos_token_id = False, None
    config.max_position_embeddings = 16
    theirs = random_model("BartForCausalLM", config, 4, torch.float32)
    ours = convert(theirs)
    rng = np.random.default_rng(0)
    others = np.setdiff1d(np.arange(config.vocab_size), [config.pad_token_id])
    ids = rng.choice(others, (3, 5))
    ids[1, :3] = config.pad_token_id
    for settings in ({}, {"num_beams": 3, "encoder_repetition_penalty": 1.5}):
        output = ours.generate(ids, max_new_tokens=7, **settings)
        for i, first in enumerate((0, 3, 0)):
            expected = theirs.generate(
                torch.from_numpy(ids[i : i + 1, first:]),
                do_sample=False,
                max_new_tokens=7,
                use_cache=False,  # with it, HF's raises if it has more layers
                **settings,
            )[0]
            sequence = np.asarray(output.sequences)[i]
            answer = sequence[first : int(output.lengths[i])]
            assert np.array_equal(answer, expected[: len(answer)])
            assert np.all(sequence[:first] == config.pad_token_id)
