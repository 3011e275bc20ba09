"""Writing a checkpoint: its shards, and how it replaces another."""

import contextlib
import ctypes
import dataclasses
import filecmp
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from .formats import Format, INDEX_SUFFIX, SAFETENSORS
from .json_files import write_json
from .safetensors import in_file_order, write_safetensors
from .tensors import Tensor


TensorT = TypeVar("TensorT", bound=Tensor)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a checkpoint, which are written, and replace older ones, as a whole.

    **Fields:**

    - `config`: the name of the file without which nothing loads.
    - `pattern`: what their names match. All other files in a directory stay.
    """

    config: str
    pattern: re.Pattern[str]

    def of(self, directory: Path) -> list[Path]:
        """The checkpoint's files in `directory`."""
        return [x for x in directory.iterdir() if self.pattern.fullmatch(x.name)]

    def others(self, directory: Path) -> list[Path]:
        """The other files in `directory`."""
        return [x for x in directory.iterdir() if not self.pattern.fullmatch(x.name)]


CHECKPOINT = Files(
    "config.json",
    re.compile(
        r"(generation_)?config\.json|model(-\d{5,}-of-\d{5,})?(\.int8)?\.safetensors|"
        r"model(\.int8)?\.safetensors" + re.escape(INDEX_SUFFIX)
    ),
)

_EXCHANGE = {"linux": "renameat2", "darwin": "renameatx_np"}


def num_bytes(size: int | str) -> int:
    """A size in bytes, from such a number or from HF's notation, such as `"5GB"`.

    **Raises** `ValueError` if it is neither, or less than 1.
    """
    match = re.fullmatch(r"(\d+\.?\d*) ?([KMGT])(I?)B", str(size).strip().upper())
    if match:
        number, unit, binary = match.groups()
        base = 1024 if binary else 1000
        found = int(float(number) * base ** ("KMGT".index(unit) + 1))
    else:
        found = 0 if isinstance(size, str) else size
    if found < 1:
        raise ValueError(
            "max_shard_size must be a number of bytes, or one of KB, MB, GB, TB, KiB, MiB, "
            f"GiB or TiB such as '5GB', and more than none; it is {size!r}."
        )
    return found


@dataclasses.dataclass(frozen=True)
class Shards(Generic[TensorT]):
    """The files that tensors go to.

    **Fields:**

    - `files`: the tensors of each file, by their names.
    - `index`: the name of the file that lists them.
    - `metadata`: what that says about all of them.
    """

    files: Mapping[str, Mapping[str, TensorT]]
    index: str
    metadata: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, TensorT],
        max_shard_size: int,
        format_: Format = SAFETENSORS,
    ) -> "Shards[TensorT]":
        """One file, or shards as HF makes them. `max_shard_size` is in bytes; only a tensor
        that alone is larger has a larger file."""
        from huggingface_hub import split_state_dict_into_shards_factory

        found = split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern=format_.weights.replace("model", "model{suffix}", 1),
            max_shard_size=max_shard_size,
        )
        files = found.filename_to_tensors
        return cls(
            {file: {n: tensors[n] for n in files[file]} for file in files},
            format_.index,
            found.metadata,
        )

    @property
    def tensors(self) -> list[TensorT]:
        """All of them, in the order in which `write` loads them."""
        return [
            tensors[name]
            for tensors in self.files.values()
            for name in in_file_order(tensors)
        ]

    def write(self, directory: Path, num_parameters: int) -> None:
        """Writes the files and, if there is more than one, their index, which says how many
        parameters the model has."""
        for file, tensors in self.files.items():
            write_safetensors(directory / file, tensors)
        if len(self.files) > 1:
            index = {
                "metadata": {"total_parameters": num_parameters, **self.metadata},
                "weight_map": {
                    n: file for file, names in self.files.items() for n in names
                },
            }
            write_json(directory, self.index, index)


@contextlib.contextmanager
def replacing(directory: Path, files: Files = CHECKPOINT) -> Generator[Path, None, None]:
    """A context that gives an empty directory, to write a checkpoint's `files` to. At the
    end they replace those in `directory`, and all other files there stay.

    The two directories are exchanged in one step, so there always is the old checkpoint or
    the new one, whatever happens. Where the file system cannot do that, it takes two steps,
    and between them there is no `directory`.

    A `directory` that holds other directories, is the current one, or cannot be moved,
    stays where it is. If only one file changes, it is replaced in one step. Otherwise the
    config is removed first and added last, and in between nothing can be loaded.

    What a killed process leaves is in a hidden directory `.{directory.name}.*`, next to
    `directory` or in it.

    **Raises** `OSError`, and leaves the old checkpoint, if the new one cannot be written.
    """
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    is_new = not directory.exists()
    beside = is_new or _can_move(directory)
    try:
        with _stage(directory.parent if beside else directory, directory.name) as stage:
            new = stage / "new"
            new.mkdir()
            if beside and not is_new:
                _copy_attributes(directory, new)
            yield new
            if not (beside and _switch(new, stage / "old", directory, files)):
                _replace_each(new, directory, files)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(directory)) from error


