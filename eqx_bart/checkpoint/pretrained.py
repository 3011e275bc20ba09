"""`from_pretrained` and `save_pretrained`, which all models have."""

import abc
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ..config import BartConfig, write_json
from .safetensors import read_tensors, write_tensors
from .weights import load_weights, to_tensors


#: The directory of the model that comes with the package: English words to phonemes.
BUILTIN_MODEL = Path(__file__).parents[1] / "g2p"


# In place of `Self`, which beartype does not know in a method.
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(eqx.Module):
    """The base of all models: what has a config and weights, and lives in a directory."""

    config: eqx.AbstractVar[BartConfig]

    @abc.abstractmethod
    def __init__(self, config: BartConfig, *, key: PRNGKeyArray): ...

    @classmethod
    def from_pretrained(  # noqa: PYI019
        cls: type[Model],
        path: str | Path,
        *,
        config: BartConfig | None = None,
        dtype: Any = None,
        key: PRNGKeyArray | None = None,
    ) -> Model:
        """Loads a checkpoint that HF's PyTorch BART, or `save_pretrained`, has written.

        **Arguments:**

        - `path`: the directory with `config.json` and `model.safetensors`, or the index
            of its shards.
        - `config`: what to build the model by; `config.json` by default.
        - `dtype`: the floating dtype of the weights; as they are stored by default.
        - `key`: to draw a head that the checkpoint lacks. A warning names what is drawn.

        **Returns** the model, in inference mode.

        **Raises** `CheckpointError`, naming every tensor that is missing, unexpected or
        of another shape than the config says, and `ValueError` for an invalid config.
        """
        directory = Path(path)
        config = config or BartConfig.from_pretrained(directory)
        settings = cls._read_settings(directory)

        def build(key: PRNGKeyArray) -> Any:
            return eqx.nn.inference_mode(cls(config, key=key, **settings))

        return load_weights(build, read_tensors(directory), dtype=dtype, key=key)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a checkpoint that `from_pretrained`, and HF's PyTorch BART, read.

        **Arguments:**

        - `directory`: where `config.json` and `model.safetensors` go; made if need be.
        """
        directory = Path(directory)
        tensors = to_tensors(self)
        write_tensors(directory, tensors)
        config = self.config.to_dict() | {
            "architectures": [type(self).__name__],
            "dtype": str(next(iter(tensors.values())).dtype),
        }
        config.pop("torch_dtype", None)
        write_json(directory, "config.json", config)
        self._write_settings(directory)

    @classmethod
    def _read_settings(cls, directory: Path) -> dict[str, Any]:
        """Further arguments of `__init__` that the directory holds."""
        return {}

    def _write_settings(self, directory: Path) -> None:
        """Writes what `_read_settings` reads."""
