"""Checkpoints from the Hugging Face hub, of which `hub_server` is a stand-in."""

import contextlib
import itertools
import json
import pathlib
import ssl
import subprocess
import sys
import types

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from conftest import with_slow
from hub_server import after, half, HubServer, short, silence, stall, status, stranger
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
from oracle import assert_same as assert_same_arrays, random_config, random_model

import eqx_bart as eb
from eqx_bart.files.formats import FORMATS
from eqx_bart.files.hub import HubOptions, locate


NAME = "org/tiny"
PARTS = ("config.json", "generation_config.json", "model.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, in place of the hub, with an empty cache and retries at once."""
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1,localhost")
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(variable, raising=False)
    impatient = types.SimpleNamespace(sleep=lambda _: None)
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", impatient)
    # Certificates take long to read, and loopback has no use for them.
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)
    with HubServer() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "DOWNLOAD_CHUNK_SIZE": 16,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
        assert server.errors == []


def files_in(directory: pathlib.Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("*")}


def some_files(rng, *names):
    """Files that are not what their names say, and a valid config."""
    files = {name: rng.bytes(int(rng.integers(100, 300))) for name in names}
    return files | {"config.json": json.dumps({"note": rng.bytes(20).hex()}).encode()}


@pytest.fixture
def files():
    return some_files(np.random.default_rng(0), *PARTS)


@pytest.fixture
def saved(tmp_path):
    """A function that saves HF's model with random weights; gives its directory."""
    config = random_config(np.random.default_rng(0))
    model = random_model("BartForConditionalGeneration", config, 0, torch.float32)
    model.generation_config = transformers.GenerationConfig(num_beams=3)

    def save(**kwargs):
        model.save_pretrained(tmp_path / "saved", **kwargs)
        return tmp_path / "saved"

    return save


def assert_same(a, b):
    assert_same_arrays(a, b)
    assert a.config.d_model == b.config.d_model
    assert a.generation_config == b.generation_config


load = eb.BartForConditionalGeneration.from_pretrained


def test_a_model_and_only_its_files_are_downloaded(hub, saved):
    files = files_in(saved())
    assert files.keys() == set(PARTS)
    others = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "tokenizer.json")
    commit = hub.push(NAME, files | dict.fromkeys(others, bytes(10**6)))
    expected = load(saved())
    assert_same(load(NAME), expected)
    assert hub.asked("HEAD") == hub.asked("GET") == list(PARTS)
    heads = [request.revision for request in hub.requests if request.method == "HEAD"]
    assert heads == ["main", commit, commit]

    hub.requests.clear()
    assert_same(load(NAME), expected)
    assert (hub.asked("HEAD"), hub.asked("GET")) == (["config.json"], [])
    hub.requests.clear()
    assert_same(load(NAME, local_files_only=True), expected)
    assert hub.requests == []


def test_a_sharded_model_from_the_hub(hub, saved):
    files = files_in(saved(max_shard_size="10KB"))
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    assert len(shards) > 2
    hub.push(NAME, files | {"model-9.safetensors": b"not listed"})
    assert_same(load(NAME), load(saved(max_shard_size="10KB")))
    assert hub.asked("GET") == [*PARTS[:2], "model.safetensors.index.json", *shards]

    (locate(NAME, weights=False) / shards[1]).unlink()
    with pytest.raises(eb.CheckpointError, match=f"{shards[1]}.*it is not in the cache"):
        load(NAME, local_files_only=True)
    hub.push(NAME, {name: files[name] for name in files if name != shards[2]})
    with pytest.raises(eb.CheckpointError, match=f"{shards[2]}.*it has no such file"):
        load(NAME)


def test_shards_in_the_store_that_models_share(hub, saved, tmp_path):
    """Where `huggingface_hub` moves what comes by Xet, as all big files now do."""
    hub.push(NAME, files_in(saved(max_shard_size="10KB")))
    for shard in locate(NAME, weights=True).glob("*.safetensors"):
        blob = shard.resolve()
        assert publish_blob_to_shared_store(
            blob_path=str(blob),
            xet_hash=blob.name,
            cache_dir=tmp_path / "cache",
            expected_size=blob.stat().st_size,
        )
        assert blob.is_symlink()
    assert_same(load(NAME), load(saved(max_shard_size="10KB")))


