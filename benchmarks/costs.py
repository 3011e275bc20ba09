"""What a training step and a generation of BART cost one of many devices, in closed form:
operations, bytes of memory that are read and written, collectives, memory that is held.

The layout is that of `eqx_bart.shard`: Megatron's over `tensor`; over `fsdp`, weights that
are gathered where they are used, and gradients that are reduced and scattered; over `data`
and `fsdp`, rows. `compiled.py` has the same of what XLA compiles.

In half precision weights and states move in it, and sums are float32, as products are.
"""

import dataclasses
import math
from collections.abc import Iterator

import eqx_bart as eb


SUM = 4
#: Bytes of a parameter in training: itself, its gradient and AdamW's two moments, float32.
TRAINED = 16
#: Bytes that AdamW reads and writes for a parameter: four arrays, three of them anew.
UPDATED = 28
#: How often what is kept for the backward pass is read or written, with its gradient:
#: forward one of each, backward one, and of the gradient one of each.
PASSES = 5


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of the axes of a mesh, of which the last is the innermost."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __str__(self) -> str:
        named = [f"{k}={n}" for k, n in dataclasses.asdict(self).items() if n > 1]
        return ",".join(named) or "one device"

    @property
    def rows(self) -> int:
        """In how many parts the rows of a batch are split."""
        return self.data * self.fsdp

    @property
    def family(self) -> tuple[str, ...]:
        """The axes that split something."""
        return tuple(k for k, n in dataclasses.asdict(self).items() if n > 1)


