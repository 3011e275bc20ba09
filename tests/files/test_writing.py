"""Saving: shards, what HF makes of them, and that no crash loses a checkpoint."""

import ast
import contextlib
import errno
import inspect
import itertools
import json
import os
import pathlib
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings

import equinox as eqx
import huggingface_hub.serialization._base as hub
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from held import Held, held
from oracle import assert_same, CLASSES, random_config, random_model

import eqx_bart as eb
from eqx_bart.files import writing
from eqx_bart.files.json_files import write_json
from eqx_bart.files.safetensors import write_safetensors
from eqx_bart.files.writing import num_bytes, replacing, Shards


INDEX = "model.safetensors.index.json"
OTHERS = {"tokenizer.json": b"{}", "run.log": b"loss 3\n", "pytorch_model.bin": b"old"}


def save(directory, tensors, jsons, max_shard_size):
    """What `save_pretrained` does with a model's tensors and configs."""
    with replacing(directory) as new:
        Shards.of(held(tensors), max_shard_size).write(new, num_parameters=0)
        for name, values in jsons.items():
            write_json(new, name, values)


def contents(directory):
    """All that is in `directory`, by name; nothing if it is not there."""
    if not directory.is_dir():
        return {}
    return {file.name: content(file) for file in directory.iterdir()}


def content(path):
    if path.is_symlink():
        return path.readlink()
    return contents(path) if path.is_dir() else path.read_bytes()


def hidden(directory):
    """What saves have left in and beside `directory`."""
    places = [p for p in (directory, directory.parent) if p.is_dir()]
    return [
        f for p in places for f in p.iterdir() if f.name.startswith(f".{directory.name}.")
    ]


def add_others(directory):
    for name, data in OTHERS.items():
        (directory / name).write_bytes(data)
    (directory / "link").symlink_to("run.log")
    (directory / "dangling").symlink_to("../nowhere")


@pytest.fixture(autouse=True)
def synced(monkeypatch):
    """The inodes that have been synchronised with the disk, which in truth takes long."""
    inodes = set()
    monkeypatch.setattr(os, "fsync", lambda file: inodes.add(os.fstat(file).st_ino))
    return inodes


@pytest.fixture
def model(config, getkey):
    model = eb.BartForConditionalGeneration(config, key=getkey())
    return eqx.nn.inference_mode(model)


@pytest.fixture
def other(config, getkey):
    """Another model with another config."""
    config = eb.BartConfig.from_dict(config.to_dict() | {"scale_embedding": True})
    return eqx.nn.inference_mode(eb.BartModel(config, key=getkey()))


# Shards, and what HF makes of them.


