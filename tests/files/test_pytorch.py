"""Files that `torch.save` wrote, and those that only look so."""

import collections
import copyreg
import functools
import importlib
import io
import json
import math
import os
import pickle
import struct
import zipfile

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from oracle import CLASSES, random_config, random_model

import eqx_bart as eb
from eqx_bart.files.pytorch import read_pytorch


DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
]

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(obj, file, is_zip, protocol=2):
    torch.save(obj, file, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)


def refused(file, message):
    return pytest.raises(eb.CheckpointError, match=rf"(?s)^{file} .*(?:{message})")


def assert_same_bits(ours, theirs):
    assert ours.shape == tuple(theirs.shape)
    assert f"torch.{ours.dtype.name}" == str(theirs.dtype)
    theirs = torch.cat([theirs.detach().flatten()]).view(torch.uint8).numpy()
    assert np.array_equal(np.ascontiguousarray(ours).reshape(-1).view(np.uint8), theirs)


# --- What torch.save writes is read.


def random_tensor(rng):
    dtype = DTYPES[rng.integers(len(DTYPES))]
    shape = [int(n) for n in rng.integers(0 if rng.integers(8) == 0 else 1, 6, 4)]
    shape = shape[: rng.integers(5)]
    bits = rng.integers(256, size=max(1, math.prod(shape)) * dtype.itemsize, dtype="u1")
    bits = bits % 2 if dtype is torch.bool else bits
    return torch.from_numpy(bits).view(dtype)[: math.prod(shape)].reshape(shape).clone()


def random_view(rng, tensor):
    """A part of `tensor`, in the same memory."""
    for _ in range(rng.integers(1, 4)):
        if tensor.ndim == 0:
            return tensor[None]
        i, j = (int(n) for n in rng.integers(tensor.ndim, size=2))
        kind = rng.integers(4)
        length = tensor.shape[i]
        if kind == 0:
            tensor = tensor.transpose(i, j)
        elif kind == 1 and length:
            tensor = tensor.select(i, int(rng.integers(length)))
        elif kind == 2:
            start = int(rng.integers(length + 1))
            tensor = tensor.movedim(i, 0)[start :: int(rng.integers(1, 4))].movedim(0, i)
        else:
            tensor = tensor.unsqueeze(i)
    return tensor


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_random_tensors(is_zip, protocol, tmp_path):
    rng = np.random.default_rng(protocol)
    file = tmp_path / "x.bin"
    for mapping in (dict, collections.OrderedDict):
        tensors = mapping()
        for i in range(60):
            tensors[f"{i}"] = tensor = random_tensor(rng)
            if rng.integers(2):
                tensors[f"{i}.view"] = random_view(rng, tensor)
            if rng.integers(4) == 0:
                tensors[f"{i}.copy"] = tensor
            if rng.integers(4) == 0 and tensor.is_floating_point():
                tensors[f"{i}.parameter"] = torch.nn.Parameter(tensor)
        save(tensors, file, is_zip, protocol)
        ours, theirs = read_pytorch(file), torch.load(file, weights_only=False)
        assert list(ours) == list(theirs) == list(tensors)
        for name, tensor in ours.items():
            assert_same_bits(tensor.load(), theirs[name])
            assert tensor.shape == tuple(theirs[name].shape)
            if name.endswith(".copy"):
                assert tensor == ours[name.removesuffix(".copy")]


@FORMATS
def test_only_what_a_tensor_uses_is_read(is_zip, tmp_path):
    matrix = torch.arange(7 * 1000.0).view(7, 1000)
    tensors = {"row": matrix[3], "column": matrix[2:5, 4], "whole": matrix.T}
    save(tensors, tmp_path / "x.bin", is_zip)
    ours = read_pytorch(tmp_path / "x.bin")
    sizes = {name: sum(size for _, size in x.spans) for name, x in ours.items()}
    assert sizes == {"row": 4 * 1000, "column": 4 * 2001, "whole": 4 * 7000}


