"""How long what `costs.py` counts takes on a machine that a file in `machines/` describes.

A work takes as long as its operations or its bytes, whichever is longer; works follow one
another. A collective goes in rings: inside the nodes first, then between them, where each
device sends its own part; an all-reduce is a scatter and a gather. Its latency is that of
the hops of a ring inside a node and of a tree between nodes, as NCCL has it.
"""

import dataclasses
import math
import tomllib
from pathlib import Path

from costs import Collective, Cost, decoding, encoding, Layout, Task, training, Work


#: The share of the peak that products reach: an assumption.
EFFICIENCY = 0.7


@dataclasses.dataclass(frozen=True)
class Link:
    """Bytes and seconds of one device, one way."""

    bandwidth: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a file in `machines/` says.

    **Fields:**

    - `peak`: operations a second, by dtype.
    - `memory`, `bandwidth`: of one device.
    - `per_node`: how many devices `inside` connects, in a ring or torus of so many
        `dimensions`; `between` connects nodes.
    - `start`: the seconds that a collective takes before its first hop.
    - `layer`: those that a decoding step takes for each layer, beside what it computes.
    """

    name: str
    peak: dict[str, float]
    memory: float
    bandwidth: float
    per_node: int
    dimensions: int
    inside: Link
    between: Link
    start: float
    layer: float

    @classmethod
    def read(cls, path: Path) -> "Machine":
        """The machine of a file."""
        with path.open("rb") as file:
            said = tomllib.load(file)
        node, network = said["node"], said["network"]
        return cls(
            said["name"],
            said["peak"],
            said["memory"]["size"],
            said["memory"]["bandwidth"],
            node["devices"],
            node["dimensions"],
            Link(node["bandwidth"], node["latency"]),
            Link(network["bandwidth"], network["latency"]),
            said["collective"]["latency"],
            said["decoding"]["layer"],
        )

    def compute(self, works: tuple[Work, ...], dtype: str) -> float:
        """The seconds of works, one after the other."""
        peak = EFFICIENCY * self.peak[dtype]
        return sum(max(w.flops / peak, w.moved / self.bandwidth) for w in works)

    def exchange(self, one: Collective, layout: Layout) -> float:
        """The seconds of collectives, one after the other."""
        sizes = dataclasses.asdict(layout)
        devices = math.prod(sizes[axis] for axis in one.axes)
        if devices == 1:
            return 0
        names = list(sizes)
        stride = math.prod(sizes[k] for k in names[names.index(one.axes[-1]) + 1 :])
        near = min(devices, max(1, self.per_node // stride))
        nodes = devices // near
        sent_near, sent_far = (near - 1) / near, (nodes - 1) / nodes / near
        if one.kind == "all-to-all":
            sent_near, sent_far = (near - 1) / devices, (devices - near) / devices
        ways = 2 if one.kind == "all-reduce" else 1
        hops = self.dimensions * (near ** (1 / self.dimensions) - 1)
        latency = hops * self.inside.latency + math.log2(nodes) * self.between.latency
        seconds = sent_near / self.inside.bandwidth + sent_far / self.between.bandwidth
        return ways * (one.size * seconds + one.count * latency) + one.count * self.start


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a layout takes on a machine.

    **Fields:**

    - `compute`: seconds of operations and memory.
    - `exposed`: seconds of collectives that others wait for.
    - `hidden`: seconds of collectives that may run while others compute.
    - `held`: bytes on one device.
    - `fits`: whether the device has them.
    """

    layout: Layout
    compute: float
    exposed: float
    hidden: float
    held: float
    fits: bool

    @property
    def seconds(self) -> float:
        """With all overlap that there can be."""
        return max(self.compute, self.hidden) + self.exposed

    @property
    def in_turn(self) -> float:
        """Without overlap."""
        return self.compute + self.hidden + self.exposed


def step(machine: Machine, task: Task, layout: Layout, dtype: str) -> Prediction:
    """A training step. Layers wait for the sums over `tensor`; weights and gradients move
    while other layers compute."""
    cost = training(task, layout)
    seconds = {False: 0.0, True: 0.0}
    for one in cost.collectives:
        seconds[one.axes == ("tensor",)] += machine.exchange(one, layout)
    return Prediction(
        layout,
        machine.compute(cost.works, dtype),
        exposed=seconds[True],
        hidden=seconds[False],
        held=cost.held,
        fits=cost.held <= machine.memory,
    )


def generation(machine: Machine, task: Task, layout: Layout, dtype: str) -> Prediction:
    """A greedy generation, in which everything waits for every collective."""
    once, each = encoding(task, layout), decoding(task, layout)
    layers = machine.layer * task.config.decoder_layers

    def exposed(cost: Cost) -> float:
        return sum(machine.exchange(one, layout) for one in cost.collectives)

    def computed(cost: Cost) -> float:
        return machine.compute(cost.works, dtype)

    return Prediction(
        layout,
        computed(once) + task.target * (computed(each) + layers),
        exposed=exposed(once) + task.target * exposed(each),
        hidden=0,
        held=each.held,
        fits=each.held <= machine.memory,
    )
