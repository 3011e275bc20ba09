"""`from_pretrained` and `save_pretrained`, which all models have."""

import abc
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from ..config import (
    BartConfig,
    CUSTOM_MODEL_TYPE,
    known_settings,
    LABEL_SETTINGS,
    MODEL_TYPE,
)
from ..explained import hash_of
from ..files.errors import CheckpointError
from ..files.formats import find_weights, INT8, SAFETENSORS, Weights
from ..files.hub import HubOptions, locate, split_options
from ..files.json_files import read_json, write_json
from ..files.tensors import StoredTensor
from ..files.writing import num_bytes, replacing, Shards
from ..hf_names import answer
from ..nn.processes import check_same, own_bytes, spans_processes, together
from ..sharding import Layout, NO_LAYOUT
from .architecture import differences, library_class, overrides, unstorable
from .loading import load_weights, to_tensors, writing
from .names import is_label_head, map_parts, weights
from .quantization import is_quantized, quantized_as
from .resizing import resize_positions, resize_vocabulary


#: The directory of the model that comes with the package: English words to phonemes.
BUILTIN_MODEL = Path(__file__).parents[1] / "g2p"

_FEW_LAYERS = 64
# What `from_pretrained` takes besides settings.
_OPTIONS = {
    "config",
    "dtype",
    "key",
    "ignore_mismatched_sizes",
    "layout",
    "mesh",
    "quantize",
    *HubOptions.__annotations__,
}

Model = TypeVar("Model", bound=eqx.Module)


