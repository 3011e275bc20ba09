"""`from_pretrained` and `save_pretrained`, which all models have."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ..config import BartConfig
from .errors import CheckpointError
from .formats import find_weights
from .hub import locate
from .json_files import write_json
from .safetensors import write_safetensors
from .tensors import StoredTensor
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
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Model:
        """Loads a checkpoint that HF's PyTorch or Flax BART, or `save_pretrained`, wrote.

        **Arguments:**

        - `path`: a directory with `config.json` and weights; a file of weights, or the
            index of its shards, beside `config.json`; or the name of a model on the
            Hugging Face hub. Of several formats in one place, safetensors goes first,
            then PyTorch's, then Flax's.
        - `config`: what to build the model by; `config.json` by default.
        - `dtype`: the floating dtype of the weights; as they are stored by default.
        - `key`: to draw a head that the checkpoint lacks. A warning names what is drawn.
        - `revision`, `token`, `cache_dir`, `local_files_only`: for the hub; see
            `huggingface_hub.hf_hub_download`.

        **Returns** the model, in inference mode.

        **Raises** `CheckpointError` if a file is malformed, if the hub does not give it,
        or, naming every such tensor, if some are missing, unexpected or of another shape
        than the config says; `FileNotFoundError` if there is no config.
        """
        path = locate(
            path,
            weights=True,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        weights = find_weights(path)
        directory = weights.file.parent
        config = config or BartConfig.from_pretrained(directory)
        settings = cls._read_settings(directory)
        tensors = weights.read()
        _check_layers(config, tensors)

        def build(key: PRNGKeyArray) -> Any:
            return eqx.nn.inference_mode(cls(config, key=key, **settings))

        return load_weights(build, tensors, dtype=dtype, key=key)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a checkpoint that `from_pretrained`, and HF's PyTorch BART, read.

        **Arguments:**

        - `directory`: where `config.json` and `model.safetensors` go; made if need be.
        """
        directory = Path(directory)
        tensors = to_tensors(self)
        directory.mkdir(parents=True, exist_ok=True)
        write_safetensors(directory / "model.safetensors", tensors)
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


def _check_layers(config: BartConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """That the config does not call for absurdly many layers, which take time to build."""
    if config.encoder_layers + config.decoder_layers > len(tensors):
        raise CheckpointError(
            f"The config has {config.encoder_layers} and {config.decoder_layers} layers, "
            f"and the checkpoint no more than {len(tensors)} tensors."
        )