@FORMATS
def test_a_state_dict_with_metadata(is_zip, tmp_path):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    state = layer.state_dict()
    assert state._metadata
    save(state, tmp_path / "x.bin", is_zip)
    ours = read_pytorch(tmp_path / "x.bin")
    assert ours.keys() == state.keys()
    for name, tensor in ours.items():
        assert_same_bits(tensor.load(), state[name])
    save({}, tmp_path / "x.bin", is_zip)
    assert read_pytorch(tmp_path / "x.bin") == {}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_models_of_hf(name, tied, tmp_path):
    rng = np.random.default_rng(0)
    config = random_config(rng)
    config.tie_word_embeddings = tied
    model = random_model(name, config, 0, torch.float32)
    model.save_pretrained(tmp_path)
    expected = CLASSES[name].from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    state = model.state_dict()
    save(state, tmp_path / "pytorch_model.bin", is_zip=tied)
    assert_same_model(CLASSES[name].from_pretrained(tmp_path), expected)
    (tmp_path / "pytorch_model.bin").unlink()

    files = {key: f"pytorch_model-0000{rng.integers(3)}-of-00003.bin" for key in state}
    for i, file in enumerate(set(files.values())):
        part = {key: tensor for key, tensor in state.items() if files[key] == file}
        save(part, tmp_path / file, is_zip=i > 0)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert_same_model(CLASSES[name].from_pretrained(tmp_path), expected)


