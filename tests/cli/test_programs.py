"""Programs on disk: what a command compiles, the next one does not."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from eqx_bart.cli import main, programs


SCRIPT = """
import collections, sys
import jax

found = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: found.update([event]))
from eqx_bart.cli import main

status = main(["generate", "--seed=0", "cat"])
print(*(found[f"/jax/compilation_cache/cache_{x}"] for x in ("hits", "misses")))
names = ("transformers", "huggingface_hub", "torch", "requests")
print(*(name for name in names if name in sys.modules))
sys.exit(status)
"""


def command(directory, **environment):
    environment = {"EQX_BART_CACHE": str(directory), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env={k: v for k, v in (os.environ | environment).items() if v is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counts(process):
    """How many programs were read, and how many were written."""
    out, err = process.communicate(timeout=300)
    answer, numbers, modules = out.split("\n")[:3]
    assert (answer, err, process.returncode) == ("cat\tK AE1 T", "", 0)
    assert modules == ""
    return tuple(map(int, numbers.split()))


def stored(directory, suffix="-cache"):
    return sorted(directory.glob(f"*/*{suffix}"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A directory that two commands, at the same time, have filled."""
    directory = tmp_path_factory.mktemp("cache")
    both = [command(directory), command(directory)]
    for process in both:
        assert sum(counts(process)) > 1
    return directory


def test_the_next_command_compiles_nothing(filled):
    written = len(stored(filled))
    assert len(stored(filled, ".checksum")) == written
    assert counts(command(filled)) == (written, 0)
    assert len(stored(filled)) == written


def test_damaged_programs_are_compiled_again(filled):
    files = stored(filled)
    before = {file: file.read_bytes() for file in files}
    longest = max(files, key=lambda file: len(before[file]))
    for number, file in enumerate(files):
        contents = bytearray(before[file])
        if file == longest:
            contents[len(contents) // 2] ^= 1  # a bit
        else:
            contents = [contents[:-9], b"", os.urandom(99)][number % 3]
        file.write_bytes(contents)
    assert counts(command(filled)) == (0, len(files))
    assert stored(filled) == files
    assert counts(command(filled)) == (len(files), 0)


def test_what_nobody_vouches_for_is_not_read(filled):
    """A command that was killed may have written half of a program."""
    files = stored(filled)
    files[0].with_name(files[0].name + ".checksum").unlink()
    assert counts(command(filled)) == (len(files) - 1, 1)


@pytest.mark.slow
def test_without_a_directory(tmp_path):
    assert counts(command("")) == (0, 0)
    assert counts(command(tmp_path / "file" / "x")) != (0, 0)
    (tmp_path / "no-directory").write_text("")
    assert counts(command(tmp_path / "no-directory")) == (0, 0)


@pytest.mark.slow
def test_jax_has_a_directory_already(tmp_path):
    theirs = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert sum(counts(command(tmp_path / "ours", **theirs))) > 0
    assert [x.name for x in tmp_path.iterdir()] == ["theirs"]


def test_where(monkeypatch, tmp_path):
    monkeypatch.setenv("EQX_BART_CACHE", "")
    assert programs.cache_directory() is None
    monkeypatch.setenv("EQX_BART_CACHE", str(tmp_path / "a"))
    assert programs.cache_directory() == tmp_path / "a"
    monkeypatch.delenv("EQX_BART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert programs.cache_directory() == tmp_path / "eqx-bart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert programs.cache_directory() == tmp_path / "home/.cache/eqx-bart"


def chosen(monkeypatch, directory):
    """The directory that JAX is given."""
    monkeypatch.setenv("EQX_BART_CACHE", str(directory))
    before = jax.config.jax_compilation_cache_dir
    with programs.kept_programs():
        found = jax.config.jax_compilation_cache_dir
    assert jax.config.jax_compilation_cache_dir == before
    return found and Path(found)


def test_nobody_else_may_write(monkeypatch, tmp_path):
    found = chosen(monkeypatch, tmp_path)
    assert found.parent == tmp_path
    assert stat.S_IMODE(found.stat().st_mode) & 0o077 == 0
    for mode in (0o770, 0o707, 0o777):
        found.chmod(mode)
        assert chosen(monkeypatch, tmp_path) is None
    found.chmod(0o755)
    assert chosen(monkeypatch, tmp_path) == found
    monkeypatch.setattr(os, "geteuid", lambda: found.stat().st_uid + 1)
    assert chosen(monkeypatch, tmp_path) is None


def test_another_processor_or_jax_is_another_directory(monkeypatch, tmp_path):
    found = {chosen(monkeypatch, tmp_path)}
    read = Path.read_text
    for old, new in (("flags", "flags\t: sse9"), ("model name", "model name\t: Z80")):
        with monkeypatch.context() as patch:
            patch.setattr(
                Path,
                "read_text",
                lambda self, *args, old=old, new=new, **kwargs: read(
                    self, *args, **kwargs
                ).replace(old, new),
            )
            found.add(chosen(monkeypatch, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "99")
        found.add(chosen(monkeypatch, tmp_path))
    assert None not in found
    assert len(found) == 4


def test_help_says_where(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "EQX_BART_CACHE" in capsys.readouterr().out
