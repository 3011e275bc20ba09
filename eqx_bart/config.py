"""`BartConfig`: what `config.json` says about a BART; validated, frozen and hashable."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, no_type_check

import jax

from .files.errors import CheckpointError
from .files.hub import locate, split_options
from .files.json_files import read_json, write_json
from .nn.activations import ACTIVATIONS
from .settings import as_id_tuple, is_int, is_real, plain_fields


_POSITIVE = (
    "vocab_size",
    "max_position_embeddings",
    "d_model",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "num_labels",
)
_MAX_LABELS = 10**6  # a name is made for each
_NON_NEGATIVE = ("encoder_layers", "decoder_layers")
_PROBABILITIES = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "classifier_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
)
_TOKEN_IDS = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_eos_token_id",
)
# The settings that may be one token id or more than one.
_SEVERAL_IDS = ("eos_token_id", "forced_eos_token_id")
#: The dtypes that weights may have.
DTYPES = ("float32", "bfloat16", "float16", "float64")
_PROBLEM_TYPES = (
    "regression",
    "single_label_classification",
    "multi_label_classification",
)

# Names that older files use, and the field that each one is today.
_LEGACY_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "classif_dropout": "classifier_dropout",
    "_num_labels": "num_labels",
    "torch_dtype": "dtype",
}

#: The `model_type` of a BART in `config.json`, and of another model made of its parts.
MODEL_TYPE, CUSTOM_MODEL_TYPE = "bart", "eqx_bart"

# Switches of models that share BART's file format but not its architecture, with
# the one value that describes BART.
_BART_IS = {
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "static_position_embeddings": False,
    "extra_pos_embeddings": 2,
}


@no_type_check  # __post_init__ gives better messages
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class BartConfig:
    """The hyperparameters of a BART, under Hugging Face's names and defaults.

    The defaults are those of `facebook/bart-large`.

    **Fields** that are not self-explanatory:

    - `max_position_embeddings`: the longest sequence, in tokens. The position tables
        have two rows more, BART's offset.
    - `scale_embedding`: multiply token embeddings by `sqrt(d_model)`.
    - `encoder_layerdrop`, `decoder_layerdrop`: the probability that training skips a
        layer (arXiv:1909.11556).
    - `eos_token_id`, `forced_eos_token_id`: one id, or a tuple of ids.
    - `dtype`: the dtype in which `from_pretrained` loads the weights by default; `None` for
        the one in which they are stored. A model's arrays may since have another.
    - `id2label`: the label names in the order of their ids; `LABEL_0`, ... unless given.
    - `extra`: every other key of `config.json`, kept so that it can be written back.
        No model reads it.

    **Raises** `ValueError` naming the field, its value and what is allowed.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 2; HF's `BartConfig`.
    """

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    encoder_layerdrop: float = 0.0
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    decoder_layerdrop: float = 0.0
    activation_function: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    classifier_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    decoder_start_token_id: int | None = 2
    forced_eos_token_id: int | tuple[int, ...] | None = 2
    num_labels: int = cast("int", None)  # __post_init__ settles both of these
    id2label: tuple[str, ...] = cast("tuple[str, ...]", None)
    problem_type: str | None = None
    dtype: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        plain_fields(self)
        self._settle_labels()
        self._set("extra", copy.deepcopy(dict(self.extra)))
        if twice := self.extra.keys() & {field.name for field in dataclasses.fields(self)}:
            raise ValueError(f"BartConfig: extra may not hold fields: {sorted(twice)}.")
        self._validate()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _settle_labels(self) -> None:
        """Fills in `num_labels` and `id2label`, where they were left out."""
        names: Any = self.id2label
        count: Any = self.num_labels
        if names is not None:
            names = _ordered_labels(names)
            count = len(names) if count is None else count
        count = 3 if count is None else count
        if is_int(count) and count > _MAX_LABELS:
            raise ValueError(
                f"BartConfig: num_labels must be at most {_MAX_LABELS}; it is {count}."
            )
        if names is None or names == _label_names(len(names)):
            names = _label_names(count) if is_int(count) else ()
        self._set("num_labels", count)
        self._set("id2label", names)

    def _validate(self) -> None:
        for name in _POSITIVE:
            _check(self, name, lambda v: is_int(v) and v > 0, "be a positive integer")
        for name in _NON_NEGATIVE:
            _check(self, name, lambda v: is_int(v) and v >= 0, "be an integer, 0 or more")
        for name in _PROBABILITIES:
            _check(self, name, lambda v: is_real(v) and 0 <= v < 1, "lie in [0, 1)")
        _check(self, "init_std", lambda v: is_real(v) and v >= 0, "be 0 or more")
        for name in (*_PROBABILITIES, "init_std"):
            self._set(name, float(getattr(self, name)))
        for name in ("scale_embedding", "tie_word_embeddings"):
            _check(self, name, lambda v: isinstance(v, bool), "be true or false")
        for side in ("encoder", "decoder"):
            _check(
                self,
                f"{side}_attention_heads",
                lambda heads: self.d_model % heads == 0,
                f"divide d_model={self.d_model}",
            )
        _check(
            self,
            "activation_function",
            lambda v: isinstance(v, str) and v in ACTIVATIONS,
            f"be one of {', '.join(sorted(ACTIVATIONS))}",
        )
        for name in _TOKEN_IDS:
            _check(
                self,
                name,
                lambda v, name=name: self._is_token_id(v, several=name in _SEVERAL_IDS),
                f"be an id below vocab_size={self.vocab_size}, or none",
            )
        _check(
            self,
            "id2label",
            lambda v: len(v) == self.num_labels and all(isinstance(x, str) for x in v),
            f"name each of the num_labels={self.num_labels} labels",
        )
        _check(
            self,
            "problem_type",
            lambda v: v is None or v in _PROBLEM_TYPES,
            f"be one of {', '.join(_PROBLEM_TYPES)}, or none",
        )
        _check(
            self,
            "dtype",
            lambda v: v is None or v in DTYPES,
            f"be one of {', '.join(DTYPES)}, or none",
        )

    def _is_token_id(self, value: Any, *, several: bool) -> bool:
        if several and isinstance(value, tuple):
            return len(value) > 0 and all(
                i is not None and self._is_token_id(i, several=False) for i in value
            )
        return value is None or (is_int(value) and 0 <= value < self.vocab_size)

    @property
    def architecture(self) -> str | None:
        """The class of the model that the config was saved with, if it names one."""
        names = self.extra.get("architectures")
        if not isinstance(names, list | tuple) or not names:
            return None
        return str(names[0]).removeprefix("Flax")

    @property
    def is_custom(self) -> bool:
        """Whether its checkpoint holds a custom model, made of BART's parts."""
        return self.extra.get("model_type") == CUSTOM_MODEL_TYPE

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple, of no, one or more ids."""
        return as_id_tuple(self.eos_token_id)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BartConfig":
        """Builds a config from the contents of a `config.json`, old or new.

        **Raises** `ValueError` if a value is invalid, or says that the model is not a BART.
        """
        values = dict(values)
        is_custom = values.get("model_type") == CUSTOM_MODEL_TYPE
        expected = {"model_type": CUSTOM_MODEL_TYPE if is_custom else MODEL_TYPE} | _BART_IS
        for name, bart in expected.items():
            if values.get(name, bart) not in (bart, None):
                raise ValueError(
                    f"This is not the config of a BART: {name} is {values[name]!r}, and "
                    f"BART's is {bart!r}."
                )
        if not is_custom:
            values.pop("model_type", None)
        if values.get("id2label") is not None:
            values.pop("_num_labels", None)
        for old, new in _LEGACY_NAMES.items():
            if old in values:
                values.setdefault(new, values.pop(old))
        if values.get("id2label") is not None:
            values["id2label"] = _ordered_labels(values["id2label"])
            if values.get("label2id") == _inverse(values["id2label"]):
                del values["label2id"]
        fields = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        nullable = {*_TOKEN_IDS, "problem_type"}
        known = {
            name: values.pop(name)
            for name in fields & values.keys()
            if values[name] is not None or name in nullable
        }
        extra = {name: v for name, v in values.items() if name not in fields}
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The contents of this config's `config.json`; `from_dict` reads it back."""
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        extra = copy.deepcopy(values.pop("extra"))
        labels = values["id2label"]
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = _inverse(labels)
        del values["num_labels"]
        for name in _SEVERAL_IDS:
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        return {"model_type": MODEL_TYPE, **values, **extra}

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "BartConfig":
        """Reads `config.json`.

        **Arguments:**

        - `path`: the file, the directory that holds it, or the name of a model on the
            Hugging Face hub.
        - `options`: for the hub `revision`, `token`, `cache_dir` and `local_files_only`,
            see `HubOptions`; and fields that replace those of the file. Another
            `num_labels` replaces the names of the labels too.

        **Raises** `CheckpointError` if there is nothing at `path`, if the hub does not
        provide it, or if it is not the JSON of a BART config; `FileNotFoundError` if the
        directory holds no such file.
        """
        hub, overrides = split_options(options)
        path = locate(path, weights=False, **hub)
        values = read_json(path, "config.json")
        try:
            if overrides.get("num_labels") not in (
                None,
                len(values.get("id2label") or ()),
            ):
                values.pop("id2label", None)
                values.pop("label2id", None)
            return cls.from_dict({**values, **overrides})
        except Exception as error:
            changed = f" with {overrides}" if overrides else ""
            raise CheckpointError(f"config.json at {path}{changed}: {error}") from error

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` into `directory`, which is made if needed."""
        write_json(Path(directory), "config.json", self.to_dict())


def _check(config: BartConfig, name: str, is_valid: Any, expected: str) -> None:
    value = getattr(config, name)
    if not is_valid(value):
        raise ValueError(f"BartConfig: {name} must {expected}; it is {value!r}.")


def _label_names(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def _ordered_labels(id2label: Any) -> tuple[str, ...]:
    """The labels of HF's `{"0": name, ...}`, or a sequence, in the order of their ids."""
    if not isinstance(id2label, Mapping):
        return tuple(id2label)
    try:
        by_id = {int(i): label for i, label in id2label.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"BartConfig: id2label has a key that is no id: {error}."
        ) from error
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError(
            f"BartConfig: id2label must name the ids 0 to {len(by_id) - 1}; it names "
            f"{sorted(by_id)}."
        )
    return tuple(by_id[i] for i in range(len(by_id)))


def _inverse(labels: tuple[str, ...]) -> dict[str, int]:
    return {label: i for i, label in enumerate(labels)}
