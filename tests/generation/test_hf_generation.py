"""What HF asks of every model that generates, asked of ours: `GenerationTesterMixin` and
`GenerationIntegrationTests` of its `generation/test_utils.py`, `test_framework_agnostic.py`
and, before transformers 5, its `test_flax_utils.py`.

`tests/test_hf_suites.py` says where each of their methods is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_slow
from oracle import assert_close

import eqx_bart as eb
from eqx_bart.generation.logits_process import MinLengthLogitsProcessor
from eqx_bart.generation.mixin import GenerationMixin


NAMES = ["BartForConditionalGeneration", "BartForCausalLM"]
CONFIG = eb.BartConfig(
    vocab_size=31,
    d_model=40,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=4,
    encoder_ffn_dim=12,
    decoder_ffn_dim=20,
    max_position_embeddings=32,
    init_std=0.5,
)
START = CONFIG.decoder_start_token_id
IDS = np.random.default_rng(0).integers(4, CONFIG.vocab_size, (2, 5))
SAMPLING = {"do_sample": True, "key": jax.random.key(2)}
WARPED = SAMPLING | {"top_k": 10, "top_p": 0.7, "temperature": 0.7}
STRATEGIES = {
    "greedy": {},
    "sample": WARPED | {"num_return_sequences": 2},
    "beam_search": {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 2.0},
    "beam_sample": WARPED | {"num_beams": 2, "length_penalty": 0.0},
    "group_beam_search": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 2.0,
        "num_return_sequences": 2,
        "length_penalty": 2.0,
    },
}


@pytest.fixture(scope="module")
def models():
    """Each model, without an end of sequence, so that rows go on to their maximum."""
    return {
        name: eqx.nn.inference_mode(
            getattr(eb, name)(CONFIG, key=jax.random.key(1))
        ).with_generation_config(eos_token_id=None, forced_eos_token_id=None)
        for name in NAMES
    }


def next_logits(model, ids, row):
    """The logits after the prompt of `generate`, by a call of the model."""
    call = eqx.filter_jit(model)
    if isinstance(model, eb.BartForCausalLM):
        return call(ids).logits[row, -1]
    start = np.full((len(ids), 1), START)
    return call(ids, decoder_input_ids=start).logits[row, -1]


@pytest.mark.parametrize("strategy", with_slow("sample", "beam_search", slow=STRATEGIES))
@pytest.mark.parametrize("name", with_slow(NAMES[0], slow=NAMES))
def test_strategies(name, strategy, models):
    """HF's `test_greedy_generate`, `test_sample_generate`, `test_beam_search_generate`,
    `test_beam_sample_generate`, `test_greedy_generate_dict_outputs`,
    `test_greedy_generate_dict_outputs_use_cache`, `test_sample_generate_dict_output`,
    `test_beam_search_generate_dict_output`,
    `test_beam_search_generate_dict_outputs_use_cache`,
    `test_beam_sample_generate_dict_output`, `test_group_beam_search_generate`,
    `test_group_beam_search_generate_dict_output`, `test_compare_unprocessed_logit_scores`;
    Flax's `test_beam_search_generate_num_return_sequences`,
    `test_sample_generate_logits_warper`, `test_greedy_generate_logits_warper`,
    `test_beam_search_generate_logits_warper`."""
    model, steps, settings = models[name], 3, STRATEGIES[strategy]
    asked = ["output_scores", "output_logits", "output_token_log_probs"]
    asked += ["output_attentions"] * (name == "BartForConditionalGeneration")
    output = model.generate(
        IDS,
        max_new_tokens=steps,
        bad_words_ids=[[7, 8], [9]],
        repetition_penalty=1.2,
        remove_invalid_values=True,
        **settings,
        **dict.fromkeys(asked, True),
    )
    returned = settings.get("num_return_sequences", 1)
    rows, beams = len(IDS) * returned, max(returned, settings.get("num_beams", 1))
    prompt = IDS if name == "BartForCausalLM" else np.full((len(IDS), 1), START)
    sequences = np.asarray(output.sequences)
    assert sequences.shape == (rows, prompt.shape[1] + steps)
    assert np.array_equal(sequences[:, :-steps], np.repeat(prompt, returned, axis=0))
    assert 9 not in sequences[:, -steps:]
    for field in ("scores", "logits"):
        assert getattr(output, field).shape == (steps, len(IDS) * beams, CONFIG.vocab_size)
    for row in range(len(IDS)):
        assert_close(output.logits[0, row * beams], next_logits(model, IDS, row), 1e-4)
    if output.cross_attentions is not None:
        shape = (rows, CONFIG.decoder_attention_heads, steps, IDS.shape[1])
        assert [x.shape for x in output.cross_attentions] == [shape] * CONFIG.decoder_layers
    if "num_beams" in settings:
        totals = (
            np.sum(output.token_log_probs, axis=1) / steps ** settings["length_penalty"]
        )
        assert_close(output.sequences_scores, totals, 1e-5)
        assert np.all(np.diff(totals.reshape(-1, returned)) <= 0)
    else:
        assert output.sequences_scores is None


def test_scores_are_logits_unless_something_changes_them(models):
    """HF's `test_logits_processor_not_inplace`, `test_return_unprocessed_logit_scores`."""
    model = models["BartForCausalLM"]
    asked = {"output_scores": True, "output_logits": True, "max_new_tokens": 2}
    plain = model.generate(IDS, **asked)
    assert np.array_equal(plain.scores, plain.logits)
    warm = model.generate(IDS, **asked, **SAMPLING, top_k=0, temperature=0.5)
    assert_close(warm.scores, 2 * warm.logits, 1e-6)