@dataclasses.dataclass(frozen=True)
class Task:
    """A batch, and the model that it is for; `width` is the bytes of a number."""

    config: eb.BartConfig
    batch: int
    source: int
    target: int
    width: int = 2

    @property
    def tokens(self) -> int:
        """Of the source and the target."""
        return self.batch * (self.source + self.target)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind, one after the other.

    **Fields:**

    - `axes`: of the mesh, over which they go.
    - `size`: the bytes of all their arrays on one device, before they are scattered or
        after they are gathered.
    - `count`: how many they are.
    - `apart`: how many sums XLA's CPU backend makes of each: it sums over devices first and
        adds what that gives, where other backends do it the other way round (XLA's
        `AllReduceReassociate`).
    """

    kind: str
    axes: tuple[str, ...]
    size: float
    count: int = 1
    apart: int = 1


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations, and bytes that are read and written meanwhile."""

    flops: float
    moved: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does: works and collectives; and the bytes that it holds."""

    works: tuple[Work, ...]
    collectives: tuple[Collective, ...]
    held: float

    @property
    def flops(self) -> float:
        """All operations."""
        return sum(work.flops for work in self.works)


def matrices(config: eb.BartConfig) -> int:
    """How many entries the matrices of all layers have."""
    d = config.d_model
    encoder = 4 * d * d + 2 * d * config.encoder_ffn_dim
    decoder = 8 * d * d + 2 * d * config.decoder_ffn_dim
    return config.encoder_layers * encoder + config.decoder_layers * decoder


def vectors(config: eb.BartConfig, tensor: int = 1) -> int:
    """How many entries biases and norms have on one device."""
    d = config.d_model
    encoder = (3 * d + config.encoder_ffn_dim) // tensor + 6 * d
    decoder = (6 * d + config.decoder_ffn_dim) // tensor + 9 * d
    layers = config.encoder_layers * encoder + config.decoder_layers * decoder
    return layers + 4 * d


def vocabulary_parts(config: eb.BartConfig, layout: Layout) -> int:
    """In how many parts `tensor` splits the vocabulary: one that it does not divide, such
    as 50,265, is on each device as a whole, and so are its logits."""
    return layout.tensor if config.vocab_size % layout.tensor == 0 else 1


def parameters(config: eb.BartConfig, layout: Layout) -> int:
    """How many parameters are on one device."""
    d, f, t = config.d_model, layout.fsdp, layout.tensor
    table = config.vocab_size * d // vocabulary_parts(config, layout)
    positions = 2 * (config.max_position_embeddings + 2) * d
    return (matrices(config) // t + table + positions) // f + vectors(config, t)


def training(task: Task, layout: Layout) -> Cost:
    """A step: loss, gradients and AdamW, without gradient checkpointing."""
    config, t, f = task.config, layout.tensor, layout.fsdp
    own = parameters(config, layout)
    table = config.vocab_size * config.d_model // vocabulary_parts(config, layout)
    whole = matrices(config) // t + table
    kept = _activations(task, layout)
    logits = SUM * _own(task, layout) * task.target * table // config.d_model
    # Gathered weights stay until the backward pass; in half precision all are copies.
    copies = task.width * whole if f > 1 or task.width < 4 else 0
    return Cost(
        works=(
            Work(3 * _forward_flops(task, layout), (3 * task.width + SUM) * whole),
            Work(0, PASSES * (kept + logits)),
            Work(0, UPDATED * own),
        ),
        collectives=(*_forward(task, layout), *_backward(task, layout)),
        held=TRAINED * own + copies + kept + 3 * logits,
    )


def encoding(task: Task, layout: Layout) -> Cost:
    """What a generation does once: the encoder, and keys and values of cross-attention."""
    config, t, f = task.config, layout.tensor, layout.fsdp
    d, own, layers = config.d_model, _own(task, layout), config.encoder_layers
    encoder = layers * (4 * d * d + 2 * d * config.encoder_ffn_dim)
    weights = encoder + config.decoder_layers * 2 * d * d
    states = own * task.source * d
    flops = 2 * own * task.source * (weights + 2 * layers * task.source * d) / t
    sent = list[Collective]()
    if t > 1:
        sent.append(
            Collective("all-reduce", ("tensor",), SUM * states * 2 * layers, 2 * layers)
        )
    sent.extend(_lookup(task, layout, task.source))
    if f > 1:
        size = task.width * weights // t
        count = 6 * layers + 2 * config.decoder_layers
        sent.append(Collective("all-gather", ("fsdp",), size, count))
    read = Work(flops, task.width * weights / t)
    return Cost((read, Work(0, 2 * _encoder_activations(task, layout))), tuple(sent), 0)


def decoding(task: Task, layout: Layout) -> Cost:
    """One step of a greedy generation, whose cache has `target` slots; and all that a
    generation holds."""
    config, t, f = task.config, layout.tensor, layout.fsdp
    d, own, layers = config.d_model, _own(task, layout), config.decoder_layers
    table = config.vocab_size * d // vocabulary_parts(config, layout)
    weights = layers * (6 * d * d + 2 * d * config.decoder_ffn_dim) // t + table
    cache = 2 * layers * own * (task.source + task.target) * d // t
    flops = 2 * own * weights + 2 * cache
    logits = SUM * own * table // d
    in_parts = f > 1 and _moves(task, layout, d, d)
    read = task.width * (weights // (f if in_parts else 1) + cache)
    whole = task.width * (cache + parameters(config, layout)) + 2 * logits
    return Cost((Work(flops, read + 2 * logits),), tuple(_step(task, layout)), whole)


def _own(task: Task, layout: Layout) -> int:
    """The rows of one device."""
    return task.batch // layout.rows


def _forward_flops(task: Task, layout: Layout) -> float:
    """Of the products of a forward pass."""
    config, d = task.config, task.config.d_model
    source, target = task.source, task.target
    encoder = source * (4 * d * d + 2 * d * config.encoder_ffn_dim + 2 * source * d)
    decoder = target * (6 * d * d + 2 * d * config.decoder_ffn_dim)
    decoder += source * 2 * d * d + 2 * target * (target + source) * d
    layers = config.encoder_layers * encoder + config.decoder_layers * decoder
    head = target * d * config.vocab_size / vocabulary_parts(config, layout)
    return 2 * _own(task, layout) * (layers / layout.tensor + head)


def _encoder_activations(task: Task, layout: Layout) -> float:
    """The bytes that the layers of the encoder keep for the backward pass: sums, what
    norms make of them, and results; queries, keys, values and what is attended to; the
    feed-forward before and after its activation; attention weights, twice where they are
    rounded."""
    config, source = task.config, task.source
    own, d, f = _own(task, layout), config.d_model, config.encoder_ffn_dim
    copied = 6 * d * task.width
    split = (4 * d + 2 * f) * task.width
    split += config.encoder_attention_heads * source * _weight_bytes(task)
    return config.encoder_layers * own * source * (copied + split / layout.tensor)


def _activations(task: Task, layout: Layout) -> float:
    """The bytes that all layers keep."""
    config, source, target = task.config, task.source, task.target
    own, d, f = _own(task, layout), config.d_model, config.decoder_ffn_dim
    split = (6 * target + 2 * source) * d + 2 * f * target
    weights = config.decoder_attention_heads * target * (target + source)
    split = task.width * split + _weight_bytes(task) * weights
    decoder = 9 * target * d * task.width + split / layout.tensor
    return _encoder_activations(task, layout) + config.decoder_layers * own * decoder


def _weight_bytes(task: Task) -> int:
    """Bytes that an attention weight takes: float32, and its copy in half precision."""
    return 4 if task.width == 4 else 4 + task.width


def _lookup(task: Task, layout: Layout, length: int) -> Iterator[Collective]:
    """Token embeddings from parts of the table, and the positions that are used."""
    states = task.width * _own(task, layout) * length * task.config.d_model
    if vocabulary_parts(task.config, layout) > 1:
        yield Collective("all-reduce", ("tensor",), states)
    if layout.fsdp > 1:
        yield Collective("all-gather", ("fsdp",), task.width * length * task.config.d_model)
        yield Collective("all-to-all", ("fsdp",), states)


def _forward(task: Task, layout: Layout) -> Iterator[Collective]:
    """Of a forward pass: Megatron's sums, one for each attention and each feed-forward;
    and FSDP's weights."""
    config, t = task.config, layout.tensor
    d, own = config.d_model, _own(task, layout)
    for length, sums in (
        (task.source, 2 * config.encoder_layers),
        (task.target, 3 * config.decoder_layers),
    ):
        yield from _lookup(task, layout, length)
        if t > 1:
            yield Collective("all-reduce", ("tensor",), SUM * own * length * d * sums, sums)
    if layout.fsdp > 1:
        count = 6 * config.encoder_layers + 10 * config.decoder_layers
        size = task.width * matrices(config) // t
        yield Collective("all-gather", ("fsdp",), size, count)
        parts = vocabulary_parts(config, layout)
        # XLA gathers the tied table again for the backward pass if both axes split it.
        again = 2 if parts > 1 else 1
        size = task.width * config.vocab_size * d // parts
        yield Collective("all-gather", ("fsdp",), again * size, again)


