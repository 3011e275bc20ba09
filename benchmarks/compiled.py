"""What XLA compiles for host devices, beside `costs.py`. Nothing runs, and no array is
made: arguments are shapes."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from costs import Collective, Layout, Task
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import eqx_bart as eb


COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) "
    r"(all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\((.*)"
)
IN_LOOP = "/while/body/"


def mesh_of(layout: Layout) -> Mesh:
    """The mesh over the first devices."""
    names = layout.family or ("data",)
    sizes = tuple(dataclasses.asdict(layout)[name] for name in names)
    devices = jax.devices("cpu")[: math.prod(sizes)]
    return jax.make_mesh(sizes, names, (AxisType.Auto,) * len(names), devices=devices)


def compile_training(task: Task, layout: Layout) -> Any:
    """The program of a loss and its gradients, split as the parameters are."""
    mesh = mesh_of(layout)
    arrays, rest = _model(task, mesh)
    source, target = (_ids(task, n, mesh) for n in (task.source, task.target))

    def gradients(arrays: Any, source: Any, target: Any) -> Any:
        model = eqx.combine(arrays, rest)
        trained, fixed = eqx.partition(model, eb.trainable(model))

        def loss(trained: Any) -> Any:
            whole = eqx.combine(trained, fixed)
            return eb.seq2seq_loss(whole, source, None, target).mean

        grads = eb.shard(eqx.filter_grad(loss)(trained), mesh)
        return eqx.filter(grads, eqx.is_array)

    return _compiled(gradients, arrays, source, target)


def compile_generation(task: Task, layout: Layout) -> Any:
    """The program of a greedy generation of `target` tokens."""
    mesh = mesh_of(layout)
    arrays, rest = _model(task, mesh)

    def generate(arrays: Any, source: Any) -> Any:
        model = eqx.combine(arrays, rest)
        length = {"max_new_tokens": task.target, "min_new_tokens": task.target}
        return model.generate(source, **length).sequences

    return _compiled(generate, arrays, _ids(task, task.source, mesh))


def exchanged(program: Any, *, in_loop: bool) -> dict[str, int]:
    """The bytes of the results of each kind of collective, inside a loop or outside. What
    is not of floats, ids and masks, is left out: it is little."""
    totals = collections.Counter[str]()
    for shapes, kind, rest in COLLECTIVE.findall(program.as_text()):
        if (IN_LOOP in rest) != in_loop:
            continue
        for sizes in re.findall(r"f32\[([\d,]*)\]", shapes):
            totals[kind] += 4 * math.prod(int(n) for n in sizes.split(",") if n)
    return dict(totals)


def held(program: Any) -> int:
    """The bytes of arguments, results and what is between them, on one device."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    )


def expected(sent: tuple[Collective, ...]) -> dict[str, float]:
    """The same, as `costs.py` has it. XLA's CPU backend has no reduce-scatter: it sums all,
    and takes a part."""
    totals = collections.Counter[str]()
    for one in sent:
        kind = "all-reduce" if one.kind == "reduce-scatter" else one.kind
        totals[kind] += int(one.size * one.apart)
    return dict(totals)


def _model(task: Task, mesh: Mesh) -> tuple[Any, Any]:
    """A model of shapes, laid out over the mesh; and what of it are no arrays."""
    model = eqx.filter_eval_shape(
        eb.BartForConditionalGeneration, task.config, key=jax.random.key(0)
    )
    model = eb.shard(eqx.nn.inference_mode(model), mesh)
    return eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))


def _ids(task: Task, length: int, mesh: Mesh) -> jax.ShapeDtypeStruct:
    rows = tuple(name for name in mesh.axis_names if name != "tensor")
    sharding = NamedSharding(mesh, PartitionSpec(rows or None))
    return jax.ShapeDtypeStruct((task.batch, length), jnp.int32, sharding=sharding)


def _compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    with eb.checks("nan"):
        return jax.jit(function).lower(*arguments).compile()
