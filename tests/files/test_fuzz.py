"""Mutated checkpoints: each loads to what is in the file, or is refused.

python tests/test_checkpoint_fuzz.py FIRST LAST fuzzes with these seeds and reports the
slowest mutant of each kind. What a mutant loads to is compared with what the reference
reader of its format makes of it: a bit of a weight may differ, and nobody can tell.
"""

import collections
import contextlib
import io
import json
import pathlib
import pickletools
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.torch
import torch

import eqx_bart as eb
from eqx_bart.checkpoint.matching import match
from eqx_bart.checkpoint.names import canonical, sources
from eqx_bart.files.formats import find_weights


FLAX = pathlib.Path(__file__).with_name("flax") / "generation_tied"
KINDS = ("safetensors", "shards", "zip", "legacy", "msgpack", "config")
SECONDS, BYTES = 2, 200 * 2**20

# What a file may not make Python do. Hooks cannot be taken away, hence the switch.
_FORBIDDEN = ("os.", "subprocess.", "socket.", "pickle.", "shutil.")
_ALLOWED = ("os.listdir", "os.scandir")
_events: list[str] = []
_is_watching = False


def _watch(event, arguments):
    if not _is_watching:
        return
    is_writing = event == "open" and set(str(arguments[1])) & set("wax+")
    # Beartype compiles the checks of functions; what `mutated_pickle` evaluates is this.
    is_evaluating = event == "compile" and arguments[0] in ("true", b"true")
    if (
        is_writing
        or is_evaluating
        or (event.startswith(_FORBIDDEN) and event not in _ALLOWED)
    ):
        _events.append(f"{event} {arguments}")


sys.addaudithook(_watch)


class Seed:
    """A valid checkpoint in each format, in memory: the files of each kind by name."""

    def __init__(self):
        torch.manual_seed(0)
        config = eb.BartConfig(
            vocab_size=13,
            max_position_embeddings=5,
            d_model=4,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=6,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=6,
        )
        model = eb.BartForConditionalGeneration(config, key=jax.random.key(0))
        self.files = {"msgpack": _read_all(FLAX)}
        with tempfile.TemporaryDirectory() as temporary:
            directory = pathlib.Path(temporary)
            model.save_pretrained(directory / "whole")
            model.save_pretrained(directory / "shards", max_shard_size=1000)
            self.files["safetensors"] = _read_all(directory / "whole")
            self.files["shards"] = _read_all(directory / "shards")
        self.files["config"] = self.files["safetensors"]
        others = {
            name: content
            for name, content in self.files["safetensors"].items()
            if name.endswith(".json")
        }
        state = collections.OrderedDict(
            safetensors.torch.load(self.files["safetensors"]["model.safetensors"])
        )
        state["lm_head.weight"] = state["model.shared.weight"]
        for kind, is_zip in (("zip", True), ("legacy", False)):
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=is_zip)
            self.files[kind] = {**others, "pytorch_model.bin": stream.getvalue()}


def _read_all(directory):
    return {
        file.name: file.read_bytes()
        for file in directory.iterdir()
        if file.suffix in (".json", ".safetensors", ".msgpack")
    }