def _backward(task: Task, layout: Layout) -> Iterator[Collective]:
    """Of a backward pass: Megatron's sums of gradients by the inputs of queries, keys and
    values and of the feed-forward; and the gradients of parameters."""
    config, t, f = task.config, layout.tensor, layout.fsdp
    own, d = _own(task, layout), config.d_model
    source, target = (SUM * own * n * d for n in (task.source, task.target))
    parts = vocabulary_parts(config, layout)

    def summed(size: float, count: int, apart: int = 1) -> Collective:
        return Collective("all-reduce", ("tensor",), size * count, count, apart)

    if t > 1:
        encoder, decoder = config.encoder_layers, config.decoder_layers
        yield summed(source, encoder, apart=3)
        yield summed(source, encoder)
        yield summed(target, decoder, apart=3)
        yield summed(source, decoder, apart=2)
        yield summed(target, 2 * decoder)
    if parts > 1:
        yield summed(target, 1)
        yield summed(SUM * own * task.target, 2)  # the maximum and the sum of a softmax
    weights, table = SUM * matrices(config) // t, SUM * config.vocab_size * d // parts
    if f > 1:
        yield Collective("reduce-scatter", ("fsdp",), weights + table)
        states = task.width * own * (task.source + task.target) * d
        yield Collective("all-to-all", ("fsdp",), states, 2)
    if layout.data > 1:
        yield Collective("all-reduce", ("data",), weights // f)
        # The tied table has gradients from both look-ups and from the head.
        yield Collective("all-reduce", ("data",), table // f, apart=3)
    if layout.rows > 1:
        size = SUM * (vectors(config, t) + (task.source + task.target) * d)
        yield Collective("all-reduce", ("data", "fsdp"), size)


def _moves(task: Task, layout: Layout, d_in: int, d_out: int) -> bool:
    """Whether a product in a decoding step moves states rather than its weight over `fsdp`;
    see `eqx_bart.nn.mesh.product`."""
    return task.batch // layout.data * (d_in + d_out) < d_in * d_out


def _step(task: Task, layout: Layout) -> Iterator[Collective]:
    """Of a step that decodes one token of each row."""
    config, t = task.config, layout.tensor
    d, ffn, layers = config.d_model, config.decoder_ffn_dim, config.decoder_layers
    own, parts = _own(task, layout), vocabulary_parts(config, layout)
    if layout.rows > 1:
        yield Collective("all-reduce", ("data", "fsdp"), 1)  # whether all rows have ended
    if parts > 1:
        yield Collective("all-reduce", ("tensor",), task.width * own * d)  # the look-up
        yield Collective("all-gather", ("tensor",), SUM * own * t, 2)  # the best token
        yield Collective("all-reduce", ("tensor",), SUM * own, 2)
    if t > 1:
        yield Collective("all-reduce", ("tensor",), 3 * layers * SUM * own * d, 3 * layers)
    if layout.fsdp > 1:
        yield Collective("all-to-all", ("fsdp",), 2 * task.width * own * d, 2)
        if parts > 1:
            yield Collective("all-gather", ("fsdp",), task.width * own * d)
        attentions = _Maps((d, d), columns=4, rows=2, inputs=2)
        feed_forward = _Maps((d, ffn), columns=1, rows=1, inputs=1)
        head = _Maps((d, config.vocab_size * t // parts), columns=1, rows=0, inputs=1)
        for maps, times in ((attentions, layers), (feed_forward, layers), (head, 1)):
            yield from _over_fsdp(task, layout, maps, times)


@dataclasses.dataclass(frozen=True)
class _Maps:
    """Linear maps with weights of this shape that are split by columns over `tensor`, from
    so many different inputs; and with their transposes, split by rows."""

    shape: tuple[int, int]
    columns: int
    rows: int
    inputs: int


def _over_fsdp(task: Task, layout: Layout, maps: _Maps, times: int) -> Iterator[Collective]:
    """Of these maps in so many layers: either weights are gathered, or states move, and
    sums of all rows of a group."""
    narrow, wide = maps.shape[0], maps.shape[1] // layout.tensor
    width, own, group = task.width, _own(task, layout), task.batch // layout.data
    if not _moves(task, layout, *maps.shape):
        count = times * (maps.columns + maps.rows)
        yield Collective("all-gather", ("fsdp",), count * width * narrow * wide, count)
        return
    moves, sums, gathers = (
        times * n for n in (maps.inputs + maps.rows, maps.columns, maps.rows)
    )
    yield Collective("all-to-all", ("fsdp",), moves * width * own * narrow, moves)
    yield Collective("all-reduce", ("fsdp",), sums * SUM * group * wide, sums)
    yield Collective("all-gather", ("fsdp",), gathers * width * group * wide, gathers)


def layouts(num_devices: int, task: Task, most_tensor: int) -> Iterator[Layout]:
    """All layouts over so many devices, a power of two, that divide the model and the
    batch."""
    config = task.config
    heads = math.gcd(config.encoder_attention_heads, config.decoder_attention_heads)
    powers = [2**i for i in range(num_devices.bit_length())]
    for tensor in (n for n in powers if n <= most_tensor and heads % n == 0):
        for fsdp in (n for n in powers if tensor * n <= num_devices):
            layout = Layout(num_devices // (fsdp * tensor), fsdp, tensor)
            if task.batch % layout.rows == 0 and config.d_model % fsdp == 0:
                yield layout