@pytest.mark.parametrize("shard", ["../config.json", "/etc/hostname", "..", "", "a/b"])
def test_shards_elsewhere_are_not_asked_for(shard, hub, files):
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"x": shard}}
    ).encode()
    hub.push(NAME, files)
    with pytest.raises(eb.CheckpointError):
        load(NAME)
    assert hub.asked("GET")[-1] == "model.safetensors.index.json"


WEIGHTS = [name for format_ in FORMATS for name in (format_.weights, format_.index)]


@pytest.mark.parametrize("first", range(len(WEIGHTS)))
def test_the_first_format_is_chosen(first, hub):
    rng = np.random.default_rng(first)
    files = some_files(rng, *(w for w in WEIGHTS[first:] if w in WEIGHTS[::2]), "shard")
    index = json.dumps({"weight_map": {"x": "shard"}}).encode()
    files |= {w: index for w in WEIGHTS[first:] if w in WEIGHTS[1::2]}
    hub.push(NAME, files)
    wanted = ["config.json", WEIGHTS[first], *(["shard"] if first % 2 else [])]
    expected = {name: files[name] for name in wanted}
    assert files_in(locate(NAME, weights=True)) == expected
    assert hub.asked("GET") == wanted
    absent = ["generation_config.json", *WEIGHTS[:first]]
    assert sorted(hub.asked("HEAD")) == sorted(wanted + absent)
    hub.requests.clear()
    # What there is not at a commit will never be.
    assert files_in(locate(NAME, weights=True)) == expected
    assert [request.file for request in hub.requests] == ["config.json"]
    assert files_in(locate(NAME, weights=True, local_files_only=True)) == expected


def test_no_weights(hub, files):
    del files["model.safetensors"]
    hub.push(NAME, files)
    assert files_in(locate(NAME, weights=False)) == files
    with pytest.raises(eb.CheckpointError, match=r"hub has no weights of org/tiny.*\.bin"):
        locate(NAME, weights=True)
    with pytest.raises(eb.CheckpointError, match=r"cache has no weights of org/tiny"):
        locate(NAME, weights=True, local_files_only=True)


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "no network"])
def test_offline(how, hub, files, monkeypatch):
    del files["generation_config.json"]
    hub.push(NAME, files)
    hub.push("org/other", files)
    hub.push("org/part", files)
    locate(NAME, weights=True)
    locate("org/part", weights=False)
    hub.requests.clear()
    offline = {}
    if how == "local_files_only":
        offline = {how: True}
    elif how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, how, True)
    else:
        hub.shutdown()
        hub.server_close()
        huggingface_hub.close_session()
    assert files_in(locate(NAME, weights=True, **offline)) == files
    assert locate("org/part", weights=False, **offline).is_dir()
    reason = "ConnectError" if how == "no network" else "it is not in the cache"
    with pytest.raises(eb.CheckpointError, match=f"config.json of org/other.*{reason}"):
        locate("org/other", weights=False, **offline)
    reason = "ConnectError" if how == "no network" else "cache has no weights of org/part"
    with pytest.raises(eb.CheckpointError, match=reason):
        locate("org/part", weights=True, **offline)
    assert hub.requests == []


def test_revisions(hub):
    rng = np.random.default_rng(0)
    versions = [some_files(rng, *PARTS) for _ in range(3)]
    old = hub.push(NAME, versions[0])
    hub.push(NAME, versions[1])
    hub.push(NAME, versions[2], revision="refs/pr/1")
    for revision, version in ((old, 0), (None, 1), ("main", 1), ("refs/pr/1", 2)):
        for offline in (False, True):
            directory = locate(
                NAME, weights=True, revision=revision, local_files_only=offline
            )
            assert files_in(directory) == versions[version]
    # A commit stays what it is: only the names of others need to be looked up.
    hub.requests.clear()
    locate(NAME, weights=True, revision=old)
    assert hub.requests == []
    hub.push(NAME, versions[0])
    assert files_in(locate(NAME, weights=True)) == versions[0]
    with pytest.raises(eb.CheckpointError, match=r"config.json of org/tiny .revision v2"):
        locate(NAME, weights=True, revision="v2")