def assert_same_model(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        assert np.array_equal(a, b)
        assert not eqx.is_array(b) or a.dtype == b.dtype


# --- What is refused.


class Call:
    """Is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.mkdir, rf"{os.name}\.mkdir"),
        (eval, r"(builtins|__builtin__)\.eval"),
        (exec, r"(builtins|__builtin__)\.exec"),
        (getattr, r"(builtins|__builtin__)\.getattr"),
        (copyreg._reconstructor, r"copy_?reg\._reconstructor"),
        (functools.partial, r"functools\.partial"),
        (importlib.import_module, r"importlib\.import_module"),
        (np._core.multiarray._reconstruct, r"numpy\._core\.multiarray\._reconstruct"),
        (torch.load, r"torch\.serialization\.load"),
        (torch.hub.load, r"torch\.hub\.load"),
        (torch._utils._rebuild_tensor_v3, r"torch\._utils\._rebuild_tensor_v3"),
    ],
)
def test_calls_are_refused_by_name(function, name, protocol, is_zip, tmp_path):
    made = tmp_path / "made"
    call = Call(function, str(made))
    for obj in ({"x": call}, {"x": torch.ones(2), "y": [({"z": call},)]}, call):
        save(obj, tmp_path / "x.bin", is_zip, protocol)
        with refused(tmp_path / "x.bin", f"the pickle calls for {name}, which no"):
            read_pytorch(tmp_path / "x.bin")
    assert not made.exists()


@FORMATS
@pytest.mark.parametrize(
    ("obj", "name"),
    [
        (torch.nn.Linear(2, 3), "torch.nn.modules.linear.Linear"),
        (torch.ones(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.ones(2).to(torch.float8_e5m2), "torch._utils._rebuild_tensor_v3"),
        (torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (np.float64(1), "numpy._core.multiarray.scalar"),
        ({1, 2}, r"(builtins|__builtin__)\.set"),
        (torch.device("cpu"), "torch.device"),
    ],
)
def test_other_objects_are_refused_by_name(obj, name, is_zip, tmp_path):
    save({"x": obj}, tmp_path / "x.bin", is_zip)
    with refused(tmp_path / "x.bin", f"the pickle calls for {name}, which no"):
        read_pytorch(tmp_path / "x.bin")


@FORMATS
@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"x": torch.ones(2), "step": 3}, "step: it is no tensor, but of type int"),
        ({"weights": {"x": torch.ones(2)}}, "weights: it is no tensor.* dict"),
        ({"model": {"x": {"y": torch.ones(2)}}}, "x: it is no tensor.* dict"),
        ({"x": torch.ones(2)._typed_storage()}, "x: it is no tensor"),
        ({"x": b"a" * 300}, "_codecs.encode"),
        ({"x": 1.5}, "type float"),
        ({"x": None}, "type NoneType"),
        ({"x": collections.OrderedDict}, "type function"),
        ({"x": 2**70}, "type int"),
        ({3: torch.ones(2)}, "3: it is no name, but an integer"),
        ({2.5: torch.ones(2)}, "keys are not all strings or integers"),
        ({(): torch.ones(2)}, "keys are not all strings"),
        ([torch.ones(2)], "no dict of tensors, but a list"),
        (torch.ones(2), "no dict of tensors, but a _Tensor"),
        ({"x": torch.ones(1).expand(3)}, r"x: the shape \[3\] with strides \(0,\) is more"),
        ({"x": torch.ones(2, 1).expand(2, 9)}, r"x: the shape \[2, 9\]"),
        ({"x": torch.ones(2) * 1j}, "ComplexFloatStorage"),
        ({"x" * 2**21: torch.ones(2)}, "1048576 bytes|but only 1048429 remain"),
        (Call(collections.OrderedDict, [("x", torch.ones(2))]), "takes 0 positional"),
        ({"x": Call(collections.OrderedDict)}, "x: it is no tensor, but of type dict"),
    ],
)
def test_what_holds_more_than_tensors(obj, message, is_zip, tmp_path):
    save(obj, tmp_path / "x.bin", is_zip)
    with refused(tmp_path / "x.bin", message):
        read_pytorch(tmp_path / "x.bin")


@FORMATS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (4,), (1,)), None),
        ((4, (0, 9), (7, 1)), None),
        ((2, (2, 1), (1, 2**70)), None),
        ((0, (5,), (1,)), "5 elements from the one at 0 on, of a storage of 4"),
        ((3, (2,), (1,)), "2 elements from the one at 3 on"),
        ((2**63, (1,), (1,)), "1 elements from"),
        ((0, (2, 2), (4, 1)), "6 elements"),
        ((0, (2, 2), (2**62, 1)), "elements from"),
        ((3, (4,), (-1,)), "describes a tensor as torch.save never does"),
        ((-1, (4,), (1,)), "describes a tensor"),
        ((0, (-4,), (1,)), "describes a tensor"),
        ((0, (4,), ()), "describes a tensor"),
        ((0, (), (1,)), "describes a tensor"),
        ((0, [4], [1]), "describes a tensor"),
        ((0, 4, 1), "describes a tensor"),
        ((0, (4.0,), (1,)), "describes a tensor"),
        ((0, (True,), (1,)), "describes a tensor"),
        ((0, ("4",), (1,)), "describes a tensor"),
        ((0, None, None), "describes a tensor"),
        ((None, (4,), (1,)), "describes a tensor"),
        ((0, (1,) * 65, (1,) * 65), "describes a tensor"),
        ((0, (0, 2**40, 2**40), (0, 0, 0)), "describes a tensor"),
        ((0, (2**40, 2**40), (0, 0)), "describes a tensor"),
        ((0, (2, 4), (0, 1)), "is more than the 4 elements stored"),
        ((0, (2**30,), (0,)), "is more than the 1 elements stored"),
        ((0, (4,)), "missing 1 required positional argument"),
        ((0, (4,), (1,), False, None, {"neg": True}), "yet to be conjugated or negated"),
        ((0, (4,), (1,), False, None, None, None), "positional arguments"),
    ],
)
def test_tensors_beyond_their_storages(arguments, message, is_zip, tmp_path):
    storage = torch.arange(4.0)._typed_storage()
    file = tmp_path / "x.bin"
    hooks = (False, None) if len(arguments) <= 3 else ()
    call = Call(torch._utils._rebuild_tensor_v2, storage, *arguments, *hooks)
    save({"x": call}, file, is_zip)
    if message is None:
        offset, shape, _ = arguments
        expected = torch.arange(4.0)[offset:].reshape(shape)
        assert_same_bits(read_pytorch(file)["x"].load(), expected)
    else:
        with refused(file, message):
            read_pytorch(file)


@FORMATS
def test_tensors_without_hooks(is_zip, tmp_path):
    storage = torch.arange(4.0)._typed_storage()
    file = tmp_path / "x.bin"
    save({"x": Call(torch._utils._rebuild_tensor, storage, 1, (3,), (1,))}, file, is_zip)
    assert_same_bits(read_pytorch(file)["x"].load(), torch.arange(1.0, 4.0))


def test_a_serialization_id_that_is_no_text(tmp_path):
    file = tmp_path / "x.bin"
    torch.save({"x": torch.ones(2)}, file)
    with zipfile.ZipFile(file) as archive:
        number = archive.read("x/.data/serialization_id")
    file.write_bytes(file.read_bytes().replace(number, b"\xe0" * len(number)))
    with pytest.raises(UnicodeDecodeError):
        torch.load(file)
    with refused(file, "can't decode byte 0xe0"):
        read_pytorch(file)


def test_a_tensor_that_is_yet_to_be_negated(tmp_path):
    tensor = torch.complex(torch.ones(2), torch.ones(2)).conj().imag
    assert tensor.is_neg()
    with refused(tmp_path / "x.bin", ""):
        save({"x": tensor}, tmp_path / "x.bin", is_zip=True)
        read_pytorch(tmp_path / "x.bin")


def write_pickle(file, pickled, is_zip, system=None, keys=(), rest=b""):
    """A file in which `pickled` is what `torch.save` would have pickled."""
    if is_zip:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", pickled)
    else:
        system = {"little_endian": True} if system is None else system
        start = (0x1950A86A20F9469CFC6C, 1001, system)
        before = b"".join(pickle.dumps(x, 2) for x in start)
        file.write_bytes(before + pickled + pickle.dumps(list(keys), 2) + rest)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


DEEP = 200_000
STORAGE = b"ctorch\nFloatStorage\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
LAUGHS = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(200))


@FORMATS
@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"", "does not end|not end"),
        (b".", "more from its stack than there is"),
        (b"0.", "opcode b'0'"),
        (b"\xff.", r"opcode b'\\xff'"),
        (b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "calls for os.system, which no"),
        (b"cnt\nsystem\n)R.", "calls for nt.system"),
        (b"cposix\nsystem\n.", "calls for posix.system"),
        (b"c__main__\nx y.z\n.", "calls for __main__.x y.z"),
        (b"c\n\n.", "calls for ., which"),
        (b"ccollections\nOrderedDict.copy\n.", "calls for collections.OrderedDict.copy"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "calls for os.system"),
        (b"NN\x93.", "calls for what has no name"),
        (b")K\x01\x93.", "calls for what has no name"),
        (b"(cos\nsystem\no.", "calls for os.system"),
        (b"(ios\nsystem\n.", "opcode b'i'"),
        (b"ccollections\nOrderedDict\n)\x81.", r"opcode b'\\x81'"),
        (b"ccollections\nOrderedDict\n)}\x92.", r"opcode b'\\x92'"),
        (b"\x82\x01.", r"opcode b'\\x82'"),
        (b"P1\n.", "opcode b'P'"),
        (b"S'\\q'\n.", "opcode b'S'"),
        (TENSOR + b"N\x85\x85R.", "required positional argument"),
        (b"N)R.", "calls what cannot be called"),
        (STORAGE + b")R.", "calls what cannot be called"),
        (b"ccollections\nOrderedDict\n]R.", "calls what cannot be called"),
        (b"ccollections\nOrderedDict\nR.", "more from its stack"),
        (STORAGE + b"}b.", "takes a Float32DType for a dict"),
        (b"ccollections\nOrderedDict\n}b.", "takes a function for a dict"),
        (b"]}b.", "takes a list for a dict"),
        (b"}b.", "takes a NoneType for a dict"),
        (b"N\x85Q.", "required positional argument"),
        (b"NQ.", "after \\* must be an iterable"),
        (b"}NNs.", "keys are not all strings"),
        (b"}(" + text(b"x") + b"u.", "is shorter"),
        (b"}u.", "a mark that it has not set"),
        (b"}(}s.", "more from its stack"),
        (b"]N(a.", "more from its stack"),
        (b"}Na.", "takes a dict for a list"),
        (b"]NNs.", "keys are not all strings"),
        (b"]" + text(b"x") + b"Ns.", "takes a list for a dict"),
        (b"h\x00.", "recalls 0"),
        (b"j\xff\xff\xff\xff.", "recalls 4294967295"),
        (b"q\x00.", "more from its stack"),
        (b"X\xff\xff\xff\xffx.", "expected 4294967295 bytes"),
        (b"X\x01\x00\x00\x00\xff.", "can't decode byte"),
        (b"\x8d" + b"\xff" * 7 + b"\x7fx.", r"opcode b'\\x8d'"),
        (b"\x8e" + b"\xff" * 7 + b"\x7fx.", r"opcode b'\\x8e'"),
        (b"\x8b\xff\xff\xff\x7f.", r"opcode b'\\x8b'"),
        (b"\x95" + b"\xff" * 8 + b"N.", "no dict of tensors, but a NoneType"),
        (b"\x8a\xff\x01.", "not enough data|expected 255"),
        (b"L" + b"9" * 10_000 + b"L\n.", "opcode b'L'"),
        (b")q\x00" + LAUGHS + b".", "but a tuple"),
        (b")q\x00" + LAUGHS + b"q\xff}h\xffNs.", "keys are not all strings"),
        (b")q\x00" + LAUGHS + b"Q.", "describes a storage|required positional"),
        (b")q\x00" + LAUGHS + TENSOR + b"(" + b"h\xc8" * 6 + b"tR.", "describes a tensor"),
        (b"(" + text(b"storage") + b"N" + text(b"0") + b"NK\x01tQ.", "describes a storage"),
        (b"(" + text(b"storage") + STORAGE + b"K\x00NK\x01tQ.", "describes a storage"),
        (b"(" + text(b"storage") + STORAGE + text(b"0") + b"NNtQ.", "describes a storage"),
        (b"(" + text(b"module") + STORAGE + text(b"0") + b"NK\x01tQ.", "describes a stor"),
        (
            b"(" + text(b"storage") + STORAGE + text(b"0") + b"NK\x01(NNK\x01ttQ.",
            "describes a storage",
        ),
        (
            b"(" + text(b"storage") + STORAGE + text(b"0") + b"NJ\xff\xff\xff\xfftQ.",
            "describes a storage",
        ),
        (
            b"".join(
                b"(" + text(b"storage") + STORAGE + text(b"0") + b"NK" + n + b"tQ"
                for n in (b"\x01", b"\x02")
            ),
            "two descriptions of storage '0'",
        ),
    ],
)
def test_pickles_that_are_no_checkpoint(pickled, message, is_zip, tmp_path):
    write_pickle(tmp_path / "x.bin", pickled, is_zip)
    with refused(tmp_path / "x.bin", message):
        read_pytorch(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"}" + text(b"x") + b"]" * DEEP + b"a" * (DEEP - 1) + b"s.", "x: .* type list"),
        (b"})" + b"\x85" * DEEP + b"Ns.", "keys are not all strings"),
        (b")" + b"\x85" * DEEP + b"Q.", "required positional argument"),
    ],
    ids=["list", "key", "persistent id"],
)
def test_deep_pickles(pickled, message, tmp_path):
    write_pickle(tmp_path / "x.bin", pickled, is_zip=True)
    with refused(tmp_path / "x.bin", message):
        read_pytorch(tmp_path / "x.bin")


@FORMATS
def test_what_is_no_trouble(is_zip, tmp_path):
    write_pickle(tmp_path / "x.bin", b"}r\xff\xff\xff\xff.", is_zip)
    assert read_pytorch(tmp_path / "x.bin") == {}
    write_pickle(tmp_path / "x.bin", b"(" * 10**4 + b"}.", is_zip)
    assert read_pytorch(tmp_path / "x.bin") == {}


TENSORS = {
    "a": torch.arange(12.0).view(3, 4).T,
    "b": torch.arange(6, dtype=torch.bfloat16),
    "c": torch.tensor(3),
    "d": torch.ones(5, dtype=torch.bool)[1:],
}


@pytest.mark.parametrize(
    ("system", "keys", "rest", "message"),
    [
        ({"little_endian": False}, (), b"", "not little-endian"),
        ({}, (), b"", "not little-endian"),
        ([], (), b"", "does not begin as torch.save does"),
        (None, (), b"", "x: there is no storage '7'"),
        (None, ("8",), b"", "lists a storage that no tensor has"),
        (None, (7,), b"", "lists a storage that no tensor has"),
        (None, ("7",), b"", "the storage '7' has 0 bytes, and 8 by the pickle"),
        (None, ("7",), struct.pack("<q2f", 3, 1, 2), "has 12 bytes, and 8 by"),
        (None, ("7",), struct.pack("<q2f", -1, 1, 2), "bytes, and 8 by"),
        (None, ("7",), struct.pack("<qf", 2, 1), "ends before its storages do"),
        (None, ("7", "7"), struct.pack("<q2f", 2, 1, 2), "'7' has 0 bytes"),
        (None, ("7",), struct.pack("<q2f", 2, 1, 2), None),
    ],
)
def test_legacy_files(system, keys, rest, message, tmp_path):
    storage = b"(" + text(b"storage") + STORAGE + text(b"7") + text(b"cpu") + b"K\x02NtQ"
    tensor = TENSOR + b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89}tR"
    pickled = b"\x80\x02}" + text(b"x") + tensor + b"s."
    file = tmp_path / "x.bin"
    write_pickle(file, pickled, False, system, keys, rest)
    if message is None:
        assert_same_bits(read_pytorch(file)["x"].load(), torch.tensor([1.0, 2.0]))
        assert torch.equal(torch.load(file)["x"], torch.tensor([1.0, 2.0]))
    else:
        with refused(file, message):
            read_pytorch(file)


@pytest.mark.parametrize("first", range(6))
def test_legacy_views(first, tmp_path):
    """Views of storages, which only the first versions of PyTorch had."""
    view = b"(" + text(b"8") + b"K%cK%ct" % (first, 5 - first)
    storage = b"(" + text(b"storage") + STORAGE + text(b"7") + text(b"cpu") + b"K\x05"
    tensor = TENSOR + b"(" + storage + view + b"tQK\x01K\x02\x85K\x02\x85\x89}tR"
    pickled = b"\x80\x02}" + text(b"x") + tensor + b"s."
    rest = struct.pack("<q5f", 5, *range(5))
    file = tmp_path / "x.bin"
    write_pickle(file, pickled, is_zip=False, keys=["7"], rest=rest)
    if first < 2:
        assert_same_bits(read_pytorch(file)["x"].load(), torch.load(file)["x"])
    else:
        with refused(file, f"3 elements from the one at {first + 1} on"):
            read_pytorch(file)


def rezip(file, change, compressed=None):
    """Writes a zip file anew, after `change` of the dict of what is in it."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            method = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            archive.writestr(name, content, method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update({"x/byteorder": b"big"}), "not little-endian"),
        (lambda e: e.update({"x/data/0": e["x/data/0"][:-4]}), "'0' has 44 bytes, and 48"),
        (lambda e: e.update({"x/data/1": bytes(99)}), "'1' has 99 bytes, and 12 by the"),
        (lambda e: e.pop("x/data/2"), "it has no x/data/2"),
        (lambda e: e.pop("x/data.pkl"), "it has no x/data.pkl"),
        (lambda e: e.clear() or e.update({"y": b""}), "it has no y/data.pkl"),
        (
            lambda e: e.update(
                {"x/data.pkl": e["x/data.pkl"].replace(text(b"0"), text(b"../x"))}
            ),
            r"it has no x/data/\.\./x",
        ),
        (lambda e: e.update({"x/data.pkl": bytes(2**20 + 1)}), "more than 1048576 bytes"),
        (lambda e: e.update({"x/byteorder": bytes(2**20 + 1)}), "more than 1048576 bytes"),
        (lambda e: e.update({"y" * 60_000 + f"{i}": b"" for i in range(18)}), "more than"),
    ],
)
def test_zip_files(change, message, tmp_path):
    file = tmp_path / "x.bin"
    save(TENSORS, file, is_zip=True)
    rezip(file, lambda _: None)
    for name, tensor in read_pytorch(file).items():
        assert_same_bits(tensor.load(), TENSORS[name])
    rezip(file, change)
    with refused(file, message):
        read_pytorch(file)