class PretrainedModel(eqx.Module):
    """The base of all models: it has a config and weights, and is stored in a directory."""

    config: eqx.AbstractVar[BartConfig]
    #: HF's attribute of this name.
    main_input_name: ClassVar[str] = "input_ids"
    #: The arguments of `__init__`, besides the config, that `from_pretrained` takes too.
    _setting_names: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def __init__(self, config: BartConfig, *, key: PRNGKeyArray): ...

    def __hash__(self) -> int:
        return hash_of(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property that has failed
                return super().__getattribute__(name)
            hint = answer(name, is_attribute=True)
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        config: BartConfig | None = None,
        dtype: Any = None,
        key: PRNGKeyArray | None = None,
        ignore_mismatched_sizes: bool = False,
        quantize: str | None = None,
        mesh: Mesh | None = None,
        layout: Layout = NO_LAYOUT,
        **options: Any,
    ) -> Self:
        """Loads a checkpoint that HF's PyTorch or Flax BART, or `save_pretrained`, wrote.

        **Arguments:**

        - `path`: a directory with `config.json` and weights; a file of weights, or the
            index of its shards, next to `config.json`; or the name of a model on the
            Hugging Face hub. If there is more than one format, safetensors is read rather
            than PyTorch's, and PyTorch's rather than Flax's.
        - `config`: the model's; `config.json` by default.
        - `dtype`: the floating dtype of the weights; by default the config's or, if it has
            none, the one in which they are stored.
        - `key`: to draw a head that the checkpoint lacks. A warning names what is drawn.
        - `ignore_mismatched_sizes`: if the config has another number of tokens or
            positions than the checkpoint, keep those that both have and draw the others; if
            it has another head, draw that. By default, these are errors.
        - `quantize`: `"int8"` for a model in 8 bits, as `eqx_bart.quantize` makes it, of
            which no more than one tensor is ever in memory in floats. One that is saved in
            8 bits is read so in any case.
        - `mesh`, `layout`: where the model goes, as `shard` has it; by default to JAX's
            default device. Of safetensors, each process reads only what its devices hold.
        - `options`: for the hub `revision`, `token`, `cache_dir` and `local_files_only`,
            see `HubOptions`; settings that replace those of the config, such as
            `num_labels=5`, see `BartConfig.updated`; and, for a model that generates,
            `generation_config`, whose settings override those of the checkpoint.

        **Returns** the model, in inference mode.

        **Raises** `CheckpointError` if a file is malformed, if the hub does not provide it,
        or if tensors are missing, unexpected or of another shape than the config says,
        naming them; `FileNotFoundError` if there is no config; `TypeError` if there is no
        such option; `ValueError` if `quantize` is something else. With more than one
        process, in all of them if in one; and `ValueError` if they have read different
        checkpoints.
        """
        if quantize not in (None, "int8"):
            raise ValueError(f"quantize must be 'int8', or None; it is {quantize!r}.")
        is_shared = mesh is not None and spans_processes(mesh)
        with together("Loading", is_shared=is_shared):
            hub, overrides = split_options(options)
            given = {x: overrides.pop(x) for x in cls._setting_names & overrides.keys()}
            overrides = known_settings(overrides, _OPTIONS | cls._setting_names)
            path = locate(path, weights=True, **hub)
            weights = find_weights(path)
            directory = weights.file.parent
            if config is None:
                config, tensors = read_config(weights, overrides)
            else:
                config, tensors = config.updated(**overrides), weights.read()
            check_class(cls, config)
            settings = cls._read_settings(directory, config, given)
            check_layers(config, tensors)
            if dtype is None:
                check_dtype(config)

            def build(key: PRNGKeyArray) -> Any:
                return eqx.nn.inference_mode(cls(config, key=key, **settings))

            model = load_weights(
                build,
                tensors,
                dtype=config.dtype if dtype is None else dtype,
                key=key,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                quantized=quantize is not None,
                mesh=mesh,
                layout=layout,
            )
        if is_shared:
            check_same(
                f"The processes have read different checkpoints from {path}: it has "
                "changed meanwhile, or it is another one on another machine.",
                repr(config).encode(),
                *own_bytes(model),
            )
        return model

    def resize_token_embeddings(
        self,
        new_num_tokens: int,
        *,
        mean_resizing: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Self:
        """The model with a vocabulary of another size.

        Token embeddings, an untied head and `final_logits_bias` are cut at the end, or
        get new entries there; those of `final_logits_bias` are 0.

        **Arguments:**

        - `new_num_tokens`: the new size.
        - `mean_resizing`: whether new entries are the mean of the old ones; otherwise they
            are drawn from `N(0, init_std²)`.
        - `key`: to draw them.

        **Raises** `ValueError` if there is no key to draw with, or if a special token of
        the config lies outside the new size.

        Source: HF's method of this name.
        """
        config = dataclasses.replace(self.config, vocab_size=new_num_tokens)
        if new_num_tokens < self.config.vocab_size:
            config.check_ids()
        is_drawn = new_num_tokens > self.config.vocab_size and not mean_resizing
        if is_drawn and key is None:
            raise ValueError(
                f"From {self.config.vocab_size} to {new_num_tokens} tokens, new embeddings "
                "are needed: pass key=... to draw them, or mean_resizing=True."
            )
        resized = resize_vocabulary(self, config, key if is_drawn else None)
        return resized.with_config(config)

    def resize_position_embeddings(
        self,
        new_num_position_embeddings: int,
        *,
        copy: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Self:
        """The model with position tables of another size, for longer or shorter sequences.
        They are cut at the end, or get new entries there.

        **Arguments:**

        - `new_num_position_embeddings`: the longest sequence, in tokens.
        - `copy`: whether new positions are copies of the old ones, in their order and as
            often as needed, as LED's are; otherwise they are drawn from `N(0, init_std²)`.
        - `key`: to draw them.

        **Raises** `ValueError` if there is no key to draw with, if the size is not
        positive, or if the model has positions of another kind.

        Source: HF's method of this name; Beltagy et al. 2020 (arXiv:2004.05150), section 7,
        for copies.
        """
        config = dataclasses.replace(
            self.config, max_position_embeddings=new_num_position_embeddings
        )
        old = self.config.max_position_embeddings
        is_drawn = new_num_position_embeddings > old and not copy
        if is_drawn and key is None:
            raise ValueError(
                f"From {old} to {new_num_position_embeddings} positions, new embeddings "
                "are needed: pass key=... to draw them, or copy=True."
            )
        resized = resize_positions(self, config, key if is_drawn else None)
        return resized.with_config(config)

    def with_config(self, config: BartConfig) -> Self:
        """The model with another config, in itself and in its trunk. Arrays, and what was
        made from the old config, such as dropouts, do not change: the caller must check
        that the config describes them. `from_pretrained(path, dropout=0.2)` makes them so.
        """
        return replace_parts(self, BartConfig, config)

    def save_pretrained(
        self, directory: str | Path, *, max_shard_size: int | str = "50GB"
    ) -> None:
        """Writes a checkpoint that `from_pretrained`, and HF's PyTorch BART, can read.

        A model with parts of your own needs a class of its own, whose `__init__` builds
        them. That class reads the checkpoint, and HF's `AutoModel` refuses it.

        An older checkpoint is replaced as a whole or, if that fails, not at all. If the
        directory holds other directories too, or is the current one, files are replaced
        one by one. If the process is killed during that, nothing can be loaded, because
        `config.json` is missing.

        **Arguments:**

        - `directory`: where the checkpoint goes, which is made if needed. Files in it that
            do not belong to an older checkpoint stay.
        - `max_shard_size`: the most bytes of weights in one file, or a size such as `"5GB"`
            or `"200MB"`. Only a tensor that alone is larger has a larger file.

        **Raises** `OSError` if it cannot be written; `ValueError` if `max_shard_size` is
        not a size, or if `from_pretrained` of this class would not give the model back,
        because it has adapters, or parts that its class and its config do not describe.
        """
        if remedy := unstorable(self):
            raise ValueError(f"The model cannot be saved as it is: {remedy}.")
        limit = num_bytes(max_shard_size)
        config = self._described_config()
        architecture = self._architecture(config)
        tensors = to_tensors(self)
        parameters = jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array))
        values = config.to_dict() | architecture
        values["dtype"] = str(jax.tree.leaves(parameters)[0].dtype)
        shards = Shards.of(tensors, limit, INT8 if is_quantized(self) else SAFETENSORS)
        with writing(self, shards.tensors) as is_writer:
            if not is_writer:
                return
            with replacing(Path(directory)) as new:
                shards.write(new, sum(x.size for x in parameters))
                write_json(new, "config.json", values)
                self._write_settings(new)

    @classmethod
    def _read_settings(
        cls, directory: Path, config: BartConfig, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Further arguments of `__init__`: read from the directory, and `given`."""
        return {}

    def _settings(self) -> dict[str, Any]:
        """The further arguments of `__init__`."""
        return {}

    def _write_settings(self, directory: Path) -> None:
        """Writes what `_read_settings` reads."""

    def _described_config(self) -> BartConfig:
        """The config, with the actual depth and sizes of the model."""
        return self.config

    def _architecture(self, config: BartConfig) -> dict[str, Any]:
        """What `config.json` says about the model's class: HF's, if HF can read it.

        **Raises** `ValueError` if the class does not build this model.
        """
        cls, names = type(self), weights(self).keys()
        differ = differences(self, _template(cls, config, self._settings(), names))
        if differ:
            raise ValueError(
                f"{cls.__name__} with this config is another model, so that what is saved "
                "could not be loaded:\n  " + "\n  ".join(differ) + "\nGive the model a "
                "class whose __init__ builds it, and a config that describes it."
            )
        base = library_class(cls)
        if base is None or overrides(cls, base):
            return {"architectures": [cls.__name__], "model_type": CUSTOM_MODEL_TYPE}
        template = _template(base, config, self._settings(), names)
        if cls is base or not differences(self, template):
            return {"architectures": [base.__name__], "model_type": MODEL_TYPE}
        return {"architectures": [cls.__name__], "model_type": CUSTOM_MODEL_TYPE}


def replace_parts(model: Model, kind: type, new: Any) -> Model:
    """`model` with `new` in place of every part of this kind."""
    return map_parts(lambda *_: new, model, kind)


def _template(
    cls: Any, config: BartConfig, settings: dict[str, Any], names: Collection[str]
) -> Any:
    """The shapes of a model of this class and config, with what has these names."""

    def build(key: PRNGKeyArray) -> Any:
        return quantized_as(cls(config, key=key, **settings), names)

    return eqx.filter_eval_shape(build, jax.random.key(0))


def read_config(
    weights: Weights, overrides: Mapping[str, Any]
) -> tuple[BartConfig, dict[str, StoredTensor]]:
    """The config beside `weights`, with settings replaced as `BartConfig.updated` does; and
    the tensors. Where the config is silent about labels, a classifier's head has as many as
    it has rows: HF leaves them out if there are two, though its default is three.

    **Raises** as `BartConfig.from_pretrained` and `Weights.read` do.
    """
    directory = weights.file.parent
    values = read_json(directory, "config.json")
    config, tensors = (
        BartConfig.from_pretrained(directory, **overrides),
        weights.read(),
    )
    is_silent = not any(x in values or x in overrides for x in LABEL_SETTINGS)
    heads = [x.shape for name, x in tensors.items() if is_label_head(name)]
    if is_silent and len(heads) == 1 and heads[0]:
        config = config.updated(num_labels=heads[0][0])
    return config, tensors


def check_dtype(config: BartConfig) -> None:
    """**Raises** `CheckpointError` if the config has a dtype that no weights can have."""
    try:
        config.check("dtype")
    except ValueError as error:
        raise CheckpointError(f"{error} Pass dtype=... to do without.") from error


def check_class(cls: type, config: BartConfig) -> None:
    """**Raises** `CheckpointError` if the checkpoint is that of a custom class other than
    `cls`."""
    name = config.architecture
    if config.is_custom and name != cls.__name__:
        raise CheckpointError(
            f"This is the checkpoint of a {name}, a model of somebody's own that is no "
            f"BART: load it with {name}.from_pretrained, not with {cls.__name__}'s."
        )


def check_layers(config: BartConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Checks that the config does not call for absurdly many layers, which take time to
    build. A few layers are always allowed: one that is used many times is stored once.

    **Raises** `CheckpointError` if it does.
    """
    num_layers = config.encoder_layers + config.decoder_layers
    if num_layers > max(len(tensors), _FEW_LAYERS):
        raise CheckpointError(
            f"The config has {config.encoder_layers} and {config.decoder_layers} layers, "
            f"and the checkpoint no more than {len(tensors)} tensors."
        )
