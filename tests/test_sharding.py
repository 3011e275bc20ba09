"""`shard`: where parameters come to lie, and that nothing else changes."""

import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from conftest import on_devices
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

import eqx_bart as eb


TESTS = pathlib.Path(__file__).parent
ALONE = ("data=4", "fsdp=4", "tensor=4")
PAIRS = ("data=2,fsdp=2", "data=2,tensor=2", "fsdp=2,tensor=2")
TOGETHER = ("data=2,fsdp=2,tensor=2",)
MESHES = (*ALONE, *PAIRS, *TOGETHER)


def abstract_mesh(**sizes):
    types = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=types)


def specs(tree):
    """How each array of shapes is split, by its path."""
    leaves = jtu.tree_leaves_with_path(tree)
    return {
        jtu.keystr(path, simple=True, separator="."): x.sharding.spec
        for path, x in leaves
        if isinstance(x, jax.ShapeDtypeStruct)
    }


@pytest.fixture
def shapes(config):
    """A model of shapes alone: d_model is 24, with 2 and 4 heads, 40 and 36 features."""
    config = config.updated(vocab_size=48)
    return eqx.filter_eval_shape(
        eb.BartForConditionalGeneration, config, key=jax.random.key(0)
    )


def in_full(spec, ndim):
    return (*spec, *[None] * (ndim - len(spec)))


def test_each_parameter_has_its_place(shapes):
    """Megatron's layout and FSDP's, written out by hand for each kind of parameter."""
    found = specs(eb.shard(shapes, abstract_mesh(data=2, fsdp=2, tensor=2)))
    column, row = P("fsdp", "tensor"), P("tensor", "fsdp")
    expected = {
        "shared.weight": row,
        "embed_positions.weight": P(None, "fsdp"),
        "final_logits_bias.bits": P(None, "tensor"),
    }
    for name in ("q_proj", "k_proj", "v_proj", "fc1"):
        expected |= {f"{name}.weight": column, f"{name}.bias": P("tensor")}
    expected |= {f"{name}.weight": row for name in ("out_proj", "fc2")}
    for name, spec in found.items():
        end = ".".join(name.split(".")[-2:])
        assert spec == expected.get(end, P()), name
    assert {".".join(name.split(".")[-2:]) for name in found} >= set(expected)


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_axes_that_a_mesh_does_not_have_split_nothing(shapes, axis):
    names = {
        n
        for spec in specs(eb.shard(shapes, abstract_mesh(**{axis: 2}))).values()
        for n in spec
        if n is not None
    }
    assert names == ({axis} - {"data"})


def test_what_the_mesh_does_not_divide_is_copied_or_an_error(shapes):
    mesh = abstract_mesh(tensor=4)  # the encoder has two heads, and 24 features each
    found = specs(eb.shard(shapes, mesh))
    assert found["model.encoder.layers.0.self_attn.q_proj.weight"] == P(None, None)
    assert found["model.encoder.layers.0.self_attn.out_proj.weight"] == P(None, None)
    assert found["model.decoder.layers.0.self_attn.q_proj.weight"] == P(None, "tensor")
    assert found["model.encoder.layers.0.feed_forward.fc1.weight"] == P(None, "tensor")
    with pytest.raises(ValueError, match="does not divide") as error:
        eb.shard(shapes, mesh, strict=True)
    message = str(error.value)
    assert (
        "encoder.layers.0.self_attn.q_proj.weight (axis 1: 2 heads) by tensor=4" in message
    )
    assert "decoder" not in message
    eb.shard(shapes, abstract_mesh(tensor=2), strict=True)


def test_every_float_of_every_model_is_known(config):
    """What is copied to each device is named here: a new parameter needs a decision."""
    copied = r"(norm\.|layernorm_embedding\.|(out_proj|fc2|dense|qa_outputs)\.bias$)"
    mesh = abstract_mesh(fsdp=2, tensor=2)
    for model in (
        eb.BartModel,
        eb.BartForConditionalGeneration,
        eb.BartForSequenceClassification,
        eb.BartForQuestionAnswering,
        eb.BartForCausalLM,
    ):
        untied = config.updated(vocab_size=48, tie_word_embeddings=False, num_labels=2)
        shapes = eqx.filter_eval_shape(model, untied, key=jax.random.key(0))
        for name, spec in specs(eb.shard(shapes, mesh)).items():
            is_copied = not any(spec)
            assert is_copied == bool(re.search(copied, name)), name


def test_adapters_follow_their_weights(shapes, config):
    model = eb.BartForConditionalGeneration(
        config.updated(vocab_size=48), key=jax.random.key(0)
    )
    adapted = eqx.filter_eval_shape(
        lambda: eb.lora(model, 4, ("q_proj", "out_proj"), key=jax.random.key(1))
    )
    found = specs(eb.shard(adapted, abstract_mesh(fsdp=2, tensor=2)))
    start = "model.decoder.layers.0.self_attn."
    for name, spec in {
        "q_proj.base_layer.weight": P("fsdp", "tensor"),
        "q_proj.base_layer.bias": P("tensor"),
        "q_proj.lora_A": P("fsdp", None),
        "q_proj.lora_B": P(None, "tensor"),
        "out_proj.base_layer.weight": P("tensor", "fsdp"),
        "out_proj.lora_A": P("tensor", None),
        "out_proj.lora_B": P(None, "fsdp"),
    }.items():
        assert found[start + name] == spec, name