ZIP64 = b"\1\0\x08\0" + b"\xff" * 8  # an offset of 2**64 - 1


@pytest.mark.parametrize(
    ("at", "values", "extra", "message"),
    [
        (6, struct.pack("<H", 99), b"", "zip file version 9.9"),
        (20, struct.pack("<II", 2**31, 2**31), b"", "it ends before x/data/0 does"),
        (20, struct.pack("<II", 48, 49), b"", "x/data/0 is compressed"),
        (42, struct.pack("<I", 5), b"", "x/data/0 is not where the table of contents"),
        (42, struct.pack("<I", 10**6), b"", "x/data/0 is not where the table of contents"),
        (42, None, b"", "x/data/0 is not where the table of contents"),
        (42, b"\xff" * 4, ZIP64, "offset-sized integer"),
        (42, b"\xff" * 4, ZIP64[:-1] + b"\x7f", "Invalid argument"),
        (28, b"\xff" * 2, b"", "it has no x/data/0"),
    ],
)
def test_a_wrong_table_of_contents(at, values, extra, message, tmp_path):
    file = tmp_path / "x.bin"
    save(TENSORS, file, is_zip=True)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.extra = extra if name == "x/data/0" else b""
            archive.writestr(entry, content)
        archive.comment = b"PK\3\4"  # what a header begins with
    data = bytearray(file.read_bytes())
    at += data.rindex(b"x/data/0") - 46
    values = struct.pack("<I", len(data) - 4) if values is None else values
    data[at : at + len(values)] = values
    file.write_bytes(data)
    with refused(file, message):
        read_pytorch(file)