@pytest.mark.parametrize("moment", PARTS[:2])
def test_all_files_are_of_one_commit(moment, hub):
    rng = np.random.default_rng(0)
    old, new = (some_files(rng, *PARTS) for _ in range(2))
    hub.push(NAME, old)
    hub.order("GET", moment, after(lambda: hub.push(NAME, new)), times=1)
    assert files_in(locate(NAME, weights=True)) == old
    assert files_in(locate(NAME, weights=True)) == new


@pytest.mark.parametrize("gated", [False, True])
def test_tokens(gated, hub, files, monkeypatch):
    hub.push(NAME, files)
    hub.repositories[NAME].token = "right"  # noqa: S105
    hub.repositories[NAME].gated = gated
    reason = "access is granted on its page" if gated else "it is private"
    for token in (None, False, "wrong"):
        with pytest.raises(eb.CheckpointError, match=reason) as error:
            locate(NAME, weights=True, token=token)
        assert "wrong" not in str(error.value)
        assert isinstance(
            error.value.__cause__, huggingface_hub.errors.RepositoryNotFoundError
        )
    with pytest.raises(eb.CheckpointError, match="hf auth login"):
        locate(NAME, weights=True, token=True)
    hub.requests.clear()
    assert files_in(locate(NAME, weights=True, token="right")) == files
    assert {r.token for r in hub.requests if r.revision is not None} == {"right"}
    assert {r.token for r in hub.requests if r.revision is None} == {None}
    monkeypatch.setenv("HF_TOKEN", "right")
    hub.requests.clear()
    locate(NAME, weights=True)
    assert [r.token for r in hub.requests] == ["right"]


def test_cache_dir(hub, files, tmp_path, monkeypatch):
    del files["generation_config.json"]
    hub.push(NAME, files)
    monkeypatch.setenv("HOME", str(tmp_path))
    for cache_dir in (tmp_path / "a", str(tmp_path / "b"), "~/c"):
        hub.requests.clear()
        for _ in range(2):
            directory = locate(NAME, weights=True, cache_dir=cache_dir)
            assert files_in(directory) == files
        assert directory.is_relative_to(pathlib.Path(cache_dir).expanduser())
        assert hub.asked("HEAD") == [*PARTS, "config.json"]
    assert not (tmp_path / "cache").exists()
    with pytest.raises(eb.CheckpointError, match="not in the cache"):
        locate(NAME, weights=True, local_files_only=True)


FAULTS = {
    "500": (status(500), "500 Internal Server Error.*try again"),
    "403": (status(403), "403 Forbidden.*Pass the token"),
    "429": (status(429), "429 Too Many Requests.*try again"),
    "half": (half, "RemoteProtocolError: peer closed connection"),
    "short": (short, "Consistency check failed"),
    "stranger": (stranger, "Consistency check failed|not seem to be served by a Hugging"),
    "stall": (stall, "Timeout: timed out. Check the connection"),
    "silence": (silence, "Timeout: timed out. Check the connection"),
}


@pytest.mark.parametrize(
    ("method", "fault", "file"),
    [
        *itertools.product(["GET"], ["500", "403", "429", "half", "short"], PARTS),
        *itertools.product(["HEAD"], ["500", "403", "429", "short", "stranger"], PARTS),
        *[("GET", "stranger", PARTS[0]), ("GET", "stall", PARTS[2])],
        *[("HEAD", "silence", PARTS[0]), ("HEAD", "silence", PARTS[2])],
    ],
)
def test_a_failure_leaves_nothing_half_done(method, fault, file, hub, files, tmp_path):
    commit = hub.push(NAME, files)
    answer, message = FAULTS[fault]
    hub.order(method, file, answer)
    with impatience(fault), pytest.raises(eb.CheckpointError, match=message) as error:
        locate(NAME, weights=True)
    assert f"get {file} of org/tiny" in str(error.value)
    assert error.value.__cause__ is not None
    complete = {name: files[name] for name in PARTS[: PARTS.index(file)]}
    repository = tmp_path / "cache" / "models--org--tiny"
    for directory in ("blobs", f"snapshots/{commit}"):
        found = files_in(repository / directory).values()
        assert sorted(found) == sorted(complete.values())
    with pytest.raises(
        eb.CheckpointError, match=r"no weights of org/tiny|not in the cache"
    ):
        locate(NAME, weights=True, local_files_only=True)
    hub.faults.clear()
    assert files_in(locate(NAME, weights=True)) == files


