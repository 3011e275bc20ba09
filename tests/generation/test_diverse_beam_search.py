"""Diverse beam search: HF's recorded answers, token for token, and what must hold."""

import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_slow
from held import held

import eqx_bart as eb
from eqx_bart.files.safetensors import write_safetensors
from eqx_bart.generation import mixin
from eqx_bart.generation.slots import OwnSlots


RECORDED = pathlib.Path(__file__).parent / "diverse"
CASES = json.loads((RECORDED / "cases.json").read_text())
UNIT = 1 / 64
QUICK = (0, 2, 3, 7)
GROUPS = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7}
TWO = GROUPS | {"num_return_sequences": 2, "max_new_tokens": 8, "eos_token_id": [5, 9]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The models of `diverse/record.py`."""
    weights = np.load(RECORDED / "models.npz")
    return [
        recorded_model(
            config, shapes, weights[f"arr_{i}"], tmp_path_factory.mktemp("model")
        )
        for i, (config, shapes) in enumerate(
            zip(CASES["configs"], CASES["shapes"], strict=True)
        )
    ]


def recorded_model(config, shapes, weights, directory):
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    parts = np.split(weights.astype(np.float32) * UNIT, ends[:-1])
    named = zip(shapes.items(), parts, strict=True)
    tensors = {name: part.reshape(shape) for (name, shape), part in named}
    for stack in ("encoder", "decoder"):
        shared = tensors["model.shared.weight"]
        tensors[f"model.{stack}.embed_tokens.weight"] = shared
    file = directory / "model.safetensors"
    write_safetensors(file, held(tensors))
    config = eb.BartConfig.from_dict(config)
    return eb.BartForConditionalGeneration.from_pretrained(file, config=config)


@pytest.mark.parametrize("number", with_slow(*QUICK, slow=range(len(CASES["cases"]))))
def test_answers_are_those_that_hf_has_given(number, models):
    case = CASES["cases"][number]
    settings, expected = case["settings"], np.array(case["sequences"])
    output = models[case["model"]].generate(
        np.array(case["source"]),
        np.array(case["mask"]),
        output_scores="scores" in case,
        **settings,
    )
    sequences, lengths = np.array(output.sequences), np.asarray(output.lengths)
    if ends := settings["eos_token_id"]:  # HF writes the first of them for any
        last = np.arange(len(sequences)), lengths - 1
        sequences[last] = np.where(np.isin(sequences[last], ends), ends[0], sequences[last])
    width = expected.shape[1]  # HF's rows are as long as the longest
    assert np.array_equal(sequences[:, :width], expected)
    assert np.all(sequences[:, width:] == settings["pad_token_id"])
    assert np.all(lengths <= width)
    assert np.allclose(output.sequences_scores, case["sequences_scores"], 1e-5, 1e-5)
    if "scores" in case:
        scores = np.maximum(output.scores, -1e9)
        assert np.allclose(scores, case["scores"], 1e-5, 1e-5)


def test_what_is_recorded_covers_the_rules():
    """The quick cases have each kind of early stopping, groups of one beam and of more, and
    one end, several and none."""
    cases = [CASES["cases"][i] for i in QUICK]
    settings = [case["settings"] for case in cases]
    assert {x["early_stopping"] for x in settings} == {True, False, "never"}
    assert {x["num_beams"] // x["num_beam_groups"] for x in settings} == {1, 2, 3}
    assert {x["num_beam_groups"] for x in settings} == {2, 3, 4}
    assert {len(x["eos_token_id"] or ()) for x in settings} == {0, 1, 3}
    assert any("scores" in case for case in cases)
    assert len({name for x in settings for name in x} - {*settings[0]}) > 3


IDS = np.random.default_rng(0).integers(3, 19, (3, 6))


def test_diversity(models):
    """With a penalty that nothing outweighs, no two groups choose one token in a step."""
    settings = {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 1e3}
    settings |= {"num_return_sequences": 3, "max_new_tokens": 6, "eos_token_id": None}
    tokens = np.asarray(models[0].generate(IDS, **settings).sequences)[:, 1:]
    for answers in tokens.reshape(3, 3, 6):
        for column in answers.T:
            assert len({*column.tolist()}) == 3


def test_a_penalty_that_nothing_weighs_leaves_each_group_a_beam_search(models):
    settings = {"num_return_sequences": 2, "max_new_tokens": 6, "eos_token_id": None}
    alone = models[1].generate(IDS, num_beams=2, **settings)
    settings |= GROUPS | {"num_return_sequences": 4, "diversity_penalty": 1e-30}
    grouped = models[1].generate(IDS, **settings)
    expected = np.asarray(alone.sequences).reshape(3, 2, -1).repeat(2, axis=1)
    assert np.array_equal(grouped.sequences, expected.reshape(12, -1))
    scores = np.asarray(alone.sequences_scores).reshape(3, 2).repeat(2, axis=1)
    assert np.allclose(grouped.sequences_scores, scores.reshape(-1), 1e-6)


def test_the_first_group_is_a_beam_search(models):
    """Whatever the penalty is, nothing comes before it."""
    settings = {"max_new_tokens": 6, "eos_token_id": None}
    best = models[2].generate(IDS, num_beams=2, **settings)
    settings |= GROUPS | {"diversity_penalty": 50.0}  # so that the first has the best
    grouped = models[2].generate(IDS, **settings)
    assert np.array_equal(grouped.sequences, best.sequences)
    assert np.array_equal(grouped.beam_indices % 4 < 2, np.ones((3, 6)))


def test_scores_are_sums_along_the_beams(models):
    """Where HF's `beam_indices` of all groups are those of the first."""
    output = models[1].generate(
        IDS, output_scores=True, output_token_log_probs=True, length_penalty=2.0, **TWO
    )
    indices, scores = np.asarray(output.beam_indices), np.asarray(output.scores)
    new = np.asarray(output.sequences)[:, 1:]
    for row, beams in enumerate(indices):
        n = int(output.lengths[row]) - 1
        assert np.all(beams[:n] // 4 == row // 2)
        assert np.all(beams[n:] == -1)
        chosen = scores[np.arange(n), beams[:n], new[row, :n]]
        assert np.allclose(output.token_log_probs[row, :n], chosen, 1e-6)
        assert np.allclose(output.sequences_scores[row], chosen.sum() / n**2, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_row_stands_for_itself(early_stopping, models):
    """Alone, in any batch, with padding, and in `generate_many`."""
    settings = TWO | {"early_stopping": early_stopping}
    rows = [IDS[0], IDS[1, :3], IDS[2, :5], IDS[1]]
    alone = [models[1].generate(row[None], **settings) for row in rows]
    ids = np.stack([np.pad(row, (6 - len(row), 0)) for row in rows])
    mask = np.stack([np.pad(np.ones_like(x), (6 - len(x), 0)) for x in rows])
    batch = models[1].generate(ids, mask, **settings)
    many = dict(models[1].generate_many(rows, batch_size=2, **settings))
    for i, one in enumerate(alone):
        assert np.array_equal(batch.sequences[2 * i : 2 * i + 2], one.sequences)
        assert np.array_equal(many[i].sequences, one.sequences)
        assert np.array_equal(many[i].beam_indices, one.beam_indices)
        for scores in (batch.sequences_scores[2 * i : 2 * i + 2], many[i].sequences_scores):
            assert np.allclose(scores, one.sequences_scores, 1e-5)


@pytest.mark.slow
def test_streams_steps_and_jit(models):
    """Each gives what `generate` gives."""
    model, settings = models[1], TWO | {"num_return_sequences": 1}
    whole = model.generate(IDS, **settings)
    rows = [[] for _ in IDS]
    for new in model.stream(IDS, **settings):
        for row, tokens in zip(rows, new, strict=True):
            row += tokens.tolist()
    for row, tokens, length in zip(rows, whole.sequences, whole.lengths, strict=True):
        assert row == np.asarray(tokens)[1:length].tolist()
    state = model.init_generation(IDS, **settings)
    step = eqx.filter_jit(model.step)
    while not state.is_done:
        state = step(state)
    inside = eqx.filter_jit(lambda model, ids: model.generate(ids, **settings))
    for output in (state.output(), inside(model, jnp.asarray(IDS))):
        assert np.array_equal(output.sequences, whole.sequences)
        assert np.allclose(output.sequences_scores, whole.sequences_scores, 1e-5)


@pytest.mark.slow
def test_many_beams_in_slots_of_their_own(models, monkeypatch):
    """Beams that each have a row of the cache are those that share one."""
    shared = models[1].generate(IDS, **TWO)
    monkeypatch.setattr(mixin, "_FEW_BEAMS", 1)
    state = models[1].init_generation(IDS, **TWO)
    assert isinstance(state.slots, OwnSlots)
    generate = eqx.filter_jit(lambda model, ids: model.generate(ids, **TWO))
    own = generate(models[1], jnp.asarray(IDS))
    assert np.array_equal(own.sequences, shared.sequences)
    assert np.array_equal(own.beam_indices, shared.beam_indices)
    assert np.allclose(own.sequences_scores, shared.sequences_scores, 1e-5)


def test_nan_is_shown(models):
    bias = eb.nn.Buffer(jnp.full_like(models[0].final_logits_bias.value, jnp.nan))
    broken = eqx.tree_at(lambda model: model.final_logits_bias, models[0], bias)
    output = broken.generate(IDS, **TWO)
    assert np.all(np.asarray(output.sequences)[:, 1:] == -1)
    assert np.all(np.isnan(output.sequences_scores))


def test_the_penalty_is_an_operand(models):
    """Another one is the same program."""
    kinds = [
        jax.tree.map(
            lambda x: (x.shape, x.dtype),
            models[0]
            .prepare_generation(IDS, **TWO | {"diversity_penalty": penalty})
            .exact(),
        )
        for penalty in (0.7, 3.0)
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beam_groups": 3}, "num_beams=4 .* cannot be divided into num_beam_groups=3"),
        ({"num_beam_groups": 5}, "num_beams=4 .* cannot be divided into num_beam_groups=5"),
        ({"num_beam_groups": 1}, "num_beam_groups=1, and diversity_penalty=0.7"),
        ({"diversity_penalty": 0}, "num_beam_groups=2, and diversity_penalty=0"),
        ({"diversity_penalty": None}, "num_beam_groups=2, and diversity_penalty=0.0"),
        ({"diversity_penalty": -1.0}, "diversity_penalty must be a number, 0 or more"),
        ({"num_beam_groups": 0}, "num_beam_groups must be an integer, 1 or more"),
        ({"do_sample": True}, "num_beam_groups=2 .* do_sample=True"),
        ({"prompt_lookup_num_tokens": 2}, "drafts are tried without beams"),
        ({"output_cache": True}, "a cache has one row for each input"),
    ],
)
def test_settings_that_contradict_each_other(settings, message, models):
    with pytest.raises(ValueError, match=message):
        models[0].generate(IDS, **GROUPS | settings)


def test_without_beams_groups_do_not_count(models):
    """As HF's, and as all that is about beams."""
    greedy = models[0].generate(IDS, max_new_tokens=4).sequences
    settings = GROUPS | {"num_beams": 1}
    grouped = models[0].generate(IDS, max_new_tokens=4, **settings).sequences
    assert np.array_equal(grouped, greedy)