def test_compressed_entries(tmp_path):
    file = tmp_path / "x.bin"
    for name in ("byteorder", "data.pkl", "data/0"):
        save({"x": torch.zeros(10**6)}, file, is_zip=True)
        rezip(file, lambda _: None, compressed=f"x/{name}")
        with refused(file, f"x/{name} is compressed, which torch.save never does"):
            read_pytorch(file)


@FORMATS
def test_truncated_files(is_zip, tmp_path):
    file = tmp_path / "x.bin"
    save(TENSORS, file, is_zip)
    whole = file.read_bytes()
    for size in np.random.default_rng(0).integers(len(whole), size=50):
        file.write_bytes(whole[:size])
        with refused(file, ""):
            read_pytorch(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"x" * 257 + b"ustar\x0000" + bytes(1000), "tar file of PyTorch 0.1"),
        (b"<!DOCTYPE html><html></html>", "opcode b'<'"),
        (b"", "the pickle does not end"),
        (b"PK\3\4" + bytes(100), "not a zip file"),
        (b"PK\3\4PK\5\6" + bytes(18), "it has no /data.pkl"),
        (struct.pack("<Q", 2) + b"{}", "opcode"),
        (pickle.dumps({"x": 1}, 2), "the pickle does not end"),
        (b"".join(pickle.dumps(i, 2) for i in range(5)), "does not begin as torch.save"),
    ],
)
def test_other_files(content, message, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with refused(tmp_path / "pytorch_model.bin", message):
        read_pytorch(tmp_path / "pytorch_model.bin")
    with pytest.raises(eb.CheckpointError, match=r"x\.bin cannot be read.* No such file"):
        read_pytorch(tmp_path / "x.bin")


def mutant(rng, whole):
    """`whole`, damaged in one to three places."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        a, b = sorted(int(i) for i in rng.integers(len(data), size=2))
        kind = rng.integers(5)
        if kind == 0:
            data[a] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[a] = int(rng.integers(256))
        elif kind == 2:
            del data[a : a + int(rng.integers(1, 9))]
        elif kind == 3:
            data[a:a] = data[b : b + int(rng.integers(1, 30))]
        elif rng.integers(8) == 0:
            del data[b:]
        else:
            data[a : a + 8] = data[b : b + 8]
    return bytes(data)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_damaged_files(protocol, is_zip, tmp_path):
    """Whatever is damaged: an error, or what PyTorch reads, if it does."""
    rng = np.random.default_rng(protocol)
    buffer = io.BytesIO()
    save(TENSORS, buffer, is_zip, protocol)
    read = 0
    for _ in range(150):
        data = mutant(rng, buffer.getvalue())
        (tmp_path / "x.bin").write_bytes(data)
        try:
            ours = read_pytorch(tmp_path / "x.bin")
        except eb.CheckpointError:
            continue
        arrays = {name: tensor.load() for name, tensor in ours.items()}
        try:
            theirs = torch.load(io.BytesIO(data), weights_only=False)
        except Exception:  # noqa: BLE001, S112
            continue
        assert arrays.keys() == theirs.keys()
        for name, array in arrays.items():
            assert_same_bits(array, theirs[name])
        read += 1
    assert read