@pytest.mark.parametrize("name", CLASSES)
def test_hf_loads_shards(name, tmp_path):
    rng = np.random.default_rng(list(CLASSES).index(name))
    config = random_config(rng)
    theirs = random_model(name, config, 0, torch.float32)
    sizes = [4 * t.numel() for t in theirs.state_dict().values()]
    limit = int(rng.integers(max(sizes) // 2, sum(sizes) // 3))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    ours = CLASSES[name].from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size=limit)

    index, expected = (
        json.loads((tmp_path / who / INDEX).read_text()) for who in ("ours", "theirs")
    )
    assert index["metadata"] == expected["metadata"]
    assert index["weight_map"].keys() == expected["weight_map"].keys()
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert count > 1
    assert files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    total = 0
    for file in files:
        tensors = safetensors.numpy.load_file(tmp_path / "ours" / file)
        assert set(tensors) == {n for n, f in index["weight_map"].items() if f == file}
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= limit or len(tensors) == 1
        total += size
    assert total == index["metadata"]["total_size"]
    jsons = {f for f in contents(tmp_path / "theirs") if f.endswith(".json")}
    assert contents(tmp_path / "ours").keys() == {*files, *jsons}

    assert_same(CLASSES[name].from_pretrained(tmp_path / "ours"), ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, report = type(theirs).from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
    assert not any(
        report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    expected = theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_bytes_are_those_of_the_library(dtype, tmp_path):
    rng = np.random.default_rng()
    tensors = {
        f"{i}.é": rng.normal(size=rng.integers(0, 5, rng.integers(4))).astype(dtype).T
        for i in range(9)
    }
    write_safetensors(tmp_path / "ours", held(tensors))
    tensors = {name: tensor.copy(order="C") for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_dtypes_together(tmp_path):
    rng = np.random.default_rng()
    dtypes = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"]
    tensors = {
        d: np.asarray(100 * rng.normal(size=(3, 5))).astype(d).T for d in dtypes[::-1]
    }
    write_safetensors(tmp_path / "file", held(tensors))
    loaded = safetensors.numpy.load_file(tmp_path / "file")
    assert loaded.keys() == tensors.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == tensors[name].dtype
        assert np.array_equal(tensor, tensors[name])
    with pytest.raises(eb.CheckpointError, match="x is complex64, which is none of F64"):
        write_safetensors(tmp_path / "file", held({"x": np.ones(3, np.complex64)}))


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    tensors = {str(i): np.ones((256, 512), np.float32).T for i in range(12)}
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "file", held(tensors))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * tensors["0"].nbytes


def test_sizes():
    rng = np.random.default_rng()
    for unit in ("KB", "MB", "GB", "TB", "kb", "Gb"):
        for number in (rng.integers(1, 1000), round(rng.uniform(1, 1000), 3)):
            for size in (f"{number}{unit}", f" {number} {unit} "):
                assert num_bytes(size) == hub.parse_size_to_int(size)
    assert num_bytes("1.5KiB") == 1536
    assert num_bytes("3GiB") == 3 * 2**30
    assert num_bytes(7) == 7


@pytest.mark.parametrize(
    "size", ["", "5", "GB", "-1GB", "5XB", "nanGB", "1e3MB", "0KB", 0, -3]
)
def test_what_is_no_size(size, model, tmp_path):
    with pytest.raises(ValueError, match=f"'5GB', and more than none; it is {size!r}"):
        model.save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not contents(tmp_path)


# What happens to a directory.


def test_what_was_there(model, other, tmp_path):
    """Whole or in shards, one checkpoint replaces the other, and nothing else."""
    directory = tmp_path / "model"
    directory.mkdir(0o750)
    directory.chmod(0o2750)
    add_others(directory)
    others = contents(directory)
    log = (directory / "run.log").open("a")
    inode = (directory / "run.log").stat().st_ino
    shards = r"model-\d{5}-of-\d{5}\.safetensors"
    for saved, size in [(model, "8KB"), (other, "50GB"), (other, 9_000), (model, "1TB")]:
        saved.save_pretrained(directory, max_shard_size=size)
        assert_same(type(saved).from_pretrained(directory), saved)
        names = contents(directory).keys() - others.keys()
        assert ("generation_config.json" in names) == (saved is model)
        assert (INDEX in names) == any(re.fullmatch(shards, name) for name in names)
        assert (INDEX in names) != ("model.safetensors" in names)
        assert contents(directory).items() >= others.items()
    with log:
        log.write("loss 2\n")
    assert (directory / "run.log").read_bytes() == b"loss 3\nloss 2\n"
    assert (directory / "run.log").stat().st_ino == inode
    assert directory.stat().st_mode & 0o7777 == 0o2750
    assert not hidden(directory)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions(mask, model, tmp_path):
    before = os.umask(mask)
    try:
        model.save_pretrained(tmp_path / "a" / "b", max_shard_size="8KB")
    finally:
        os.umask(before)
    for path in (tmp_path / "a").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask


@pytest.mark.parametrize("kind", ["current", "with directories", "of somebody else"])
@pytest.mark.parametrize("size", ["8KB", "50GB"])
def test_a_directory_that_stays(kind, size, model, other, tmp_path, monkeypatch):
    directory = tmp_path / "model"
    other.save_pretrained(directory, max_shard_size="50GB" if size == "8KB" else "8KB")
    add_others(directory)
    if kind == "current":
        monkeypatch.chdir(directory)
    elif kind == "with directories":
        (directory / "checkpoint-5").mkdir()
        (directory / "checkpoint-5" / "config.json").write_text("{}")
    else:
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    others = contents(directory)
    for name in [n for n in others if writing.CHECKPOINT.pattern.fullmatch(n)]:
        del others[name]
    inode = directory.stat().st_ino
    model.save_pretrained("." if kind == "current" else directory, max_shard_size=size)
    assert directory.stat().st_ino == inode
    assert_same(type(model).from_pretrained(directory), model)
    model.save_pretrained(tmp_path / "fresh", max_shard_size=size)
    assert contents(directory) == others | contents(tmp_path / "fresh")
    assert not hidden(directory)


def test_a_link_to_a_directory(model, other, tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "link"
    link.symlink_to("far/model")
    for saved in (model, other):
        saved.save_pretrained(link)
        assert link.is_symlink()
        assert_same(type(saved).from_pretrained(tmp_path / "far" / "model"), saved)
    assert contents(tmp_path).keys() == {"far", "link"}
    assert contents(tmp_path / "far").keys() == {"model"}


def test_links_to_blobs_are_replaced(model, other, tmp_path):
    """As in the hub's cache, where the blobs belong to other revisions as well."""
    directory, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    other.save_pretrained(directory)
    add_others(directory)
    blobs.mkdir()
    for file in list(directory.iterdir()):
        file.replace(blobs / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    before = contents(blobs)
    model.save_pretrained(directory)
    assert contents(blobs) == before
    assert_same(type(model).from_pretrained(directory), model)
    assert (directory / "run.log").readlink() == pathlib.Path("../../blobs/run.log")


def test_where_it_came_from(model, tmp_path):
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    loaded = type(model).from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "model")
    assert_same(type(model).from_pretrained(tmp_path / "model"), model)


def test_a_file_is_no_directory(model, tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotADirectoryError, match="file"):
        model.save_pretrained(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"text"}


def test_what_changes_during_the_switch_stays(ckpts, tmp_path, monkeypatch):
    directory = tmp_path / "model"
    save(directory, *ckpts["a"])
    add_others(directory)
    exchange = writing._exchange

    def meanwhile(new, target):
        (directory / "late").write_bytes(b"1")
        (directory / "late directory").mkdir()
        (directory / "tokenizer.new").write_bytes(b"2")
        (directory / "tokenizer.new").replace(directory / "tokenizer.json")
        return exchange(new, target)

    monkeypatch.setattr(writing, "_exchange", meanwhile)
    others = {n: c for n, c in contents(directory).items() if n not in ckpts["a files"]}
    save(directory, *ckpts["b"])
    late = {"late": b"1", "late directory": {}, "tokenizer.json": b"2"}
    assert contents(directory) == others | late | ckpts["b files"]
    assert not hidden(directory)


# Crashes and failures.


@pytest.mark.parametrize("stays", [False, True])
def test_what_takes_a_place_is_on_the_disk(stays, ckpts, synced, tmp_path, monkeypatch):
    directory = tmp_path / "model"
    save(directory, *ckpts["b"])
    if stays:
        (directory / "runs").mkdir()
    seen = []
    exchange, replace = writing._exchange, os.replace

    def checked_exchange(new, target):
        assert synced >= {path.stat().st_ino for path in (new, *new.iterdir())}
        seen.extend(file.name for file in new.iterdir())
        return exchange(new, target)

    def checked_replace(source, target):
        if target.parent == directory:
            assert source.stat().st_ino in synced
            seen.append(target.name)
        replace(source, target)

    monkeypatch.setattr(writing, "_exchange", checked_exchange)
    monkeypatch.setattr(os, "replace", checked_replace)
    save(directory, *ckpts["d"])
    old = ckpts["b files"] if stays else {}
    files = ckpts["d files"].items()
    assert sorted(seen) == sorted(name for name, x in files if old.get(name) != x)
    assert (directory if stays else tmp_path).stat().st_ino in synced


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory):
    """Checkpoints as `save` wants them, and the files that it makes of them: `a` and `c`
    whole, `b`, `d` and `e` in shards, all with the same config but `b`."""
    rng = np.random.default_rng()
    found = {}
    for name in "abcde":
        tensors = {str(i): rng.normal(size=rng.integers(5, 9, 2)) for i in range(3)}
        jsons = {"config.json": {"d_model": int(name == "b")}}
        if name != "b":
            jsons["generation_config.json"] = {"num_beams": 4}
        found[name] = (tensors, jsons, 10**9 if name in "ac" else 500)
        directory = tmp_path_factory.mktemp("files") / name
        save(directory, *found[name])
        found[f"{name} files"] = contents(directory)
    return found


@pytest.fixture
def memory():
    """A directory where writing is quick."""
    places = [place for place in ("/dev/shm",) if pathlib.Path(place).is_dir()]  # noqa: S108
    with tempfile.TemporaryDirectory(dir=[*places, None][0]) as path:
        yield pathlib.Path(path)


class Crash(BaseException):
    """Stands for the death of the process: nothing can be done any more."""


class Faults:
    """Has the `at`-th step on files fail.

    - `kind`: `once`, `full` for this and all later ones that need space, or `crash` for
        this and all later ones.
    """

    STEPS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "chmod")
    NEED_SPACE = ("mkdir", "link", "fsync", "open", "write")

    def __init__(self, at, kind):
        self.at, self.kind, self.count = at, kind, 0

    @contextlib.contextmanager
    def __call__(self):
        with pytest.MonkeyPatch.context() as patch:
            for name in self.STEPS:
                patch.setattr(os, name, self.guard(name, getattr(os, name)))
            patch.setattr(writing, "_exchange", self.exchange(writing._exchange))
            patch.setattr(pathlib.Path, "open", self.open(pathlib.Path.open))
            yield

    def guard(self, name, function):
        def guarded(*args, **kwargs):
            self.step(name)
            return function(*args, **kwargs)

        return guarded

    def exchange(self, function):
        guarded = self.guard("exchange", function)

        def exchange(a, b):
            with contextlib.suppress(OSError):
                return guarded(a, b)
            return False

        return exchange

    def step(self, name):
        self.count += 1
        if self.count < self.at:
            return
        if self.kind == "crash":
            raise Crash
        if self.count == self.at or (self.kind == "full" and name in self.NEED_SPACE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, function):
        faults = self

        class File:
            def __init__(self, *args):
                faults.step("open")
                self.file = function(*args)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                self.file.write(data[: len(data) // 2])
                faults.step("write")
                self.file.write(data[len(data) // 2 :])

            def __getattr__(self, name):
                return getattr(self.file, name)

        def open_file(*args):
            return File(*args)

        return open_file

    @property
    def happened(self):
        return self.count >= self.at


# Each with the old checkpoint and the new one, and what else a crash may leave.
CASES = {
    "whole": ("a", "b", set()),
    "the same config": ("a", "c", set()),
    "shards": ("b", "d", set()),
    "no directory": (None, "b", set()),
    "an empty directory": ("", "b", set()),
    "no exchange": ("a", "b", {"absent"}),
    "no links": ("a", "b", set()),
    "no renaming": ("a", "b", {"no config"}),
    "read-only parent": ("a", "b", {"no config"}),
    "directories": ("a", "b", {"no config"}),
    "directories, from shards": ("b", "a", {"no config"}),
    "directories, from shards to shards": ("e", "d", {"no config"}),
    "directories, the same config": ("a", "c", set()),
    "directories, no checkpoint": ("", "b", {"no config"}),
}


@contextlib.contextmanager
def circumstances(case):
    """What the file system cannot do."""

    def cannot(*args, **kwargs):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.MonkeyPatch.context() as patch:
        if case in ("no exchange", "no renaming"):
            patch.setattr(writing, "_exchange", lambda *_: False)
        if case == "no links":
            patch.setattr(os, "link", cannot)
        if case == "no renaming":
            patch.setattr(writing, "_rename", lambda *_: False)
        if case == "read-only parent":
            patch.setattr(os, "access", lambda path, _: path.name != "parent")
        yield


class Trial:
    """A directory with the old checkpoint of a case, and what has become of it."""

    def __init__(self, case, ckpts, place):
        self.case, (self.old, self.new, _) = case, CASES[case]
        self.checkpoint = ckpts[self.new]
        self.directory = place / "parent" / "model"
        self.old_files = ckpts.get(f"{self.old} files", {})
        self.reset()
        self.before = contents(self.directory)
        self.others = {n: c for n, c in self.before.items() if n not in self.old_files}
        self.after = self.others | ckpts[f"{self.new} files"]

    def reset(self):
        shutil.rmtree(self.directory.parent, ignore_errors=True)
        self.directory.parent.mkdir()
        if self.old is None:
            return
        self.directory.mkdir()
        for name, data in self.old_files.items():
            (self.directory / name).write_bytes(data)
        if self.case != "an empty directory":
            add_others(self.directory)
        if self.case.startswith("directories"):
            (self.directory / "runs").mkdir()
            (self.directory / "runs" / "log").write_bytes(b"1")

    def save(self, faults):
        """The error, if saving fails."""
        try:
            with circumstances(self.case), faults():
                save(self.directory, *self.checkpoint)
        except (OSError, Crash) as error:
            return error

    def state(self):
        if not self.directory.exists():
            return "absent"
        found = contents(self.directory)
        found = {n: c for n, c in found.items() if not n.startswith(".model.")}
        if found in (self.before, self.after):
            return "old" if found == self.before else "new"
        assert found.items() >= self.others.items()
        return "a mixture" if "config.json" in found else "no config"


@pytest.mark.parametrize("kind", ["once", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_any_step_may_fail(case, kind, ckpts, memory):
    trial = Trial(case, ckpts, memory)
    for at in itertools.count(1):
        trial.reset()
        faults = Faults(at, kind)
        error = trial.save(faults)
        if error:
            assert trial.state() == ("absent" if trial.old is None else "old"), at
            assert str(trial.directory.parent) in str(error)
            assert not hidden(trial.directory)
        else:
            assert trial.state() == "new", at
        if not faults.happened:
            break
    assert at > 12
    assert not error


@pytest.mark.parametrize("case", CASES)
def test_a_crash_at_any_step(case, ckpts, memory):
    trial = Trial(case, ckpts, memory)
    states = set()
    for at in itertools.count(1):
        trial.reset()
        faults = Faults(at, "crash")
        trial.save(faults)
        state = trial.state()
        states.add(state)
        if state == "absent" and trial.old is not None:
            [stage] = hidden(trial.directory)
            assert contents(stage / "old") == trial.before
        else:
            save(trial.directory, *trial.checkpoint)
            assert trial.state() == "new"
        if not faults.happened:
            break
    assert states == {"absent" if trial.old is None else "old", "new"} | CASES[case][2]


# What other processes do.


def say(what):
    os.write(1, f"{what}\n".encode())


def saving(checkpoint):
    """A function that saves either what `save` takes, or a model."""
    if isinstance(checkpoint[0], dict):
        return lambda directory: save(directory, *checkpoint)
    name, source, size = checkpoint
    model = getattr(eb, name).from_pretrained(source)
    return lambda directory: model.save_pretrained(directory, max_shard_size=size)


def save_in_turn(directory, checkpoints, count, limit=None):
    """Says the id of the process before each time."""
    os.fsync = str  # which takes long; what a killed process wrote is not lost
    saves = [saving(checkpoint) for checkpoint in checkpoints]
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for i in range(count):
        say(os.getpid())
        saves[i % len(saves)](directory)


def save_on_mounts(place, old, new):
    """On a small file system, where one is mounted, and where one is bound to another place
    of the same one. Says for each what is there in the end."""
    for name, *arguments in (
        ("small", "-t", "tmpfs", "-o", "size=24k", "none"),
        ("mounted", "-t", "tmpfs", "-o", "size=1m", "none"),
        ("bound", "--bind", place / "elsewhere"),
    ):
        command = ["mount", *arguments, place / name]
        subprocess.run(command, check=True)
    for directory in (place / "small" / "model", place / "mounted", place / "bound"):
        save(directory, *old)
        try:
            save(directory, *new)
        except OSError as error:
            say(error)
        say({file.name: file.read_bytes() for file in directory.iterdir()})
    say([file.name for file in (place / "small").iterdir()])


FUNCTIONS = (Held, held, save, say, saving, save_in_turn, save_on_mounts)
# Importing all of the package takes long.
BARE = f"""
import sys, types

package = types.ModuleType("eqx_bart")
package.__path__ = {list(eb.__path__)}
sys.modules["eqx_bart"] = package
"""
SERVER = f"""
import os, pickle, resource, subprocess, sys

import eqx_bart as eb
import huggingface_hub.serialization
import numpy as np
from eqx_bart.files.json_files import write_json
from eqx_bart.files.writing import replacing, Shards

{"".join(map(inspect.getsource, FUNCTIONS))}

for line in sys.stdin.buffer:
    function, jobs = pickle.loads(bytes.fromhex(line.decode()))
    processes = []
    for job in jobs:
        if not (process := os.fork()):
            try:
                globals()[function](*job)
            except OSError as error:
                say(error)
                os._exit(1)
            os._exit(0)
        processes.append(process)
    say([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes])
"""


class Saver:
    """A process that forks others."""

    def __init__(self, process):
        self.process = process

    def start(self, function, *jobs):
        """Starts a process for each job, the arguments for `function`."""
        line = pickle.dumps((function.__name__, jobs)).hex().encode() + b"\n"
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def line(self):
        return self.process.stdout.readline().decode().strip()

    def lines(self):
        """What the processes say to the end: at last, their exit statuses."""
        lines = [self.line()]
        while not re.fullmatch(r"\[(-?\d+(, )?)+\]", lines[-1]):
            lines.append(self.line())
        return lines

    def kill(self, rng, at_most):
        """Kills the process at a random moment of one of its first saves."""
        start = time.perf_counter()
        for _ in range(int(rng.integers(2, at_most))):
            process = int(self.line())
        pace = (time.perf_counter() - start) / at_most
        time.sleep(rng.uniform(0, pace))
        os.kill(process, signal.SIGKILL)
        assert self.lines()[-1] == f"[{-signal.SIGKILL}]"


def may_have_a_namespace():
    command = ["unshare", "-rm", "true"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


# Of its own, to mount in.
NAMESPACE = ["unshare", "-rm"] if may_have_a_namespace() else []


@contextlib.contextmanager
def serve(code):
    pipe = subprocess.PIPE
    command = [*NAMESPACE, sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        yield Saver(process)
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def saver():
    with serve(BARE + SERVER) as saver:
        yield saver


@pytest.mark.parametrize("rounds", [20, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pair", ["ab", "ac", "bd"])
def test_a_kill_at_any_moment(pair, rounds, saver, ckpts, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    add_others(directory)
    whole = [contents(directory) | ckpts[f"{name} files"] for name in pair]
    save(directory, *ckpts[pair[0]])
    found = []
    for _ in range(rounds):
        saver.start(save_in_turn, (directory, [ckpts[name] for name in pair], 10**9))
        saver.kill(np.random.default_rng(), at_most=8)
        found.append(contents(directory))
        assert found[-1] in whole
    assert all(checkpoint in found for checkpoint in whole)
    assert hidden(directory)


@pytest.mark.slow
def test_models_and_kills(model, other, tmp_path):
    """As above, with all that `save_pretrained` does."""
    sources = []
    for saved, size in ((model, "8KB"), (other, "50GB")):
        name = type(saved).__name__
        saved.save_pretrained(tmp_path / name)
        sources.append((name, tmp_path / name, size))
    directory, found = tmp_path / "model", []
    with serve(SERVER) as saver:
        for _ in range(200):
            saver.start(save_in_turn, (directory, sources, 10**9))
            saver.kill(np.random.default_rng(), at_most=8)
            settings = json.loads((directory / "config.json").read_text())
            found.append(other if settings["scale_embedding"] else model)
            loaded = type(found[-1]).from_pretrained(directory)
            assert_same(loaded, found[-1])
    assert any(saved is model for saved in found)
    assert any(saved is other for saved in found)


def test_several_at_once(saver, ckpts, tmp_path):
    directory, names = tmp_path / "model", "abcd"
    saver.start(save_in_turn, *((directory, [ckpts[name]], 30) for name in names))
    assert saver.lines()[-1] == "[0, 0, 0, 0]"
    assert contents(directory) in [ckpts[f"{name} files"] for name in names]
    assert not hidden(directory)


@pytest.mark.parametrize("limit", [10, 100, 500])
def test_a_file_that_may_not_grow(limit, saver, ckpts, tmp_path):
    directory = tmp_path / "model"
    save(directory, *ckpts["b"])
    saver.start(save_in_turn, (directory, [ckpts["a"]], 1, limit))
    _, says, status = saver.lines()
    assert says == f"[Errno {errno.EFBIG}] File too large: '{directory}'"
    assert status == "[1]"
    assert contents(directory) == ckpts["b files"]
    assert not hidden(directory)


@pytest.mark.skipif(not NAMESPACE, reason="nothing may be mounted here")
def test_mounts(saver, ckpts, tmp_path):
    for name in ("small", "mounted", "bound", "elsewhere"):
        (tmp_path / name).mkdir()
    saver.start(save_on_mounts, (tmp_path, ckpts["a"], ckpts["d"]))
    error, *files, left, status = saver.lines()
    assert error == (
        f"[Errno {errno.ENOSPC}] No space left on device: '{tmp_path}/small/model'"
    )
    expected = [ckpts["a files"], ckpts["d files"], ckpts["d files"]]
    assert [ast.literal_eval(line) for line in files] == expected
    assert (left, status) == ("['model']", "[0]")
    assert contents(tmp_path / "elsewhere") == ckpts["d files"]


def test_one_file_is_replaced_in_one_step(config, tmp_path):
    def save_both(config):
        config.save_pretrained(tmp_path)
        eb.GenerationConfig(max_length=config.vocab_size).save_pretrained(tmp_path)

    save_both(config)
    old = contents(tmp_path)
    changed = eb.BartConfig.from_dict(config.to_dict() | {"vocab_size": 50})
    save_both(changed)
    new = contents(tmp_path)
    assert all(old[name] != new[name] for name in ("config.json", "generation_config.json"))
    save_both(config)
    for kind in ("once", "crash"):
        for at in itertools.count(1):
            faults = Faults(at, kind)
            with contextlib.suppress(OSError, Crash), faults():
                save_both(changed)
            found = {n: c for n, c in contents(tmp_path).items() if n in old}
            assert found.keys() == old.keys()
            assert all(found[name] in (old[name], new[name]) for name in old)
            assert kind == "crash" or contents(tmp_path).keys() == old.keys()
            if not faults.happened:
                break
            save_both(config)
        assert found == new
        assert at > 8
