"""`flax_model.msgpack`: files that HF's Flax BART wrote, and what is refused."""

import pathlib
import shutil
import struct
import time
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers
from oracle import assert_close, assert_same, CLASSES

import eqx_bart as eb
from eqx_bart.files.flax import flax_name, read_flax
from eqx_bart.files.formats import find_weights


RECORDED = pathlib.Path(__file__).parent / "flax"
CASES = sorted(file.parent.name for file in RECORDED.glob("*/recorded.npz"))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def recorded(case, group):
    with np.load(RECORDED / case / "recorded.npz") as arrays:
        return {
            key.removeprefix(f"{group}:"): arrays[key]
            for key in arrays
            if key.startswith(f"{group}:")
        }


def model_class(case):
    config = transformers.BartConfig.from_pretrained(RECORDED / case)
    return CLASSES[config.architectures[0]]


def test_there_is_a_case_of_each_model():
    assert {model_class(case) for case in CASES} == set(CLASSES.values())


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_of_pytorch(case):
    config = transformers.BartConfig.from_pretrained(RECORDED / case)
    theirs = getattr(transformers, config.architectures[0])(config).state_dict()
    ours = find_weights(RECORDED / case).read()
    assert {n: tuple(theirs[n].shape) for n in ours} == {
        n: t.shape for n, t in ours.items()
    }
    missing = {name.removeprefix("model.") for name in theirs.keys() - ours.keys()}
    embeddings = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert missing <= embeddings | ({"lm_head.weight"} if "untied" not in case else set())


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_bit_for_bit_what_flax_had(case):
    ours = find_weights(RECORDED / case).read()
    theirs = recorded(case, "params")
    assert ours.keys() == {flax_name(name) for name in theirs}
    for name, array in theirs.items():
        array = array.view(BFLOAT16) if array.dtype.kind == "V" else array
        tensor = ours[flax_name(name)].load()
        assert tensor.dtype == array.dtype
        expected = array.T if name.endswith("kernel") else array
        assert tensor.shape == expected.shape
        assert tensor.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_flax(case):
    model = model_class(case).from_pretrained(RECORDED / case, dtype="float32")
    outputs = model(**jax.tree.map(jnp.asarray, recorded(case, "inputs")))
    expected = recorded(case, "outputs")
    assert len(expected) > 0
    for name, output in expected.items():
        assert_close(getattr(outputs, name), output, 1e-5, name)


@pytest.mark.parametrize("case", CASES)
def test_to_safetensors(case, tmp_path):
    model = model_class(case).from_pretrained(RECORDED / case)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert_same(model, type(model).from_pretrained(tmp_path))
    dtypes = {tensor.dtype for tensor in find_weights(tmp_path).read().values()}
    assert dtypes == {BFLOAT16 if "bfloat16" in case else np.dtype(np.float32)}


class Raw(bytes):
    """Bytes that are msgpack already."""

    __slots__ = ()


def pack(value):
    """Msgpack, where arrays are Flax's; written by the specification."""
    return _PACKERS.get(type(value), _pack_array)(value)


_PACKERS = {
    Raw: bytes,
    bool: lambda x: b"\xc3" if x else b"\xc2",
    int: lambda x: b"\xce" + x.to_bytes(4, "big"),
    float: lambda x: b"\xcb" + struct.pack(">d", x),
    str: lambda x: bytes([0xA0 + len(x)]) + x.encode(),
    bytes: lambda x: b"\xc6" + len(x).to_bytes(4, "big") + x,
    list: lambda x: bytes([0x90 + len(x)]) + b"".join(map(pack, x)),
    dict: lambda x: (
        b"\xdf"
        + len(x).to_bytes(4, "big")
        + b"".join(pack(key) + pack(value) for key, value in x.items())
    ),
}


def _pack_array(x):
    return array(x.shape, str(x.dtype), x.tobytes())


def array(shape, dtype, data, extension=1):
    body = pack([list(shape), dtype, data])
    return Raw(b"\xc9" + len(body).to_bytes(4, "big") + bytes([extension]) + body)


def chunked(shape, chunks, mark=True):  # noqa: FBT002
    return {
        "__msgpack_chunked_array__": mark,
        "shape": numbered(shape),
        "chunks": numbered(chunks),
    }


def numbered(values):
    return {str(i): value for i, value in enumerate(values)}


X = np.arange(6, dtype=np.float32)
PAIR = [X[:4], X[4:]]


def test_what_the_refused_files_are_variations_of(tmp_path):
    file = tmp_path / "flax_model.msgpack"
    tree = {
        "a": {"b": {"kernel": X.reshape(2, 3), "bias": X.astype(np.float16)}},
        "kernel": chunked([3, 2], PAIR),
        "scalar": X[0],
    }
    file.write_bytes(pack(tree))
    tensors = read_flax(file)
    assert tensors.keys() == {"a.b.weight", "a.b.bias", "weight", "scalar"}
    assert np.array_equal(tensors["a.b.weight"].load(), X.reshape(2, 3).T)
    assert np.array_equal(tensors["a.b.bias"].load(), X.astype(np.float16))
    assert np.array_equal(tensors["weight"].load(), X.reshape(3, 2).T)
    assert tensors["scalar"].load() == X[0]
    assert tensors["scalar"].shape == ()


