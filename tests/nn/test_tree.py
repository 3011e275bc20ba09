"""What is remembered of a module, and what is not."""

import gc
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_bart as eb
from eqx_bart.nn.tree import leaves, remembered


class Holder(eqx.Module):
    """A module of anything."""

    value: Any


@pytest.fixture
def counted():
    calls = []

    @remembered
    def total(module):
        calls.append(type(module.value))
        return sum(jax.tree.leaves(module.value))

    return total, calls


def test_a_module_that_stays_is_walked_through_once(counted):
    total, calls = counted
    module = Holder((1, Holder(2), None, jnp.asarray(3)))
    assert [total(module), total(module)] == [6, 6]
    assert len(calls) == 1
    assert total(Holder((1, Holder(2), None, jnp.asarray(4)))) == 7


@pytest.mark.parametrize("container", [list, lambda x: {"a": x[0]}, lambda x: ([*x],)])
def test_what_may_change_is_not_remembered(counted, container):
    total, _ = counted
    module = Holder(container([1]))
    assert total(module) == 1
    inner = module.value[0] if isinstance(module.value, tuple) else module.value
    inner["a" if isinstance(inner, dict) else 0] = 5
    assert total(module) == 5


def test_what_is_traced_is_not_remembered(counted):
    total, calls = counted

    @jax.jit
    def program(x):
        module = Holder(x)
        return total(module) + total(module)

    with jax.checking_leaks():
        assert program(2) == 4
    assert len(calls) == 2


def test_what_is_remembered_goes_with_the_module():
    made = []

    @remembered
    def result(module):
        made.append(Holder(np.zeros(1)))
        return made[-1]

    for _ in range(3):
        module = Holder(1)
        result(module)
        assert result(module) is made[-1]
        del module
        gc.collect()
    (results,) = (
        x.cell_contents for x in result.__closure__ if type(x.cell_contents) is dict
    )
    assert not results


def test_a_list_of_layers_may_change(config, getkey):
    """A model with layers in a list, of which one is replaced in place."""
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    other = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    where = operator.attrgetter("model.decoder.layers")
    model = eqx.tree_at(where, model, [*where(model)])
    ids = np.array([[5, 6, 7, 2]])
    before = model.generate(ids, output_logits=True, max_new_tokens=2)
    where(model)[0] = where(other)[0]
    after = model.generate(ids, output_logits=True, max_new_tokens=2)
    assert not np.allclose(before.logits, after.logits)
    exact = eqx.filter_jit(model.generate)(ids, output_logits=True, max_new_tokens=2)
    assert np.allclose(after.logits, exact.logits, atol=1e-5)


def test_leaves(config, getkey):
    model = eb.BartForConditionalGeneration(config, key=getkey())
    for _ in range(2):
        found = leaves(model, {"a": 1}, [2])
        assert len(found) == len(jax.tree.leaves(model)) + 2
        assert all(x is y for x, y in zip(found, jax.tree.leaves(model), strict=False))