@contextlib.contextmanager
def impatience(fault="stall"):
    """Timeouts of a tenth of a second, where waiting for them is the point."""
    with pytest.MonkeyPatch.context() as patch:
        if fault in ("stall", "silence"):
            patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
            patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
            patch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.1)
        yield


@pytest.mark.parametrize(
    ("fault", "file"), [("half", PARTS[0]), ("half", PARTS[2]), ("stall", PARTS[2])]
)
def test_a_download_that_breaks_off_goes_on(fault, file, hub, files):
    hub.push(NAME, files)
    hub.order("GET", file, FAULTS[fault][0], times=2)
    with impatience(fault):
        assert files_in(locate(NAME, weights=True)) == files
    content = files[file]
    ranges = [r.range for r in hub.requests if (r.method, r.file) == ("GET", file)]
    starts = [0 if r is None else int(r[len("bytes=") : -1]) for r in ranges]
    assert len(starts) == 3
    assert 0 == starts[0] <= starts[1] <= starts[2] < len(content)
    assert starts[2] > 0 or fault == "stall"  # which a busy machine may do at once


@pytest.mark.parametrize("seed", with_slow(0, slow=range(3)))
def test_random_failures(seed, hub):
    """Whatever fails, a load gives all the files of a commit, or an error."""
    rng = np.random.default_rng(seed)
    faults = [FAULTS[name][0] for name in ("500", "403", "half", "short", "stranger")]
    outcomes = set()
    for _ in range(20):
        files = some_files(rng, *PARTS)
        commit = hub.push(NAME, files)
        method, file = rng.choice(["GET", "HEAD"]), rng.choice(PARTS)
        hub.faults.clear()
        hub.order(str(method), str(file), rng.choice(faults), int(rng.integers(8)))
        try:
            directory = locate(NAME, weights=True)
        except eb.CheckpointError as error:
            outcomes.add(type(error.__cause__))
            continue
        outcomes.add(directory.name == commit)
        assert files_in(directory) == hub.repositories[NAME].commits[directory.name]
    assert True in outcomes
    assert len(outcomes) > 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError()])
def test_errors_of_this_machine(error, hub, files, monkeypatch):
    hub.push(NAME, files)

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", fail)
        with pytest.raises(eb.CheckpointError, match=type(error).__name__) as caught:
            locate(NAME, weights=True)
        assert caught.value.__cause__ is error
        error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            locate(NAME, weights=True)
    assert files_in(locate(NAME, weights=True)) == files


def test_names(hub, files, tmp_path, monkeypatch):
    hub.push("tiny", files)
    assert files_in(locate("tiny", weights=True)) == files
    with pytest.raises(
        eb.CheckpointError, match=r"org/none \(revision main\).*no such model"
    ):
        locate("org/none", weights=True)
    # What is on this machine goes first.
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    pathlib.Path(NAME).mkdir(parents=True)
    pathlib.Path("tiny").write_text("")
    for path in (NAME, pathlib.Path(NAME), "tiny", tmp_path, f"{tmp_path}/tiny"):
        assert locate(path, weights=True) == pathlib.Path(path)
    assert hub.requests == []


@pytest.mark.parametrize(
    "path",
    [
        *("./x", "../x", "/x/y", "~", "~/x", "x/", "x/y/z", r"x\y", r"C:\x", "", "x y"),
        *("x\0", "x--y", "x" * 300, "x.pt", "x/config.json", "model.safetensors"),
        *("x/pytorch_model.bin", "flax_model.msgpack", "x/model.safetensors.index.json"),
        *(pathlib.Path("org/tiny"), pathlib.Path("tiny")),
    ],
)
def test_paths_are_not_asked_for(path, hub, files):
    hub.push(str(path), files)
    with pytest.raises(eb.CheckpointError, match="There is no file or directory") as error:
        locate(path, weights=True)
    assert repr(str(path)) in str(error.value)
    assert hub.requests == []


