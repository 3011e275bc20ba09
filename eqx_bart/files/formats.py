"""The formats of checkpoints, and which file of a directory holds the weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from .errors import CheckpointError, listed
from .flax import flax_name, read_flax
from .json_files import read_json
from .pytorch import read_pytorch
from .safetensors import read_safetensors
from .tensors import StoredTensor


INDEX_SUFFIX = ".index.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    **Fields:**

    - `title`: its name, for users.
    - `weights`: HF's name of the file; with `INDEX_SUFFIX`, of the index of its shards.
    - `suffixes`: how the names of such files end.
    - `read`: reads a file's tensors, by PyTorch's names and with PyTorch's shapes.
    - `name`: PyTorch's name of a tensor, from its name in an index.
    """

    title: str
    weights: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], dict[str, StoredTensor]]
    name: Callable[[str], str] = str

    @property
    def index(self) -> str:
        return self.weights + INDEX_SUFFIX


SAFETENSORS = Format(
    "safetensors", "model.safetensors", (".safetensors",), read_safetensors
)
#: With weights in 8 bits, which HF would take for something else, so that its name is not
#: one that HF looks for.
INT8 = Format("safetensors", "model.int8.safetensors", (), read_safetensors)
#: In the order in which they are looked for.
FORMATS = (
    SAFETENSORS,
    INT8,
    Format("PyTorch", "pytorch_model.bin", (".bin", ".pt", ".pth", ".ckpt"), read_pytorch),
    Format("Flax", "flax_model.msgpack", (".msgpack",), read_flax, flax_name),
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where the weights of a checkpoint are: in `file`, or in the shards that it lists."""

    file: Path
    format: Format

    @property
    def is_index(self) -> bool:
        return self.file.name.endswith(INDEX_SUFFIX)

    def read(self) -> dict[str, StoredTensor]:
        """The tensors, by PyTorch's names.

        **Raises** `CheckpointError` if a file is malformed, or if the shards and their
        index disagree.
        """
        return self._read_shards() if self.is_index else self.format.read(self.file)

    def _read_shards(self) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for shard, names in shards(self.file).items():
            in_shard = self.format.read(_beside(self.file, shard))
            expected = {self.format.name(name) for name in names}
            if expected != in_shard.keys():
                raise CheckpointError(
                    f"{self.file.parent / shard} and {self.file.name} disagree about "
                    f"{listed(sorted(expected ^ in_shard.keys()))}."
                )
            tensors |= in_shard
        return tensors


def find_weights(path: Path) -> Weights:
    """The weights at `path`: those of a directory, in the first of the `FORMATS` that it
    has; or a file.

    **Raises** `CheckpointError` if there are none.
    """
    if path.is_dir():
        for format_ in FORMATS:
            for name in (format_.weights, format_.index):
                if (path / name).is_file():
                    return Weights(path / name, format_)
        names = ", ".join(format_.weights for format_ in FORMATS)
        raise CheckpointError(
            f"{path} has no weights: it holds none of {names}, and no index of shards."
        )
    name = path.name.removesuffix(INDEX_SUFFIX)
    for format_ in FORMATS:
        if name.endswith(format_.suffixes) and path.is_file():
            return Weights(path, format_)
    suffixes = ", ".join(suffix for format_ in FORMATS for suffix in format_.suffixes)
    raise CheckpointError(
        f"{path} is no checkpoint: give a directory, or a file that ends in one of "
        f"{suffixes} or {INDEX_SUFFIX}."
    )


def shards(index: Path) -> dict[str, list[str]]:
    """The names of the tensors in each shard that `index` lists.

    **Raises** `CheckpointError` if it is not an index.
    """
    weight_map = read_json(index, index.name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map.")
    names: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard:
            raise CheckpointError(
                f"{index} names the shard {shard!r}, which is not the name of a file "
                "beside it."
            )
        names.setdefault(shard, []).append(name)
    return dict(sorted(names.items()))


def _beside(index: Path, shard: str) -> Path:
    """The shard's path. A link may only lead to a file next to it or, in the cache of the
    hub, to the blobs of the model or of all models."""
    directory, file = index.parent.resolve(), index.parent / shard
    allowed = {directory, *(parent / "blobs" for parent in directory.parents[1:3])}
    if not file.is_file() or allowed.isdisjoint(file.resolve().parents[:2]):
        raise CheckpointError(
            f"{index} names the shard {shard!r}, which is not beside it, or a link that "
            "leads away."
        )
    return file
