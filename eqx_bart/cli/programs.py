"""Compiled programs, kept on disk from one command to the next.

JAX's persistent cache keeps them, under a key made of the program, with its shapes and
constants, of jaxlib's version, of XLA's flags and of the device. What it does not see to is
seen to here: another processor, other users, and files that are not what was written.
"""

import contextlib
import hashlib
import os
import platform
from collections.abc import Generator
from pathlib import Path

import jax


#: The environment variable that says where programs are kept.
VARIABLE = "EQX_BART_CACHE"

#: All programs of a directory together; those used last stay.
_MOST_BYTES = 2**27

_CACHE_DIR = "jax_compilation_cache_dir"
_SUFFIX = "-cache"  # JAX's
_CHECKSUM = ".checksum"


@contextlib.contextmanager
def kept_programs() -> Generator[None]:
    """A context in which programs are read from disk, and written there. It makes no
    difference but to time: where that cannot be, all are compiled.

    A directory that JAX has been given, for instance by `JAX_COMPILATION_CACHE_DIR`, is
    left to JAX.
    """
    directory = None
    if not getattr(jax.config, _CACHE_DIR):
        with contextlib.suppress(OSError):
            directory = _directory()
    if directory is None:
        yield
        return
    _remove_damaged(directory)
    settings = {
        _CACHE_DIR: str(directory),
        "jax_compilation_cache_max_size": _MOST_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        _write_checksums(directory)
        for name, value in before.items():
            jax.config.update(name, value)


def cache_directory() -> Path | None:
    """Where programs are kept, of all machines; `None` if they are not."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eqx-bart"


def _directory() -> Path | None:
    """The directory for this version of JAX and this processor, if it is safe: to read a
    program is to run it, so nobody else may be able to write one.

    **Raises** `OSError` if it cannot be made.
    """
    parent = cache_directory()
    if parent is None:
        return None
    directory = parent / f"jax-{jax.__version__}-{_processor()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return None
    if os.name == "posix":
        found = directory.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return None
    return directory


def _processor() -> str:
    """What tells processors apart that cannot run each other's code: a home directory may
    be that of many machines."""
    try:
        first, *_ = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")
        names = ("model name", "flags", "Features", "CPU part", "uarch", "isa")
        facts = [line for line in first.splitlines() if line.startswith(names)]
    except OSError:  # no Linux
        facts = [platform.processor(), platform.node()]
    facts.append(platform.machine())
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=8).hexdigest()


def _remove_damaged(directory: Path) -> None:
    """Removes the programs that are not what was written, as far as that is known."""
    for program in directory.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if _checksum_file(program).read_bytes() == _checksum(program):
                continue
        with contextlib.suppress(OSError):
            program.unlink()
    for known in directory.glob(f"*{_CHECKSUM}"):
        if not known.with_suffix("").exists():
            with contextlib.suppress(OSError):
                known.unlink()


def _write_checksums(directory: Path) -> None:
    for program in directory.glob(f"*{_SUFFIX}"):
        known = _checksum_file(program)
        with contextlib.suppress(OSError):
            if not known.exists():
                known.write_bytes(_checksum(program))


def _checksum_file(program: Path) -> Path:
    return program.with_name(program.name + _CHECKSUM)


def _checksum(program: Path) -> bytes:
    return hashlib.blake2b(program.read_bytes()).digest()