def test_configs_from_the_hub(hub, saved):
    files = files_in(saved())
    hub.push(NAME, files)
    commit = hub.push(NAME, {"config.json": b'{"d_model": 32}'}, revision="other")
    config = eb.BartConfig.from_pretrained(NAME, num_labels=7)
    assert config == eb.BartConfig.from_pretrained(saved(), num_labels=7)
    assert eb.GenerationConfig.from_pretrained(NAME).num_beams == 3
    assert hub.asked("GET") == list(PARTS[:2])
    for revision in ("other", commit):
        assert eb.BartConfig.from_pretrained(NAME, revision=revision).d_model == 32
    with pytest.raises(FileNotFoundError, match=r"There is no generation_config.json"):
        eb.GenerationConfig.from_pretrained(NAME, revision=commit)
    with pytest.raises(eb.CheckpointError, match="not in the cache"):
        eb.BartConfig.from_pretrained(NAME, revision="x", local_files_only=True)
    hub.push(NAME, {"config.json": b'{"d_model": -32}'})
    with pytest.raises(eb.CheckpointError, match=r"config.json at .* d_model must be"):
        eb.BartConfig.from_pretrained(NAME)


@pytest.mark.parametrize(
    "cls", [eb.GenerationConfig, eb.BartModel, eb.BartForConditionalGeneration]
)
@pytest.mark.parametrize("path", [NAME, pathlib.Path()])
def test_unknown_options(cls, path, hub):
    with pytest.raises(
        TypeError, match=r"no (argument revison|setting 'revison'; do you mean 'revision')"
    ):
        cls.from_pretrained(path, revison="main", local_files_only=True)
    assert hub.requests == []


def test_options_of_the_hub_are_no_fields_of_a_config(tmp_path, hub):
    (tmp_path / "config.json").write_text("{}")
    options = HubOptions(revision="x", token="x", cache_dir="x", local_files_only=True)
    config = eb.BartConfig.from_pretrained(tmp_path, d_model=32, **options)
    assert config == eb.BartConfig(d_model=32)
    assert options.keys() == HubOptions.__annotations__.keys()
    assert hub.requests == []


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": -5},
        {"id2label": 5},
        {"pad_token_id": {}},
        {"d_model": "x"},
        {"model_type": "t5"},
    ],
)
def test_values_that_make_no_sense(values, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(values))
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(eb.CheckpointError) as error:
            eb.BartConfig.from_pretrained(path)
        assert str(error.value).startswith(f"config.json at {path}: ")


@pytest.mark.parametrize("cls", [eb.BartConfig, eb.GenerationConfig])
def test_a_directory_without_a_config(cls, tmp_path):
    name = "config.json" if cls is eb.BartConfig else "generation_config.json"
    with pytest.raises(FileNotFoundError, match=f"There is no {name} at "):
        cls.from_pretrained(tmp_path)


def test_overrides_that_make_no_sense(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        eb.CheckpointError, match=r"config.json at .* with {'d_model': 'x'}:"
    ):
        eb.BartConfig.from_pretrained(tmp_path, d_model="x")


PROGRAM = """
import os, sys
import eqx_bart as eb

assert "huggingface_hub" not in sys.modules
os.environ |= dict(v.split("=", 1) for v in sys.argv[1:])
print(eb.BartConfig.from_pretrained("org/tiny").d_model)
"""


@pytest.mark.slow
def test_the_environment_may_be_set_after_the_import(hub, tmp_path):
    hub.push(NAME, {"config.json": b'{"d_model": 32}'})
    hub.repositories[NAME].token = "right"  # noqa: S105
    for variables in (("HF_TOKEN=right",), ("HF_HUB_OFFLINE=1",)):
        hub.requests.clear()
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                PROGRAM,
                f"HF_ENDPOINT={hub.url}",
                f"HF_HOME={tmp_path}",
                "HF_HUB_DISABLE_TELEMETRY=1",
                *variables,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "32\n"
        assert bool(hub.requests) == (variables == ("HF_TOKEN=right",))