def test_an_optimisers_state_follows_the_parameters(shapes):
    optimiser = optax.adamw(1e-3)
    parameters = eqx.filter(shapes, lambda x: getattr(x, "dtype", None) == jnp.float32)
    state = eqx.filter_eval_shape(optimiser.init, parameters)
    mesh = abstract_mesh(fsdp=2, tensor=2)
    of_model = specs(eb.shard(shapes, mesh))
    of_state = specs(eb.shard(state, mesh))
    for moment in ("mu", "nu"):
        for name in specs(eb.shard(parameters, mesh)):
            assert of_state[f"0.{moment}.{name}"] == of_model[name]
    assert of_state["0.count"] == P()


class Expert(eqx.Module):
    """A part with a parameter that no table knows."""

    experts: jax.Array
    q_proj: eb.nn.Linear

    def __init__(self):
        self.experts = jnp.zeros((4, 6, 8))
        self.q_proj = eb.nn.Linear(6, 8, init_std=1, key=jax.random.key(0))


def test_parts_of_ones_own():
    """Their entries come first; an axis may be split over two of the mesh, or over one with
    a name of one's own."""
    shapes = eqx.filter_eval_shape(Expert)
    mesh = abstract_mesh(expert=2, fsdp=3, tensor=2)
    layout = {
        "gates|experts": P("expert", "fsdp"),
        r"q_proj\.weight": P(None, ("tensor", "expert")),
    }
    found = specs(eb.shard(shapes, mesh, layout=layout, strict=True))
    assert found["experts"] == P("expert", "fsdp")
    assert found["q_proj.weight"] == P(None, ("tensor", "expert"))
    assert found["q_proj.bias"] == P("tensor")


def test_inside_jit_on_the_mesh_that_is_set(config):
    """Where the mesh is an abstract one, whatever the types of its axes."""
    model = eb.BartModel(config, key=jax.random.key(0))
    arrays, rest = eqx.partition(model, eqx.is_array)

    def shard(arrays):
        mesh = jax.sharding.get_abstract_mesh()
        sharded = eb.shard(eqx.combine(arrays, rest), mesh)
        return eqx.filter(sharded, eqx.is_array)

    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(jax.make_mesh((1,), ("fsdp",), (kind,))):
            found = jax.jit(shard)(arrays)
        for x, y in zip(*map(jax.tree.leaves, (found, arrays)), strict=True):
            assert np.array_equal(x, y)


@pytest.mark.parametrize(
    ("axes", "layout", "message"),
    [
        ({"model": 2}, {}, r"axes \['model'\], and \['model'\] have no meaning here"),
        ({"data": 2, "x": 2}, {}, r"\['x'\] have no meaning here: call them one of"),
        ({"fsdp": 2}, {"expert": P("fsdp")}, r"fit no array: \['expert'\]"),
        ({"fsdp": 2}, {"experts": P("other")}, r"names the axes \['other'\]; the mesh has"),
        (
            {"fsdp": 2},
            {"experts": P(None, None, None, "fsdp")},
            r"experts has the shape \(4, 6, 8\)",
        ),
    ],
)
def test_what_cannot_be_meant(axes, layout, message):
    shapes = eqx.filter_eval_shape(Expert)
    with pytest.raises(ValueError, match=message):
        eb.shard(shapes, abstract_mesh(**axes), layout=layout)


def test_on_one_device_nothing_changes(config):
    model = eb.BartModel(config, key=jax.random.key(0))
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
    sharded = eb.shard(model, mesh)
    assert jax.tree.structure(sharded) == jax.tree.structure(model)
    ids = np.array([[5, 6, 2]])
    assert np.array_equal(
        eqx.nn.inference_mode(sharded)(ids).last_hidden_state,
        eqx.nn.inference_mode(model)(ids).last_hidden_state,
    )


@pytest.mark.devices
@pytest.mark.parametrize(
    ("types", "meshes"),
    [("explicit", PAIRS), ("automatic", ALONE), ("mixed", TOGETHER)],
    ids=["explicit", "automatic", "mixed"],
)
def test_every_mesh_computes_what_one_device_does(types, meshes):
    assert on_devices(8, TESTS / "sharded.py", types, "few", *meshes) == "done"


@pytest.mark.devices
def test_every_other_call_does():
    assert on_devices(8, TESTS / "sharded.py", "explicit", "others", *TOGETHER) == "done"


@pytest.mark.slow
@pytest.mark.parametrize("types", ["explicit", "automatic", "mixed"])
def test_every_call_does_on_every_mesh(types):
    assert on_devices(8, TESTS / "sharded.py", types, "all", *MESHES) == "done"


@pytest.mark.devices
@pytest.mark.parametrize(
    ("types", "meshes"),
    [("explicit", PAIRS), ("automatic", (*ALONE, *TOGETHER))],
    ids=["explicit", "automatic"],
)
def test_what_devices_exchange_and_hold(types, meshes):
    assert on_devices(8, TESTS / "traffic.py", types, *meshes) == "done"


@pytest.mark.slow
@pytest.mark.parametrize("types", ["explicit", "automatic"])
def test_what_devices_exchange_and_hold_on_every_mesh(types):
    assert on_devices(8, TESTS / "traffic.py", types, *MESHES) == "done"
