"""Which programs `generate` compiles, and how long they are kept."""

import functools
import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart.generation import programs


IDS = np.random.default_rng(0).integers(3, 41, (2, 6))
SAMPLING = {"do_sample": True, "key": jax.random.key(0), "max_new_tokens": 5}
BEAMS = {"num_beams": 3, "max_new_tokens": 5}
LISTS = {"max_new_tokens": 5, "num_beams": 2}


@pytest.fixture
def model(config, getkey):
    config = eb.BartConfig.from_dict(config.to_dict() | {"max_position_embeddings": 64})
    return eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))


@pytest.fixture
def compilations():
    """What is compiled from here on."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def words(*lengths):
    rng = np.random.default_rng(list(lengths))
    return [rng.integers(3, 41, n).tolist() for n in lengths]


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (SAMPLING, {"temperature": [0.5, 0.7, 1.0, 1.3]}),
        slow(SAMPLING, {"top_k": [1, 7, 50, 64], "top_p": [0.3, 0.5, 0.9]}),
        slow(SAMPLING, {"min_p": [0.1, 0.2], "typical_p": [0.5, 0.7]}),
        slow(SAMPLING, {"epsilon_cutoff": [0.01, 0.02], "eta_cutoff": [0.01, 0.02]}),
        slow(BEAMS, {"length_penalty": [-1.0, 0.0, 0.5, 2.0]}),
        slow(BEAMS | {"early_stopping": "never"}, {"length_penalty": [-1.0, 0.0, 2.0]}),
        slow(
            BEAMS, {"repetition_penalty": [0.9, 1.1], "encoder_repetition_penalty": [2, 3]}
        ),
        ({}, {"max_new_tokens": [1, 5, 9, 16]}),
        slow(
            {"max_new_tokens": 9}, {"min_length": [2, 3, 4], "forced_bos_token_id": [5, 6]}
        ),
        slow(LISTS, {"bad_words_ids": [words(1, 3), words(2, 4), words(4, 3)]}),
        slow(LISTS, {"suppress_tokens": [[3, 4, 5], [6, 7, 8, 9]], "eos_token_id": [2, 3]}),
        slow(
            LISTS,
            {"sequence_bias": [[[[3, 4], 1.0]], [[[5, 6], 2.0]]], "pad_token_id": [1, 0]},
        ),
        slow(LISTS, {"exponential_decay_length_penalty": [(1, 1.5), (2, 1.1)]}),
        slow(LISTS, {"forced_eos_token_id": [2, 3], "begin_suppress_tokens": [[4], [5]]}),
    ],
    ids=" ".join,
)
def test_another_number_is_no_other_program(model, compilations, settings, changes):
    """And the answer is that of a program in which the number is a constant."""
    exact = []
    for i in range(4):
        values = {name: each[i % len(each)] for name, each in changes.items()}
        if i == 1:
            before = len(compilations)
        exact.append((values, model.generate(IDS, **settings | values)))
    assert len(compilations) == before
    for values, found in exact[1:3]:
        constant = eqx.filter_jit(model.generate)(IDS, **settings | values)
        assert np.array_equal(found.sequences, constant.sequences)
        assert np.array_equal(found.lengths, constant.lengths)


def test_many_inputs_share_programs(model, compilations):
    inputs = words(*range(1, 17))
    found = list(model.generate_many(inputs, batch_size=4, max_new_tokens=3))
    first = len(compilations)
    assert 0 < first < 20
    found += model.generate_many(inputs[2:] * 2, batch_size=4, max_new_tokens=3)
    assert len(found) == 44
    assert len(compilations) == first


def test_a_constraint_is_no_program(model, compilations):
    for i, sizes in enumerate([(3, 2, 4), (2, 3, 4), (4, 1, 4)]):
        trie = eb.PrefixConstrainedLogitsProcessor(words(*sizes), prompt=[2])
        if i == 1:
            before = len(compilations)
        model.generate(IDS, logits_processors=[trie], max_new_tokens=5)
    assert len(compilations) == before


def test_the_oldest_program_is_let_go(monkeypatch):
    kept = functools.lru_cache(2)(programs._program.__wrapped__)
    monkeypatch.setattr(programs, "_program", kept)
    alive, made = [], []

    def double(x):
        made.append(x.shape)
        return 2 * x

    for size in (1, 2, 3, 2, 3):
        found = programs.run(double, np.ones(size, np.float32))
        assert found.tolist() == [2] * size
    assert made == [(1,), (2,), (3,)]
    kind = type(jax.jit(double))
    alive = [weakref.ref(x) for x in gc.get_objects() if type(x) is kind]
    for size in (4, 5):
        programs.run(double, np.ones(size, np.float32))
    gc.collect()
    assert kept.cache_info().currsize == 2
    assert sum(x() is None for x in alive) >= 2


def test_what_is_no_array_tells_programs_apart():
    def filled(x, value):
        return jax.tree.map(lambda x: jnp.full(x.shape, value), x), value

    for value in (1, 1.0, True, 2):
        found, same = programs.run(filled, jnp.ones(2, int), value)
        assert found.dtype == jnp.asarray(value).dtype
        assert (type(same), same) == (type(value), value)
    with pytest.raises(TypeError, match=r"must be hashable; it is not in \{1\}"):
        programs.run(filled, jnp.ones(2), {1})


def test_where_it_stands_tells_programs_apart():
    """What is no array, beside what is nothing."""

    def called(x, add, multiply):
        x = x if add is None else x + add
        return x if multiply is None else x * multiply

    x = np.ones(2, np.float32)
    for others, expected in (((3, None), 4), ((None, 3), 3), ((3, 3), 12)):
        assert programs.run(called, x, *others).tolist() == [expected] * 2
