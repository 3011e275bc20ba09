"""Forwards over rows of mixed lengths: each as alone, in few programs."""

import itertools
import pathlib

import equinox as eqx
import jax
import numpy as np
import pytest
from conftest import on_devices, with_slow
from oracle import assert_close

import eqx_bart as eb
from eqx_bart import tasks


CHILD = pathlib.Path(__file__).with_name("on_mesh.py")


def logits(model, ids, mask):
    return model(ids, mask).logits


def rows_of(*lengths):
    rng = np.random.default_rng(list(lengths))
    return [([*rng.integers(3, 41, n - 1).tolist(), 2],) for n in lengths]


@pytest.mark.parametrize("batch_size", with_slow(5, slow=[1, 3, 100]))
def test_each_row_as_alone(batch_size, classifier):
    rows = rows_of(*range(1, 13), 3, 12, 1)
    found = list(tasks.predict(logits, classifier, rows, batch_size=batch_size))
    assert len(found) == len(rows)
    mask = np.arange(12)[None] < np.asarray([[len(ids)] for (ids,) in rows])
    ids = np.full(mask.shape, 7)
    ids[mask] = np.concatenate([ids for (ids,) in rows])
    expected = eqx.filter_jit(logits)(classifier, ids, mask)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, np.ndarray)
        assert_close(one, other, 1e-5)


def test_few_programs(classifier):
    model = classifier.resize_position_embeddings(128, copy=True)
    traced = []

    def counted(model, ids, mask):
        traced.append(ids.shape)
        return model(ids, mask).logits

    rows = rows_of(*range(1, 49))
    list(tasks.predict(counted, model, rows, batch_size=8))
    assert sorted(traced) == [(8, 16), (8, 32), (8, 48)]
    list(tasks.predict(counted, model, rows_of(33, 40, 41), batch_size=8))
    assert traced[3:] == [(4, 48)]


def test_the_end_of_a_table_of_positions(classifier):
    """Padding goes no further than the model reads, which is 12 here."""
    (found,) = tasks.predict(logits, classifier, rows_of(10))
    ids = np.asarray(rows_of(10)[0])
    expected = eqx.filter_jit(logits)(classifier, ids, ids > 0)[0]
    np.testing.assert_allclose(found, expected, 1e-4)


def lengths(model, ids, mask, others, others_mask):
    return {"first": mask.sum(1), "others": others_mask.sum(2), "ids": others[:, :, 0]}


def test_columns_of_one_sequence_and_of_many(generator):
    rows = [([5, 6], [[7]]), ([5], [[8, 9], [10], [11, 12, 13]]), ([4] * 12, [[7], [8]])]
    found = list(tasks.predict(lengths, generator, rows))
    assert [x["first"] for x in found] == [2, 1, 12]
    for one, (_, others) in zip(found, rows, strict=True):
        number = len(others)
        assert one["others"][:number].tolist() == list(map(len, others))
        assert not one["others"][number:].any()
        assert one["ids"][:number].tolist() == [x[0] for x in others]


def test_no_end_of_rows(classifier):
    rows = (rows_of(1 + i % 7)[0] for i in itertools.count())
    found = tasks.predict(logits, classifier, rows, batch_size=2)
    assert len(list(itertools.islice(found, 70))) == 70


def test_no_rows(classifier):
    assert list(tasks.predict(logits, classifier, [])) == []


def test_what_is_wrong_is_raised_before_any_work_or_after_the_rows_before(classifier):
    rows = [*rows_of(3, 9, 5), ([3, 41, 2],)]
    message = r"rows\[3\]\[0\] has the token 41, and the model's vocabulary 41 tokens"
    with pytest.raises(ValueError, match=message):
        tasks.predict(logits, classifier, rows)
    found = tasks.predict(logits, classifier, iter(rows), batch_size=2)
    assert len([next(found) for _ in range(3)]) == 3
    with pytest.raises(ValueError, match=message):
        next(found)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (([],), "is empty"),
        (([[3, 2], []],), r"rows\[0\]\[0\]\[1\] is empty"),
        (([3.5, 2],), r"must be a sequence of token ids; it is float64\[2\]"),
        (([3, -1, 2],), "has the token -1"),
        (([5] * 12 + [2],), "has 13 tokens, and the model reads at most 12"),
        (([5, 6],), "has no end of a sequence"),
    ],
)
def test_bad_rows(row, message, classifier):
    with pytest.raises(ValueError, match=message):
        tasks.predict(logits, classifier, [row])


def test_what_cannot_be(classifier):
    with pytest.raises(ValueError, match="batch_size=0"):
        tasks.predict(logits, classifier, rows_of(3), batch_size=0)
    training = eqx.nn.inference_mode(
        eqx.tree_at(lambda x: x.classification_head.dropout.p, classifier, 0.1), value=False
    )
    with pytest.raises(RuntimeError, match="A task is not for training mode"):
        tasks.predict(logits, training, rows_of(3))
    with pytest.raises(ValueError, match="Inside jit"):
        eqx.filter_jit(lambda model: tasks.predict(logits, model, rows_of(3)))(classifier)


def test_on_a_mesh(classifier):
    mesh = jax.make_mesh((1,), ("data",))
    (found,) = tasks.predict(logits, eb.shard(classifier, mesh), rows_of(7))
    (expected,) = tasks.predict(logits, classifier, rows_of(7))
    np.testing.assert_allclose(found, expected, 1e-5)


@pytest.mark.devices
@pytest.mark.parametrize("types", ["Auto", "Explicit"])
def test_rows_are_split_on_mesh(types):
    assert on_devices(4, CHILD, types) == "done"


def test_programs_have_no_callbacks(classifier):
    """So that every version of JAX keeps them."""
    ids, mask = np.asarray([[5, 6, 2]]), np.ones((1, 3), bool)
    list(tasks.predict(logits, classifier, [([5, 6, 2],)]))
    with eb.checks("off"):
        text = eqx.filter_jit(logits).lower(classifier, ids, mask).as_text()
    assert "callback" not in text
    assert "callback" in eqx.filter_jit(logits).lower(classifier, ids, mask).as_text()
