"""The model of `benchmarks/scaling.py`: against what is compiled, and against sense."""

import dataclasses
import pathlib
import sys

import pytest
from conftest import on_devices

import eqx_bart as eb


TESTS = pathlib.Path(__file__).parent
BENCHMARKS = TESTS.parent / "benchmarks"
NAMES = [path.stem for path in (BENCHMARKS / "machines").glob("*.toml")]


@pytest.fixture(scope="module")
def benchmark():
    """The modules of the benchmark."""
    sys.path.insert(0, str(BENCHMARKS))
    import costs
    import roofline
    import scaling

    yield costs, roofline, scaling
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def task(benchmark):
    costs, _, _ = benchmark
    return costs.Task(eb.BartConfig(vocab_size=50304), 256, 512, 128)


@pytest.fixture(params=NAMES)
def machine(benchmark, request):
    _, roofline, _ = benchmark
    return roofline.Machine.read(BENCHMARKS / "machines" / f"{request.param}.toml")


def everything(benchmark, machine, task, num_devices):
    """All predictions for so many devices, of both kinds."""
    costs, roofline, _ = benchmark
    for layout in costs.layouts(num_devices, task, most_tensor=8):
        for predict in (roofline.step, roofline.generation):
            yield predict(machine, task, layout, "bfloat16")


def test_one_device_exchanges_nothing(benchmark, machine, task):
    costs, _, _ = benchmark
    one = costs.Layout()
    for cost in (costs.training, costs.encoding, costs.decoding):
        assert cost(task, one).collectives == ()
    found = list(everything(benchmark, machine, task, 1))
    assert len(found) == 2
    assert all(p.exposed == p.hidden == 0 for p in found)


def test_bart_large_has_as_many_parameters_as_it_has(benchmark):
    costs, _, _ = benchmark
    assert costs.parameters(eb.BartConfig(), costs.Layout()) == 406_291_456


@pytest.mark.parametrize("num_devices", [8, 64])
def test_every_device_does_its_part(benchmark, task, num_devices):
    costs, _, _ = benchmark
    alone = costs.training(task, costs.Layout())
    for layout in costs.layouts(num_devices, task, most_tensor=8):
        cost = costs.training(task, layout)
        assert cost.flops * num_devices == pytest.approx(alone.flops)
        assert cost.held < alone.held


@pytest.mark.parametrize("num_devices", [2, 64, 256])
def test_a_better_machine_is_never_slower(benchmark, machine, task, num_devices):
    _, roofline, _ = benchmark

    def better(link):
        return roofline.Link(2 * link.bandwidth, link.latency / 2)

    machines = [
        dataclasses.replace(machine, inside=better(machine.inside)),
        dataclasses.replace(machine, between=better(machine.between)),
        dataclasses.replace(machine, bandwidth=2 * machine.bandwidth),
        dataclasses.replace(machine, peak={"bfloat16": 2 * machine.peak["bfloat16"]}),
        dataclasses.replace(machine, start=0),
    ]
    before = list(everything(benchmark, machine, task, num_devices))
    assert before
    for other in machines:
        after = everything(benchmark, other, task, num_devices)
        for old, new in zip(before, after, strict=True):
            assert new.seconds <= old.seconds
            assert new.in_turn <= old.in_turn


def test_links_between_nodes_matter_only_between_nodes(benchmark, task):
    _, roofline, _ = benchmark
    machine = roofline.Machine.read(BENCHMARKS / "machines" / "h100.toml")
    slow = roofline.Link(machine.between.bandwidth / 2, machine.between.latency)
    slower = dataclasses.replace(machine, between=slow)
    for num_devices, is_slower in ((8, False), (16, True)):
        pairs = zip(
            everything(benchmark, machine, task, num_devices),
            everything(benchmark, slower, task, num_devices),
            strict=True,
        )
        assert any(new.in_turn > old.in_turn for old, new in pairs) == is_slower


def test_what_does_not_fit_is_not_chosen(benchmark, machine, task):
    costs, roofline, scaling = benchmark
    held = costs.training(task, costs.Layout(fsdp=8)).held
    small = dataclasses.replace(machine, memory=held)
    found = scaling.predictions(roofline.step, small, task, 8, "bfloat16")
    assert all(p.held <= held for p in found)
    assert costs.Layout(data=8) not in {p.layout for p in found}
    assert scaling.choice(found).layout == costs.Layout(fsdp=8)


@pytest.mark.devices
def test_the_model_is_what_is_compiled():
    layouts = ("data=8", "data=2,fsdp=2,tensor=2")
    assert on_devices(8, TESTS / "scaled.py", str(BENCHMARKS), *layouts) == "done"