def interesting(rng):
    """A whole number on the edge of something."""
    edges = (0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1)
    edges += (2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
    return int(edges[rng.integers(len(edges))])


def mutated_bytes(rng, content):  # noqa: C901
    """Flips bits, writes numbers, truncates, lengthens, deletes, repeats or splices."""
    data, size = bytearray(content), len(content)
    # The ends, where headers are, as often as the rest.
    place = (
        int(rng.integers(min(size, 600))) if rng.integers(2) else int(rng.integers(size))
    )
    if rng.integers(4) == 0:
        place = size - 1 - place
    other, length = int(rng.integers(size)), int(rng.integers(1, 40))
    match rng.integers(8):
        case 0:
            for _ in range(rng.integers(1, 9)):
                data[(place + rng.integers(8)) % size] ^= 1 << rng.integers(8)
        case 1:
            data[place] = rng.integers(256)
        case 2:
            order = ("little", "big")[rng.integers(2)]
            width = (1, 2, 4, 8)[rng.integers(4)]
            value = interesting(rng) % 2 ** (8 * width)
            data[place : place + width] = value.to_bytes(width, order)
        case 3:
            del data[place:]
        case 4:
            del data[place : place + length]
        case 5:
            data[place:place] = data[other : other + length]
        case 6:
            data[place : place + length] = data[other : other + length]
        case 7:
            data += bytes(data[:length]) if rng.integers(2) else bytes(length)
    return bytes(data)


def random_json(rng, depth=0):  # noqa: PLR0911
    """Any JSON value, at times absurd."""
    match rng.integers(9):
        case 0:
            return None
        case 1:
            return bool(rng.integers(2))
        case 2 | 3:
            return interesting(rng)
        case 4:
            return float(rng.normal() * 10.0 ** rng.integers(-5, 300))
        case 5:
            return ("", "../x", "/etc/passwd", "F32", "BF16", "gelu", "x" * 9000)[
                rng.integers(7)
            ]
        case 6 if depth < 4:
            return [random_json(rng, depth + 1) for _ in range(rng.integers(4))]
        case 7 if depth < 4:
            return {f"k{i}": random_json(rng, depth + 1) for i in range(rng.integers(4))}
        case _:
            return float("nan") if rng.integers(2) else float("inf")


def mutated_json(rng, content):
    """Changes a value somewhere inside, drops, adds or doubles a key, or nests deeply."""
    value = json.loads(content)
    node, parents = value, []
    while isinstance(node, dict | list) and node and (not parents or rng.integers(3)):
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = keys[rng.integers(len(keys))]
        parents.append((node, key))
        node = node[key]
    node, key = parents[-1]
    match rng.integers(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[f"{key}x"] = node[key]
        case 2:
            others = [n[k] for n, k in parents]
            node[key] = others[rng.integers(len(others))] if len(others) > 2 else 0
        case 3:
            depth = int(rng.choice([50, 2000, 200_000]))
            return json.dumps(value).encode()[:-1] + b',"x":' + b"[" * depth
        case 4:
            text = json.dumps(value)
            return (text[:-1] + "," + text[1:]).encode()
        case _:
            node[key] = random_json(rng)
    return json.dumps(value).encode()


def mutated_safetensors(rng, content):
    size = int.from_bytes(content[:8], "little")
    header = mutated_json(rng, content[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def mutated_pickle(rng, content):
    """Puts another opcode, argument or name at a place where an opcode stands."""
    places = [place for _, _, place in pickletools.genops(content)] + [len(content)]
    i = int(rng.integers(len(places) - 1))
    start, end = places[i], places[i + 1]
    j = int(rng.integers(len(places) - 1))
    name = (b"os\nsystem", b"builtins\neval", b"torch\nFloatStorage", b"posix\nsystem")
    new = (
        b"",
        content[places[j] : places[j + 1]],
        content[start:end] * 2,
        b"c" + name[rng.integers(4)] + b"\n",
        b"c" + name[rng.integers(4)] + b"\nX\x04\x00\x00\x00true\x85R",
        b"J" + struct.pack("<i", interesting(rng) % 2**31),
        b"\x8a\x08" + struct.pack("<q", interesting(rng) % 2**63),
        bytes([rng.integers(256)]),
        (b"h", b"r", b"X", b"\x8e", b"t", b"R", b"b", b"Q")[rng.integers(8)]
        + struct.pack("<I", interesting(rng) % 2**32),
        b"(" * int(rng.choice([3, 50_000])) + b"l",
        b"\x85" * int(rng.choice([3, 200_000])),
    )[rng.integers(11)]
    return content[:start] + new + content[end:]


def mutated_zip(rng, content):
    """Changes the pickle, drops, doubles or renames an entry, or compresses it."""
    stream = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if rng.integers(9) == 0 else zipfile.ZIP_STORED
    how = rng.integers(5)
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(stream, "w", compression) as new,
    ):
        names = old.namelist()
        victim = names[rng.integers(len(names))]
        for name in names:
            data = old.read(name)
            if how <= 2 and name.endswith("data.pkl"):
                data = mutated_pickle(rng, data)
            if how == 3 and name == victim:
                data = mutated_bytes(rng, data) if data else b"x"
            if how == 4 and name == victim:
                name = ("../x", "/x", name + "x", names[0])[rng.integers(4)]
            new.writestr(name, data)
    return stream.getvalue()


def mutated_legacy(rng, content):
    """Changes one of the pickles at the beginning."""
    stream, starts = io.BytesIO(content), [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        starts.append(stream.tell())
    i = int(rng.integers(5))
    start, end = starts[i], starts[i + 1]
    return content[:start] + mutated_pickle(rng, content[start:end]) + content[end:]


STRUCTURED = {
    "model.safetensors": mutated_safetensors,
    "pytorch_model.bin": lambda rng, content: (
        mutated_zip if content.startswith(b"PK") else mutated_legacy
    )(rng, content),
}


def mutant(rng, kind, files):
    """The files of a checkpoint, one of them changed once or a few times."""
    names = [n for n in files if n.endswith(".json") == (kind == "config")]
    if kind == "shards":
        names.append("model.safetensors.index.json")
    name = names[rng.integers(len(names))]
    content = files[name]
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        structured = mutated_json if name.endswith(".json") else STRUCTURED.get(name)
        is_structured = structured is not None and rng.integers(2)
        try:
            content = (structured if is_structured else mutated_bytes)(rng, content)
        except Exception:  # noqa: BLE001, what is broken already has no structure
            content = mutated_bytes(rng, content or b"x")
    return name, content


class Fuzzer:
    """Makes mutants, loads them, and checks what comes of it."""

    def __init__(self):
        self.seed = Seed()
        self.templates, self.arrays = {}, {}
        for kind, files in self.seed.files.items():
            with _written(files) as directory:
                config = eb.BartConfig.from_pretrained(directory)
                self.templates[kind] = _template(config)
                self.arrays[kind] = self.load(kind, directory)

    def load(self, kind, directory):
        """The arrays of the checkpoint, by name."""
        if kind == "config":  # whose values the model is built by
            model = eb.BartForConditionalGeneration.from_pretrained(directory)
            return dict(enumerate(jax.tree.leaves(eqx.filter(model, eqx.is_array))))
        found = match(self.templates[kind], find_weights(directory).read())
        if found.problems:
            raise eb.CheckpointError("\n".join(found.problems))
        return {name: tensor.load() for name, tensor in found.stored.items()}

    def check(self, number):
        """Fuzzes with a seed; returns the kind, what came of it, and the seconds."""
        global _is_watching  # noqa: PLW0603
        rng = np.random.default_rng(number)
        kind = KINDS[number % len(KINDS)]
        files = self.seed.files[kind]
        name, content = mutant(rng, kind, files)
        what = f"mutant {number}, {kind}, {name}"
        with _written({**files, name: content}) as directory:
            before = sorted(directory.parent.rglob("*"))
            peak, start = _peak(), time.process_time()
            _is_watching = True
            try:
                arrays = self.load(kind, directory)
                outcome = "loaded"
            except eb.CheckpointError:
                outcome = "refused"
            finally:
                _is_watching = False
            seconds = time.process_time() - start
            assert not _events, f"{what}: {_events}"
            assert seconds < SECONDS, f"{what}: {seconds} s"
            assert _peak() - peak < BYTES + len(content), what
            assert sorted(directory.parent.rglob("*")) == before, what
            if outcome == "loaded" and not _are_same(arrays, self.arrays[kind]):
                expected = self._reference(directory, arrays)
                assert _are_same(arrays, expected), what
                outcome = "loaded as the reference loads it"
        return kind, outcome, seconds

    def _reference(self, directory, names):
        """What the reference reader of the format gives for these names."""
        tensors = {}
        for file in sorted(directory.iterdir()):
            if file.suffix == ".safetensors":
                tensors |= safetensors.torch.load_file(file)
            elif file.suffix == ".bin":
                tensors |= torch.load(file, weights_only=True)
            elif file.suffix == ".msgpack":
                tensors |= _by_torch_names(_decoded(io.BytesIO(file.read_bytes())))
        tensors = {canonical(name): np.asarray(x) for name, x in tensors.items()}
        return {
            name: next(tensors[s] for s in sources(name, tied=True) if s in tensors)
            for name in names
        }


def _template(config):
    cls = eb.BartForConditionalGeneration
    return eqx.filter_eval_shape(cls, config, key=jax.random.key(0))


@contextlib.contextmanager
def _written(files):
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary, "checkpoint")
        directory.mkdir()
        for name, content in files.items():
            (directory / name).write_bytes(content)
        yield directory


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _are_same(a, b):
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def _decoded(stream):  # noqa: PLR0911
    """What a msgpack file of Flax's holds, by the specification."""

    def number(width):
        return int.from_bytes(stream.read(width), "big")

    first = number(1)
    if first < 0x80:
        return first
    if first < 0x90 or first in (0xDE, 0xDF):
        count = first & 15 if first < 0x90 else number((2, 4)[first - 0xDE])
        return {_decoded(stream): _decoded(stream) for _ in range(count)}
    if first < 0xA0 or first in (0xDC, 0xDD):
        count = first & 15 if first < 0xA0 else number((2, 4)[first - 0xDC])
        return [_decoded(stream) for _ in range(count)]
    if first < 0xC0 or first in (0xD9, 0xDA, 0xDB):
        width = first & 31 if first < 0xC0 else number((1, 2, 4)[first - 0xD9])
        return stream.read(width).decode()
    if first in (0xC4, 0xC5, 0xC6):
        return stream.read(number((1, 2, 4)[first - 0xC4]))
    if first in (0xCC, 0xCD, 0xCE, 0xCF):
        return number((1, 2, 4, 8)[first - 0xCC])
    if first in (0xC7, 0xC8, 0xC9):
        width = number((1, 2, 4)[first - 0xC7])
    else:
        width = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}[first]
    assert number(1) == 1
    shape, dtype, data = _decoded(io.BytesIO(stream.read(width)))
    return np.frombuffer(data, dtype).reshape(shape)


def _by_torch_names(tree, path=()):
    if not isinstance(tree, dict):
        *path, leaf = path
        weight = leaf in ("kernel", "embedding", "scale")
        name = ".".join([*path, "weight" if weight else leaf])
        return {name: tree.T if leaf == "kernel" else tree}
    tensors = {}
    for key, value in tree.items():
        tensors |= _by_torch_names(value, (*path, key))
    return tensors


@pytest.fixture(scope="module")
def fuzzer():
    return Fuzzer()


def fuzz(fuzzer, numbers):
    """Fuzzes with all these seeds; returns how often each came of each kind."""
    counts, slowest = collections.Counter(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            kind, outcome, seconds = fuzzer.check(number)
            counts[kind, outcome] += 1
            slowest[kind] = max(slowest.get(kind, 0), seconds)
    return counts, slowest


def test_mutants(fuzzer):
    counts, _ = fuzz(fuzzer, range(300))
    assert all(counts[kind, "refused"] > 10 for kind in KINDS)
    assert sum(n for (_, outcome), n in counts.items() if outcome != "refused") > 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 21_000, 1000))
def test_many_mutants(first, fuzzer):
    fuzz(fuzzer, range(first, first + 1000))


if __name__ == "__main__":
    for counted in fuzz(Fuzzer(), range(int(sys.argv[1]), int(sys.argv[2]))):
        for what, figure in sorted(counted.items()):
            print(what, figure)  # noqa: T201
