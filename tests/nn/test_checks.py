"""A check that fails inside `jit` raises, makes NaN of what it reaches, or does nothing."""

import contextlib
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_devices, with_slow
from jax.experimental.compilation_cache import compilation_cache

import eqx_bart as eb


IDS = np.array([[5, 6, 7, 2], [8, 9, 4, 2]])


def changed(place, value, array=IDS):
    array = array.copy()
    array[place] = value
    return array


def runs(function, *args):
    return jax.block_until_ready(eqx.filter_jit(function)(*args))


@pytest.fixture
def model(config, getkey):
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


@pytest.fixture
def cache(model):
    return model.init_cache(model.encode(IDS), 6)


# Lambdas, where JAX looks a function up by its hash: a module of arrays has none.
TRANSFORMS = {
    "jit": lambda f: f,
    "vmap": lambda f: jax.vmap(lambda row: f(row[None])[0]),
    "scan": lambda f: lambda ids: jax.lax.map(lambda row: f(row[None])[0], ids),
    "checkpoint": lambda f: jax.checkpoint(lambda ids: f(ids)),  # noqa: PLW0108
    "cond": lambda f: lambda ids: jax.lax.cond(True, *[lambda x: f(x)] * 2, ids),  # noqa: PLW0108
    "grad": lambda f: (
        lambda ids: jax.grad(lambda x: jnp.sum(x * f(ids)))(jnp.ones((*IDS.shape, 1)))
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_context_holds_for_what_was_traced_before(transform, model):
    """One function, called under each setting in turn: none keeps that of the last."""
    call = eqx.filter_jit(TRANSFORMS[transform](model.model.shared))
    good, bad = jnp.asarray(IDS), jnp.asarray(changed((1, 2), 41))
    expected = call(good)
    for setting in ("nan", "off", None, "nan", "raise"):
        with eb.checks(setting) if setting else contextlib.nullcontext():
            assert np.array_equal(call(good), expected)
            if setting in ("raise", None):
                with pytest.raises(RuntimeError, match="must lie in"):
                    call(bad)
                continue
            found = call(bad)
        assert np.array_equal(found[0], expected[0])
        assert np.isnan(found[1, 2]).all() or setting == "off"


def test_a_setting_that_does_not_exist():
    with pytest.raises(ValueError, match="'raise', 'nan' or 'off', not 'warn'"):
        eb.checks("warn").__enter__()


@pytest.mark.parametrize("setting", ["raise", "nan", "off"])
def test_outside_jit_a_failing_check_always_raises(setting, model):
    with (
        eb.checks(setting),
        pytest.raises(ValueError, match=r"input_ids\[1, 2\] is 41"),
    ):
        model.encode(changed((1, 2), 41))
    with (
        eb.checks(setting),
        pytest.raises(ValueError, match=r"input_ids\[1, 2\] is 41"),
    ):
        eqx.filter_jit(lambda: model.encode(changed((1, 2), 41)))()  # known when traced


# What may be wrong, and a function of it whose outputs have a row for each of its rows.
WRONG = {
    "an id past the vocabulary": (changed((1, 2), 41), lambda m, x: m(x).logits),
    "a negative id": (changed((1, 0), -1), lambda m, x: m(x).logits),
    "a narrow id": (
        changed((1, 0), -1).astype(np.int8),
        lambda m, x: m(x).logits,
    ),
    "an id of the decoder": (
        changed((1, 3), 2**30),
        lambda m, x: m(IDS, decoder_input_ids=x).logits,
    ),
    "a position": (
        changed((1, 1), 12, np.tile(np.arange(4), (2, 1))),
        lambda m, x: m.encode(IDS, None, x).last_hidden_state,
    ),
    "a negative position": (
        changed((1, 1), -1, np.tile(np.arange(4), (2, 1))),
        lambda m, x: m(IDS, decoder_position_ids=x).logits,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_a_wrong_value_reaches_is_nan(name, model):
    wrong, call = WRONG[name]
    right = np.where(np.arange(2)[:, None] == 1, wrong[:1], wrong).astype(wrong.dtype)
    with eb.checks("nan"):
        expected = runs(call, model, jnp.asarray(right))
        found = runs(call, model, jnp.asarray(wrong))
    assert np.isfinite(expected).all()
    assert np.array_equal(found[0], expected[0])
    assert np.isnan(found[1]).all()


def test_positions_that_the_layers_use_themselves(model):
    """The embedding adds nothing, so the NaN cannot come from a table."""
    model = eqx.tree_at(
        lambda m: m.model.encoder.embed_positions, model, eb.nn.NoPositionalEmbedding(12)
    )
    positions = jnp.asarray(changed((1, 1), 12, np.tile(np.arange(4), (2, 1))))
    with eb.checks("nan"):
        states = runs(model.encode, IDS, None, positions).last_hidden_state
    assert np.isfinite(states[0]).all()
    assert np.isnan(states[1]).all()


def test_what_reads_a_cache_after_its_end_is_nan(model, cache):
    with eb.checks("nan"):
        out, cache = runs(model.decode, IDS, cache)
        assert np.isfinite(out.logits).all()
        for _ in range(2):
            out, cache = runs(model.decode, IDS[:, :3], cache)
            assert np.isnan(out.logits).all()


def test_a_wrong_token_stays_in_the_cache(model, cache):
    with eb.checks("nan"):
        _, cache = runs(model.decode, jnp.asarray(changed((1, 0), 41)), cache)
        out, _ = runs(model.decode, jnp.asarray(IDS[:, :1]), cache)
    assert np.isfinite(out.logits[0]).all()
    assert np.isnan(out.logits[1]).all()


@pytest.mark.parametrize(
    "settings",
    with_slow(
        {"do_sample": True, "top_k": 5, "forced_eos_token_id": 2},
        {"num_beams": 2, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
        slow=[{}, {"num_beams": 3, "do_sample": True, "early_stopping": "never"}],
    ),
    ids=str,
)
def test_a_wrong_value_generates_no_tokens(settings, model):
    """Not even those that a processor would force or a warper would leave."""
    settings = {"max_new_tokens": 4, "min_new_tokens": 2, **settings}
    answers = settings.get("num_return_sequences", 1)
    mask = np.ones((2, 4), int)

    @eqx.filter_jit
    def generate(ids, mask, prompt):
        key = jax.random.key(0)
        return model.generate(ids, mask, decoder_input_ids=prompt, key=key, **settings)

    with eb.checks("nan"):
        expected = generate(IDS, jnp.asarray(mask), jnp.asarray(IDS)).sequences
        assert np.all(expected >= 0)
        for wrong in (
            (changed((1, 2), 41), mask, IDS),
            (IDS, changed(1, 0, mask), IDS),
            (IDS, mask, changed((1, 0), -1)),
        ):
            out = generate(*map(jnp.asarray, wrong))
            assert np.array_equal(out.sequences[:answers], expected[:answers])
            assert np.all(out.sequences[answers:, 4:] == -1)
            assert np.all(out.lengths[answers:] == 8)
            if out.sequences_scores is not None:
                assert np.isnan(out.sequences_scores[answers:]).all()


def test_a_classifier_without_one_place_to_read(config, getkey):
    model = eqx.nn.inference_mode(eb.BartForSequenceClassification(config, key=getkey()))

    def logits(ids):
        return model(ids).logits

    with eb.checks("nan"):
        assert np.isfinite(runs(logits, jnp.asarray(IDS))).all()
        assert np.isnan(runs(logits, jnp.asarray(changed((1, 3), 5)))).all()
        assert np.isnan(runs(logits, jnp.asarray(changed((1, 1), 2)))).all()


@pytest.mark.parametrize(
    ("bad", "chunk_size"), [pytest.param(41, None, marks=pytest.mark.slow), (-5, 3)]
)
def test_gradients_are_nan_or_right(bad, chunk_size, model):
    model = eqx.tree_at(
        lambda m: m.model.decoder.layers, model, model.model.decoder.layers[:1]
    )

    @eqx.filter_jit
    def gradient(model, ids, labels):
        return eqx.filter_value_and_grad(
            lambda m: (
                eb.seq2seq_loss(
                    m, ids, None, labels, decoder_input_ids=IDS, chunk_size=chunk_size
                ).mean
            )
        )(model)

    good, wrong = jnp.asarray(IDS), jnp.asarray(changed((1, 2), bad))
    with eb.checks("off"):
        expected = gradient(model, good, good)
    with eb.checks("nan"):
        found = gradient(model, good, good)
        poisoned = gradient(model, wrong, good), gradient(model, good, wrong)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.allclose(one, other, rtol=1e-5, atol=1e-7)
    for value, gradients in poisoned:
        assert np.isnan(value)
        assert all(np.isnan(x).any() for x in jax.tree.leaves(gradients))


def test_the_gradient_of_a_wrong_label_is_nan():
    """Its own logits, of which it chooses none, get NaN, and no others."""
    labels = jnp.asarray(changed((1, 2), 12))

    def loss(logits):
        return eb.cross_entropy(logits, labels).total

    with eb.checks("nan"):
        found = runs(jax.grad(loss), jnp.ones((*IDS.shape, 12)))
    assert np.array_equal(np.isnan(found), np.tile(labels[..., None] == 12, 12))


def programs(model):
    """The model's arrays, and functions of them and of ids."""
    arrays, rest = eqx.partition(model, eqx.is_array)

    def loss(arrays, ids):
        return eb.seq2seq_loss(eqx.combine(arrays, rest), ids, None, ids).mean

    def sequences(arrays, ids):
        return eqx.combine(arrays, rest).generate(ids, max_new_tokens=3).sequences

    return arrays, {"gradient": jax.grad(loss, allow_int=True), "generate": sequences}


@pytest.mark.parametrize("setting", with_slow("nan", slow=["nan", "off"]))
@pytest.mark.parametrize("name", ["gradient", "generate"])
def test_programs_without_callbacks_are_exported(name, setting, model):
    arrays, calls = programs(model)
    with eb.checks(setting):
        exported = jax.export.export(jax.jit(calls[name]))(arrays, IDS)
    assert "python_cpu_callback" not in exported.mlir_module()
    with eb.checks("raise"):  # what is exported keeps what it was traced with
        assert np.isfinite(jax.tree.leaves(exported.call(arrays, IDS))[0]).all()


@pytest.fixture
def persistent_cache(tmp_path):
    """The folder of JAX's persistent cache, which keeps everything."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_without_callbacks_are_kept(persistent_cache, model):
    arrays, rest = eqx.partition(model, eqx.is_array)

    def encode_named(arrays, ids):
        return eqx.combine(arrays, rest).encode(ids).last_hidden_state

    kept = {}
    for setting in ("raise", "nan", "off"):
        with eb.checks(setting):
            jax.jit(encode_named)(arrays, jnp.asarray(IDS))
        kept[setting] = len([*persistent_cache.glob("jit_encode_named*-cache")])
    # JAX 0.12 keeps programs with callbacks as well, and 0.10 does not.
    assert kept["nan"] == kept["raise"] + 1
    assert kept["off"] == kept["raise"] + 2


CHILD = pathlib.Path(__file__).with_name("on_devices.py")


@pytest.mark.parametrize(
    "num_devices",
    [
        pytest.param(4, marks=pytest.mark.devices),
        *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 8)),
    ],
)
def test_on_devices(num_devices):
    """What is split stays split, and what is wrong neither hangs nor aborts."""
    assert on_devices(num_devices, CHILD) == "done"


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["raise", "nan", "off"])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_environment_variable(setting, num_devices):
    assert on_devices(num_devices, CHILD, EQX_ON_ERROR=setting) == "done"