@pytest.mark.parametrize("strategy", with_slow("beam_search", slow=STRATEGIES))
def test_one_end_or_a_list(strategy, models):
    """HF's `test_eos_token_id_int_and_list_greedy_search`,
    `test_eos_token_id_int_and_list_beam_search`,
    `test_eos_token_id_int_and_list_top_k_top_sampling`."""
    model = models["BartForConditionalGeneration"]
    settings = STRATEGIES[strategy] | {"num_return_sequences": 1}
    free = np.asarray(model.generate(IDS, max_new_tokens=6, **settings).sequences)
    eos = int(free[0, 3])
    one = model.generate(IDS, max_new_tokens=6, eos_token_id=eos, **settings)
    several = model.generate(IDS, max_new_tokens=6, eos_token_id=[eos], **settings)
    assert np.array_equal(one.sequences, several.sequences)
    for row, length in zip(np.asarray(one.sequences), one.lengths, strict=True):
        ends = np.flatnonzero(row[1:] == eos)
        assert length == (ends[0] + 2 if len(ends) else 7)
        assert np.all(row[length:] == CONFIG.pad_token_id)
    if strategy == "greedy":
        assert int(one.lengths[0]) <= 4


def test_maximal_lengths(models):
    """HF's `test_max_new_tokens_encoder_decoder`, `test_max_new_tokens_decoder_only`: new
    tokens go before a total length, and do not count the prompt."""
    model, decoder = (models[name].with_generation_config(max_length=20) for name in NAMES)
    for longest, new in ((4, 3), (24, 23), (20, None)):
        settings = {} if new is None else {"max_new_tokens": new}
        assert model.generate(IDS, **settings).sequences.shape[1] == longest
    prompted = model.generate(IDS, decoder_input_ids=IDS, max_new_tokens=3)
    assert prompted.sequences.shape[1] == 1 + 5 + 3
    assert decoder.generate(IDS, max_new_tokens=3).sequences.shape[1] == 8
    assert decoder.generate(IDS).sequences.shape[1] == 20


def test_what_generate_does_not_take(models):
    """HF's `test_validate_generation_inputs`; and `test_generate_without_input_ids`, where
    it begins with one start token, and ours asks for the batch."""
    model, decoder = (models[name] for name in NAMES)
    for wrong in ("do_samples", "foo"):
        with pytest.raises(TypeError, match=wrong):
            model.generate(IDS, **{wrong: True})
    with pytest.raises(ValueError, match="needs input_ids"):
        model.generate()
    with pytest.raises((TypeError, ValueError), match="input_ids"):
        decoder.generate()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("constraints", [1]),
        ("dola_layers", "low"),
        ("force_words_ids", [[4]]),
        ("guidance_scale", 1.5),
        ("max_time", 0.1),
        ("penalty_alpha", 0.6),
        ("stop_strings", ["x"]),
        ("token_healing", True),
        ("watermarking_config", {"bias": 2.5}),
    ],
)
def test_strategies_that_there_are_not(name, value, models):
    """HF's `test_constrained_beam_search_generate`, `test_dola_decoding_sample`,
    `test_constrained_beam_search_mixin_type_checks`, `test_cfg_mixin`, `test_max_time`,
    `test_contrastive_generate`,
    `test_stop_sequence_stopping_criteria`, `test_prompts` and
    `test_green_red_watermark_generation`: refused by name."""
    with pytest.raises(ValueError, match=f"does not support {name}"):
        models["BartForConditionalGeneration"].generate(IDS, **{name: value})