SIZE = r"there are 24 bytes for the 28 of float32\[7\]"
REFUSED = {
    "empty": (b"", "the file ends early"),
    "no map": (pack(X), "there is an extension where a map should be"),
    "trailing": (pack({"x": X}) + b"\0", "there is more after the arrays"),
    "truncated": (pack({"a": {"x": X}})[:-1], "at a/x, the file ends early"),
    "next cut off": (b"\x82" + pack({"x": X})[5:], "the file ends early"),
    "many": (b"\xdf\xff\xff\xff\xff\xa1x", "there are more than 8192 entries"),
    "many maps": (
        pack(numbered([numbered([])] * 9000)),
        "there are more than 8192 entries",
    ),
    "deep": (b"\x81\xa1a" * 10**6, "or 10 levels"),
    "twice": (b"\x82" + (pack("x") + pack(X)) * 2, "there is a second 'x'"),
    "two names": (
        pack({"a": {"scale": X, "embedding": X}}),
        r"at a/embedding, there is a second a\.weight",
    ),
    "an integer as key": (pack({1: X}), "there is an integer where a string should be"),
    "a map as key": (b"\x81\x80" + pack(X), "there is a map where a string should be"),
    "no UTF-8": (b"\x81\xa1\xff" + pack(X), "is not UTF-8"),
    "an integer": (pack({"x": 3}), "at x, there is an integer where an array should be"),
    "true": (pack({"x": True}), "at x, there is true where an array should be"),
    "a string": (pack({"x": "y"}), "at x, there is a string where an array should be"),
    "a list": (pack({"x": [X]}), "at x, there is a list where an array should be"),
    "bytes": (pack({"x": b"y"}), "at x, there is bytes where an array should be"),
    "a float": (pack({"x": 0.5}), "the byte 0xcb starts nothing that Flax writes"),
    "a scalar": (
        pack({"x": array([], "float32", X[:1].tobytes(), extension=3)}),
        "at x, there is the extension 3, not an array",
    ),
    "int32": (pack({"a": {"x": X.astype(np.int32)}}), "at a/x, the dtype 'int32' is none"),
    "no dtype": (pack({"x": array([6], "", X.tobytes())}), "at x, the dtype '' is none"),
    "size": (pack({"x": array([7], "float32", X.tobytes())}), f"at x, {SIZE}"),
    "huge size": (
        pack({"x": array([2**32 - 1] * 15, "float32", b"")}),
        "at x, there are 0 bytes for the",
    ),
    "nothing": (
        pack({"x": array([0, 2**32 - 1, 2**32 - 1, 2**32 - 1], "float32", b"")}),
        "at x, there are 0 bytes for the 0 of",
    ),
    "odd": (
        pack({"x": array([6], "float32", X.tobytes()[:-1])}),
        "at x, there are 23 bytes for the 24",
    ),
    "a vector as kernel": (pack({"kernel": X}), r"at kernel, .* has the shape \[6\]"),
    "inner end": (
        pack({"x": X}).replace(b"\xc6\0\0\0\x18", b"\xc6\0\0\0\x17"),
        "at x, the array does not end where its elements do",
    ),
    "too few fields": (
        pack({"x": Raw(pack(X).replace(b"\x93", b"\x92"))}),
        "at x, the array is not shape, dtype and elements",
    ),
    "a name in a shape": (
        pack({"x": array(["6"], "float32", X.tobytes())}),
        "at x, there is a string where an integer should be",
    ),
    "chunks: size": (pack({"x": chunked([7], PAIR)}), f"at x, {SIZE}"),
    "chunks: none": (pack({"x": chunked([0], [])}), "make no array of one dtype"),
    "chunks: dtypes": (
        pack({"x": chunked([6], [X[:4], X[:4].astype(np.float16)])}),
        "make no array of one dtype",
    ),
    "chunks: shape": (pack({"x": chunked([X], [X])}), "at x/shape/0, there is an ext"),
    "chunks: integers": (pack({"x": chunked([6], [6])}), "at x/chunks/0, there is an int"),
    "chunks: order": (
        pack({"x": chunked([6], PAIR) | {"chunks": {"1": X[:4], "0": X[4:]}}}),
        "at x/chunks/1, this is not number 0",
    ),
    "chunks: no shape": (
        pack({"x": dict(list(chunked([6], PAIR).items())[::2])}),
        "there is no shape where it should be",
    ),
    "chunks: no chunks": (
        pack({"x": dict(list(chunked([6], PAIR).items())[:2])}),
        "there is no chunks where it should be",
    ),
    "chunks: more": (pack({"x": chunked([6], PAIR) | {"": X}}), "make no array"),
    "chunks: no mark": (
        pack({"x": chunked([6], PAIR, mark=False)}),
        "the byte 0xc2 starts nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    data, message = REFUSED[case]
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(eb.CheckpointError, match=message) as error:
        read_flax(file)
    assert time.perf_counter() - start < 1
    assert f"{file} is not a Flax checkpoint: " in str(error.value)


@pytest.mark.parametrize("case", ["generation_tied", "question_answering"])
def test_the_params_of_a_training_state(case, tmp_path):
    cls, expected = model_class(case), model_class(case).from_pretrained(RECORDED / case)
    shutil.copy(RECORDED / case / "config.json", tmp_path)
    params = Raw((RECORDED / case / "flax_model.msgpack").read_bytes())
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(pack({"params": params}))
    assert_same(cls.from_pretrained(tmp_path), expected)
    file.write_bytes(pack({"params": params, "opt_state": {"mu": params}}))
    with pytest.raises(eb.CheckpointError, match=r"'params\..*'opt_state\.mu\."):
        cls.from_pretrained(tmp_path)


def test_a_model_of_other_tensors_is_refused(tmp_path):
    directory = RECORDED / "generation_tied"
    for name in ("config.json", "flax_model.msgpack"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(file.read_bytes().replace(b"q_proj", b"Q_proj"))
    with pytest.raises(eb.CheckpointError, match=r"self_attn\.q_proj\.weight: missing"):
        eb.BartForConditionalGeneration.from_pretrained(tmp_path)


def test_elements_are_not_read(tmp_path):
    """Of several gigabytes, which are a hole in the file."""
    file = tmp_path / "flax_model.msgpack"
    length = 2**30
    body = b"\x93" + pack([length // 4]) + pack("float32") + b"\xc6" + length.to_bytes(4)
    head = b"\xc9" + (len(body) + length).to_bytes(4) + b"\x01" + body
    with file.open("wb") as handle:
        handle.write(b"\x84")
        for name in "abcd":
            handle.write(pack(name) + head)
            handle.seek(length, 1)
        handle.truncate()
    start = time.perf_counter()
    tracemalloc.start()
    tensors = read_flax(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [t.nbytes for t in tensors.values()] == [length] * 4
    assert peak < 2**20
    assert time.perf_counter() - start < 1


def test_memory_is_bounded(tmp_path):
    """A kilobyte for each tensor, however long its name."""
    file = tmp_path / "flax_model.msgpack"
    scalar = Raw(b"\xd8\x01\x93\x90\xa7float32\xc4\x04" + X[:1].tobytes())
    tree = {f"{i:031}": scalar for i in range(2000)}
    for _ in range(9):
        tree = {"x" * 31: tree}
    file.write_bytes(pack(tree))
    tracemalloc.start()
    assert len(read_flax(file)) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 1024


@pytest.mark.parametrize("case", ["bare_in_chunks", "causal_lm_tied"])
def test_damage_is_found_or_harmless(case, tmp_path):
    data = (RECORDED / case / "flax_model.msgpack").read_bytes()
    original = read_flax(RECORDED / case / "flax_model.msgpack")
    spans = [span for tensor in original.values() for span in tensor.spans]
    is_header = np.ones(len(data), bool)
    for start, size in spans:
        is_header[start : start + size] = False
    places = np.flatnonzero(is_header)
    rng = np.random.default_rng(0)
    file = tmp_path / "flax_model.msgpack"
    num_refused = 0
    for _ in range(300):
        file.write_bytes(damaged(data, places, rng))
        start = time.perf_counter()
        try:
            tensors = read_flax(file)
        except eb.CheckpointError:
            num_refused += 1
        else:
            for name, tensor in tensors.items():
                assert tensor.load().shape == tensor.shape
                assert name not in original or tensor.shape == original[name].shape
        assert time.perf_counter() - start < 1
    assert 100 < num_refused < 300


def damaged(data, places, rng):
    """`data` with a few changes, at `places`."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 3)):
        i, j = (int(rng.choice(places)) % max(len(data), 1) for _ in range(2))
        match rng.integers(6):
            case 0:
                data[i : i + 1] = bytes([data[i] ^ 1 << int(rng.integers(8))])
            case 1:
                data[i] = (data[i] + int(rng.choice([-1, 1]))) % 256
            case 2:
                data[i] = int(rng.choice([0, 0x80, 0xC0, 0xC1, 0xDF, 0xFF]))
            case 3:
                del data[i:]
            case 4:
                del data[i : i + int(rng.integers(1, 9))]
            case 5:
                data[i:i] = data[j : j + int(rng.integers(1, 300))]
        if not data:
            break
    return bytes(data)


def test_safetensors_that_flax_saved(tmp_path):
    """As `save_pretrained(safe_serialization=True)` wrote them."""
    case = "question_answering"
    params = recorded(case, "params").items()
    tensors = {name.replace("/", "."): value for name, value in params}
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, file, {"format": "flax"})
    (tmp_path / "config.json").write_text((RECORDED / case / "config.json").read_text())
    load = eb.BartForQuestionAnswering.from_pretrained
    assert_same(load(tmp_path), load(RECORDED / case))