@contextlib.contextmanager
def _stage(parent: Path, name: str) -> Generator[Path, None, None]:
    """A hidden directory. At the end its `new` is removed; its `old`, if it is not empty,
    may be all that is left of a checkpoint, and stays."""
    stage = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    try:
        yield stage
    finally:
        shutil.rmtree(stage / "new", ignore_errors=True)
        with contextlib.suppress(OSError):
            (stage / "old").rmdir()
        with contextlib.suppress(OSError):
            stage.rmdir()


def _can_move(directory: Path) -> bool:
    """Whether the directory itself can be replaced by another without harm."""
    with os.scandir(directory) as files:
        if any(file.is_dir(follow_symlinks=False) for file in files):
            return False
    return (
        os.access(directory, os.W_OK)
        and os.access(directory.parent, os.W_OK)
        and directory.stat().st_uid == getattr(os, "geteuid", int)()
        and not os.path.ismount(directory)
        and not directory.samefile(".")
    )


def _copy_attributes(directory: Path, new: Path) -> None:
    group = directory.stat().st_gid
    if new.stat().st_gid != group:
        with contextlib.suppress(PermissionError):  # not a member of the group
            os.chown(new, -1, group)
    shutil.copystat(directory, new)


def _switch(new: Path, old: Path, directory: Path, files: Files) -> bool:
    """Replaces `directory` by `new`, with the other files of `directory`. Returns whether
    that was possible."""
    if directory.exists():
        if not _can_move(directory):
            return False
        try:
            for file in files.others(directory):
                _link(file, new / file.name)
        except OSError:
            return False
    sync(new)
    if not _rename(new, old, directory):
        return False
    sync(directory.parent)
    with contextlib.suppress(OSError):  # if there is no old one, for example
        for file in files.others(old):
            if not _is_same(file, directory / file.name):  # changed since
                file.replace(directory / file.name)
        shutil.rmtree(old)
    return True


def _rename(new: Path, old: Path, directory: Path) -> bool:
    """Renames `new` to `directory`, and `directory` to `old`. Returns whether the file
    system could."""
    try:
        new.rename(directory)  # if there is none, or an empty one
    except OSError:
        if not directory.exists():
            raise
    else:
        return True
    if _exchange(new, directory):
        try:
            new.rename(old)
        except BaseException:
            _exchange(new, directory)
            raise
        return True
    try:
        directory.rename(old)
    except OSError:
        return False
    try:
        new.rename(directory)
    except BaseException:
        old.rename(directory)
        raise
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges `a` and `b`, which are absolute, in one step. Returns whether the file
    system could."""
    try:
        name = _EXCHANGE[sys.platform]
        exchange = getattr(ctypes.CDLL(None), name)
    except (KeyError, AttributeError):
        return False
    return exchange(-1, os.fsencode(a), -1, os.fsencode(b), 2) == 0


def _replace_each(new: Path, directory: Path, files: Files) -> None:
    """Moves the files of `new` to `directory`, and removes those of the old checkpoint."""
    with _stage(directory, directory.name) as stage, contextlib.ExitStack() as undo:
        new, old = Path(shutil.move(new, stage)), stage / "old"
        old.mkdir()
        incoming = {file.name for file in files.of(new)}
        for name in incoming:
            sync(new / name)  # which may be a copy now
        present = {file.name for file in files.of(directory)}
        same, _, _ = filecmp.cmpfiles(new, directory, incoming, shallow=False)
        changed = (incoming | present) - set(same)
        if len(changed) <= 1 and changed <= incoming:
            for name in changed:
                (new / name).replace(directory / name)
            sync(directory)
            return

        def move(name: str, source: Path, target: Path) -> None:
            (source / name).replace(target / name)
            undo.callback((target / name).replace, source / name)

        order = sorted(changed | {files.config}, key=lambda name: name == files.config)
        for name in reversed(order):
            if name in present:
                move(name, directory, old)
        for name in order:
            if name in incoming:
                move(name, new, directory)
        undo.pop_all()
        sync(directory)
        shutil.rmtree(old, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        pass  # gone since
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _is_same(a: Path, b: Path) -> bool:
    return os.path.lexists(b) and os.path.samestat(a.lstat(), b.lstat())


def sync(path: Path) -> None:
    """Flushes a file, or the names in a directory, to the disk, where that is possible."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