def test_a_processor_of_hfs_by_hand(models):
    """HF's `test_custom_logits_processor`; both it and the setting hold, where HF's refuses
    the two together."""
    model, eos = models["BartForConditionalGeneration"], 5
    bias = jnp.zeros((1, CONFIG.vocab_size)).at[0, eos].set(1e4)
    model = eqx.tree_at(lambda m: m.final_logits_bias, model, eb.nn.Buffer(bias))
    model = model.with_generation_config(eos_token_id=eos, max_new_tokens=10)
    assert np.all(np.asarray(model.generate(IDS).lengths) == 2)
    at_least = [MinLengthLogitsProcessor(6, eos)]
    for settings, length in (({}, 7), ({"min_length": 8}, 9), ({"min_length": 3}, 7)):
        output = model.generate(IDS, logits_processors=at_least, **settings)
        assert np.all(np.asarray(output.lengths) == length)


def test_the_first_token(models):
    """HF's `test_decoder_start_id_from_config`, `test_batched_decoder_start_id`,
    `test_special_tokens_fall_back_to_model_default`."""
    model = models["BartForConditionalGeneration"]
    own = model.generate(IDS, None, eb.GenerationConfig(max_new_tokens=3)).sequences
    assert np.all(np.asarray(own)[:, 0] == START)
    starts = np.array([[START], [START]])
    batched = model.generate(IDS, decoder_input_ids=starts, max_new_tokens=3)
    assert np.array_equal(own, batched.sequences)
    other = eb.GenerationConfig(decoder_start_token_id=9, max_new_tokens=3)
    assert np.all(np.asarray(model.generate(IDS, None, other).sequences)[:, 0] == 9)
    none = model.with_generation_config(decoder_start_token_id=None, bos_token_id=None)
    assert np.array_equal(
        none.generate(IDS, decoder_start_token_id=START, max_new_tokens=3).sequences, own
    )
    with pytest.raises(ValueError, match="needs decoder_start_token_id or bos_token_id"):
        none.generate(IDS, None, eb.GenerationConfig(max_new_tokens=3))


@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_what_was_generated(name, models):
    """HF's `test_generate_continue_from_past_key_values`, by tokens."""
    model = models[name]
    whole = model.generate(IDS, max_new_tokens=4).sequences
    first = model.generate(IDS, max_new_tokens=3).sequences
    if name == "BartForCausalLM":
        rest = model.generate(first, max_new_tokens=1)
    else:
        rest = model.generate(IDS, decoder_input_ids=first, max_new_tokens=1)
    assert np.array_equal(rest.sequences, whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_and_the_base(name, models):
    """HF's `test_past_key_values_format`, `test_inherits_generation_mixin`."""
    model = models[name]
    assert isinstance(model, GenerationMixin)
    heads = CONFIG.decoder_attention_heads
    size = CONFIG.d_model // heads
    if name == "BartForCausalLM":
        cache = model.init_cache(len(IDS), 6)
        assert cache.cross_attention == (None,) * CONFIG.decoder_layers
    else:
        cache = model.init_cache(eqx.filter_jit(model.encode)(IDS), 6)
        for layer in cache.cross_attention:
            assert layer.keys.shape == layer.values.shape == (2, heads, 5, size)
    assert len(cache.self_attention) == CONFIG.decoder_layers
    for layer in cache.self_attention:
        assert layer.keys.shape == layer.values.shape == (2, heads, 6, size)


def test_float16(models):
    """HF's `test_generate_fp16`, `test_generate_beam_search`."""
    model = eb.cast(models["BartForConditionalGeneration"], "float16")
    output = model.generate(
        IDS,
        num_beams=4,
        num_return_sequences=3,
        early_stopping=False,
        no_repeat_ngram_size=3,
        max_length=5,
        **SAMPLING,
    )
    assert output.sequences.shape == (6, 5)
    assert np.all(np.isfinite(output.sequences_scores))
    assert np.all(np.asarray(output.sequences) >= 0)
