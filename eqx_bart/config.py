"""`BartConfig`: what `config.json` says about a BART; validated, frozen and hashable."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast, no_type_check

import jax

from .files.errors import CheckpointError
from .files.hub import HubOptions, locate, split_options
from .files.json_files import read_json, write_json
from .hf_names import answer
from .nn.activations import ACTIVATIONS
from .settings import (
    as_id_tuple,
    COUNT,
    FLAG,
    FRACTION,
    is_int,
    is_real,
    Kind,
    nearest,
    plain_fields,
)


#: The dtypes that weights may have.
DTYPES = ("float32", "bfloat16", "float16", "float64")
_PROBLEM_TYPES = (
    "regression",
    "single_label_classification",
    "multi_label_classification",
)
_NUM_LABELS = 3  # unless the config says otherwise
_MAX_LABELS = 10**6  # a name is made for each
# The settings that may be one token id or more than one.
_SEVERAL_IDS = ("eos_token_id", "forced_eos_token_id")
_TOKEN_IDS = (
    "pad_token_id",
    "bos_token_id",
    *_SEVERAL_IDS,
    "decoder_start_token_id",
)

_ID = Kind(lambda v: v is None or is_int(v), "be a token id, an integer, or none")
_IDS = Kind(
    lambda v: _ID.is_valid(v) or (isinstance(v, tuple) and all(map(is_int, v))),
    "be a token id, an integer, or several, or none",
)
_DEVIATION = Kind(lambda v: is_real(v) and v >= 0, "be 0 or more")
_POSITIVE = Kind(lambda v: is_int(v) and v > 0, "be a positive integer")


def _one_of(names: Iterable[str], *, or_none: bool = True) -> Kind:
    names = tuple(names)
    return Kind(
        lambda v: (or_none and v is None) or (isinstance(v, str) and v in names),
        f"be one of {', '.join(names)}{', or none' if or_none else ''}",
    )


# What every model reads, which is checked when a config is made.
_EVERY_MODEL_READS = {
    "vocab_size": _POSITIVE,
    "max_position_embeddings": _POSITIVE,
    "d_model": _POSITIVE,
    "encoder_attention_heads": _POSITIVE,
    "decoder_attention_heads": _POSITIVE,
    "encoder_ffn_dim": _POSITIVE,
    "decoder_ffn_dim": _POSITIVE,
    "encoder_layers": COUNT,
    "decoder_layers": COUNT,
    "dropout": FRACTION,
    "attention_dropout": FRACTION,
    "activation_dropout": FRACTION,
    "encoder_layerdrop": FRACTION,
    "decoder_layerdrop": FRACTION,
    "init_std": _DEVIATION,
    "scale_embedding": FLAG,
    "tie_word_embeddings": FLAG,
    "output_attentions": FLAG,
    "output_hidden_states": FLAG,
    "activation_function": _one_of(sorted(ACTIVATIONS), or_none=False),
    **{name: _IDS if name in _SEVERAL_IDS else _ID for name in _TOKEN_IDS},
}
# What only some models or calls read, which they check with `BartConfig.check`.
_SOME_READ = {
    "num_labels": Kind(
        lambda v: is_int(v) and 0 < v <= _MAX_LABELS,
        f"be a positive integer, at most {_MAX_LABELS}",
    ),
    "classifier_dropout": FRACTION,
    "problem_type": _one_of(_PROBLEM_TYPES),
    "dtype": _one_of(DTYPES),
}

# Names that HF, or older files, use for a field.
_OTHER_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "classif_dropout": "classifier_dropout",
    "_num_labels": "num_labels",
    "torch_dtype": "dtype",
}
#: The settings of a `config.json` that say how many labels there are.
LABEL_SETTINGS = ("id2label", "num_labels", "_num_labels")

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
    - `eos_token_id`, `forced_eos_token_id`: one id, or a tuple of ids. That an id is in the
        vocabulary is checked where it is used.
    - `dtype`: the dtype in which `from_pretrained` loads the weights by default; `None` for
        the one in which they are stored. A model's arrays may since have another.
    - `id2label`: the names of the labels by their ids, or in the order of their ids;
        `LABEL_0`, ... unless given.
    - `output_attentions`, `output_hidden_states`: whether models return these where a call
        does not say.
    - `extra`: every other key of `config.json`, kept so that it can be written back.
        No model reads it.

    **Raises** `ValueError` naming the field, its value and what is allowed. What only some
    models read is checked when such a model is made; see `check`.

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
    id2label: Mapping[int, str] = dataclasses.field(default=cast("Any", None), hash=False)
    problem_type: str | None = None
    dtype: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
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
        count, given = cast("Any", self.num_labels), cast("Any", self.id2label)
        names = None if given is None else _by_id(given)
        if count is None:
            count = _NUM_LABELS if names is None else len(names)
        if names is None or (names != {} and names == _label_names(len(names))):
            names = _label_names(count)
        self._set("num_labels", count)
        self._set("id2label", names)

    def _validate(self) -> None:
        self.check(*_EVERY_MODEL_READS)
        for name, kind in (_EVERY_MODEL_READS | _SOME_READ).items():
            if kind in (FRACTION, _DEVIATION) and is_real(getattr(self, name)):
                self._set(name, float(getattr(self, name)))
        for side in ("encoder", "decoder"):
            name = f"{side}_attention_heads"
            if self.d_model % getattr(self, name):
                raise self._error(name, f"divide d_model={self.d_model}")

    def check(self, *names: str) -> None:
        """Checks settings that only some models read; who reads one must call this.

        **Raises** `ValueError` as the class does.
        """
        for name in names:
            kind = (_EVERY_MODEL_READS | _SOME_READ)[name]
            if not kind.is_valid(getattr(self, name)):
                raise self._error(name, kind.words)

    def check_labels(self) -> None:
        """**Raises** `ValueError` if `num_labels` is no number of labels, or not that of
        the names in `id2label`."""
        self.check("num_labels")
        if len(self.id2label) != self.num_labels:
            raise self._error(
                "id2label", f"name each of the num_labels={self.num_labels} labels"
            )

    def check_ids(self) -> None:
        """**Raises** `ValueError` if a special token lies outside the vocabulary."""
        for name in _TOKEN_IDS:
            if any(not 0 <= i < self.vocab_size for i in as_id_tuple(getattr(self, name))):
                raise self._error(
                    name, f"be an id below vocab_size={self.vocab_size}, or none"
                )

    def _error(self, name: str, expected: str) -> ValueError:
        value = getattr(self, name)
        return ValueError(f"BartConfig: {name} must {expected}; it is {value!r}.")

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
        values = _with_our_names(values)
        if values.get("id2label") is not None:
            values["id2label"] = _by_id(values["id2label"])
            if "label2id" in values and values["label2id"] == _inverse(values["id2label"]):
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
        values["id2label"] = {str(i): label for i, label in labels.items()}
        if (inverse := _inverse(labels)) is not None:
            values["label2id"] = inverse
        if len(labels) == values["num_labels"]:
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
            see `HubOptions`; and settings that replace those of the file, see `updated`.

        **Raises** `CheckpointError` if there is nothing at `path`, if the hub does not
        provide it, or if it is not the JSON of a BART config; `FileNotFoundError` if the
        directory holds no such file; `TypeError` if there is no such setting.
        """
        hub, overrides = split_options(options)
        overrides = known_settings(overrides, HubOptions.__annotations__)
        path = locate(path, weights=False, **hub)
        values = read_json(path, "config.json")
        try:
            return cls.from_dict(_overridden(values, overrides))
        except Exception as error:
            changed = f" with {overrides}" if overrides else ""
            raise CheckpointError(f"config.json at {path}{changed}: {error}") from error

    def updated(self, **overrides: Any) -> "BartConfig":
        """This config with other settings.

        **Arguments:**

        - `overrides`: settings by their names, or by HF's other names for them, such as
            `hidden_size`. Another `num_labels` replaces the names of the labels too, and
            `id2label` their number.

        **Raises** `TypeError` if there is no such setting, `ValueError` as the class does.
        """
        return self.from_dict(_overridden(self.to_dict(), known_settings(overrides)))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` into `directory`, which is made if needed."""
        write_json(Path(directory), "config.json", self.to_dict())


def known_settings(
    overrides: Mapping[str, Any], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Overrides by the names of fields; `others` are names that may be meant, too.

    **Raises** `TypeError` if there is no such setting, or if one is named twice.
    """
    fields = {field.name for field in dataclasses.fields(BartConfig)} - {"extra"}
    known = fields | _OTHER_NAMES.keys() | {"label2id"}
    for name in overrides:
        if name not in known:
            hint = answer(name) or (
                f"{nearest(name, known.union(others))}. Settings of generate belong to "
                "generation_config."
            )
            raise TypeError(f"BartConfig has no setting {name!r}{hint}")
        if (ours := _OTHER_NAMES.get(name)) in overrides:
            raise TypeError(f"{name} and {ours} are one setting: pass one of them.")
    return _with_our_names(overrides)


def _overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a `config.json` with some of it replaced."""
    values = _with_our_names(values)
    names = values.get("id2label") or ()
    if "id2label" in overrides or overrides.get("num_labels") not in (None, len(names)):
        for name in ("id2label", "label2id", "num_labels"):
            values.pop(name, None)
    return values | dict(overrides)


def _with_our_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` by the names of fields, which go before HF's other names for them."""
    values = dict(values)
    if values.get("id2label") is not None:
        values.pop("_num_labels", None)
    for other, name in _OTHER_NAMES.items():
        if other in values:
            values.setdefault(name, values.pop(other))
    return values


def _label_names(count: Any) -> dict[int, str]:
    is_possible = is_int(count) and count <= _MAX_LABELS
    return {i: f"LABEL_{i}" for i in range(count)} if is_possible else {}


def _by_id(id2label: Any) -> dict[int, Any]:
    """The labels of HF's `{"0": name, ...}`, or a sequence of names, by their ids.

    **Raises** `ValueError` if they are neither.
    """
    if not isinstance(id2label, Mapping):
        return dict(enumerate(id2label))
    try:
        return {int(i): label for i, label in id2label.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"BartConfig: id2label has a key that is no id: {error}."
        ) from error


def _inverse(labels: Mapping[int, Any]) -> dict[str, int] | None:
    """HF's `label2id`; `None` if there are labels that are no names."""
    if not all(isinstance(label, str) for label in labels.values()):
        return None
    return {label: i for i, label in labels.items()}
