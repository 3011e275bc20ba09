"""`GenerationConfig`: how `generate` chooses its tokens."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, no_type_check

from ..config import (
    as_id_tuple,
    BartConfig,
    plain_fields,
    read_json,
    SEVERAL_IDS,
    write_json,
)


# HF's settings that change the result and that `generate` does not have yet, with the
# values at which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_length": (0,),
    "min_new_tokens": (0,),
    "do_sample": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "num_return_sequences": (1,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "remove_invalid_values": (False,),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "stop_strings": ([],),
    "max_time": (),
    "token_healing": (False,),
    "dola_layers": (),
}
# HF's settings that have no effect on greedy search.
_INERT = (
    "cache_implementation",
    "diversity_penalty",
    "early_stopping",
    "epsilon_cutoff",
    "eta_cutoff",
    "length_penalty",
    "min_p",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "renormalize_logits",
    "return_dict_in_generate",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_cache",
)
_DEFAULT_NEW_TOKENS = 20


@no_type_check  # __post_init__ gives better messages
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The settings of `generate`, under HF's names.

    Every field is optional. A config that is given to `generate` leaves what it does not
    set to the model's own `generation_config`, and that leaves it to HF's defaults.
    Source: HF's `GenerationConfig`.

    **Fields:**

    - `max_length`: the length of the result at most, the start token included.
    - `max_new_tokens`: the same, the start token excluded; it goes before `max_length`.
        With neither, 20 tokens are generated, or as many as the model has positions for.
    - `decoder_start_token_id`: the first token of the result; `bos_token_id` by default.
    - `eos_token_id`: the token, or tokens, that end a row.
    - `pad_token_id`: what fills a row behind its end; the first `eos_token_id` by default.
    - `forced_bos_token_id`: the token that comes second, behind the start.
    - `forced_eos_token_id`: the token at `max_length`, if a row gets there.
    - `extra`: HF's other settings, kept so that they can be written back. `generate`
        refuses those that would change its result.

    **Raises** `ValueError` naming the field, its value and what is allowed.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        plain_fields(self)
        object.__setattr__(self, "extra", copy.deepcopy(dict(self.extra)))
        for name in ("max_length", "max_new_tokens"):
            if getattr(self, name) is not None:
                self._check_int(name, getattr(self, name), least=1)
        for field in dataclasses.fields(self):
            if field.name.endswith("_token_id"):
                value = getattr(self, field.name)
                several = isinstance(value, tuple) and field.name in SEVERAL_IDS
                for token_id in value if several else (value,):
                    if token_id is not None or several:
                        self._check_int(field.name, token_id, least=0)

    def _check_int(self, name: str, value: Any, *, least: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(
                f"GenerationConfig: {name} must be an integer, {least} or more; it is "
                f"{value!r}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerationConfig":
        """Builds a config from the contents of a `generation_config.json`."""
        names = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        known = {name: value for name, value in values.items() if name in names}
        extra = {name: value for name, value in values.items() if name not in names}
        return cls(**known, extra=extra)

    @classmethod
    def from_model_config(cls, config: BartConfig) -> "GenerationConfig":
        """The settings that checkpoints from before HF's `generation_config.json` keep in
        their `config.json`."""
        values = config.to_dict()
        if values.get("force_bos_token_to_be_generated"):
            values.setdefault("forced_bos_token_id", config.bos_token_id)
        return cls.from_dict({k: v for k, v in values.items() if k in cls._names()})

    def to_dict(self) -> dict[str, Any]:
        """The contents of this config's `generation_config.json`."""
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        extra = values.pop("extra")
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }
        return {**values, **extra}

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "GenerationConfig":
        """Reads `generation_config.json`, given it or its directory.

        **Raises** `FileNotFoundError` or `ValueError`, as `BartConfig.from_pretrained`.
        """
        return cls.from_dict(read_json(Path(path), "generation_config.json"))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `generation_config.json` into `directory`, which is made if need be."""
        write_json(Path(directory), "generation_config.json", self.to_dict())

    def updated(
        self, other: "GenerationConfig | None", overrides: dict[str, Any]
    ) -> "GenerationConfig":
        """These settings, overridden by those that `other` sets, then by `overrides`.

        **Raises** `TypeError` if an override is not a setting of HF's.
        """
        if unknown := overrides.keys() - self._names():
            raise TypeError(
                f"generate has no setting {', '.join(sorted(unknown))}; GenerationConfig "
                f"lists those that it has."
            )
        values = self.to_dict()
        for update in ({} if other is None else other.to_dict(), overrides):
            if update.get("max_length") is not None:
                values.pop("max_new_tokens", None)
            values |= update
        return type(self).from_dict(values)

    @classmethod
    def _names(cls) -> set[str]:
        """The names of all of HF's settings that are known here."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        return fields | _NEUTRAL.keys() | set(_INERT)

    def settle(self, prompt_length: int, config: BartConfig) -> "Settings":
        """These settings with all defaults filled in, for a prompt of this length.

        **Raises** `ValueError` if a setting is missing, does not fit the model, or is one
        that `generate` does not have.
        """
        self._refuse_unsupported()
        for field in dataclasses.fields(self):
            if field.name.endswith("_token_id"):
                for token_id in as_id_tuple(getattr(self, field.name)):
                    if token_id >= config.vocab_size:
                        raise ValueError(
                            f"GenerationConfig: {field.name}={token_id} is outside the "
                            f"vocabulary of {config.vocab_size}."
                        )
        start = self.decoder_start_token_id
        start = self.bos_token_id if start is None else start
        if start is None:
            raise ValueError(
                "generate needs decoder_start_token_id or bos_token_id, and has neither."
            )
        eos = as_id_tuple(self.eos_token_id)
        pad = self.pad_token_id
        if pad is None:
            pad = eos[0] if eos else 0
        return Settings(
            max_length=self._max_length(prompt_length, config.max_position_embeddings),
            decoder_start_token_id=start,
            pad_token_id=pad,
            eos_token_ids=eos,
            forced_bos_token_id=self.forced_bos_token_id,
            forced_eos_token_ids=as_id_tuple(self.forced_eos_token_id),
        )

    def _refuse_unsupported(self) -> None:
        values = {k: v for k, v in self.extra.items() if k in _NEUTRAL and v is not None}
        refused = {k: v for k, v in values.items() if v not in _NEUTRAL[k]}
        if refused:
            given = ", ".join(f"{k}={v!r}" for k, v in refused.items())
            without = ", ".join(f"{k}={next(iter(_NEUTRAL[k]), None)!r}" for k in refused)
            raise ValueError(
                f"generate does not support {given} and will not ignore it: pass {without} "
                "to do without."
            )

    def _max_length(self, prompt_length: int, limit: int) -> int:
        if self.max_new_tokens is not None:
            max_length = prompt_length + self.max_new_tokens
        elif self.max_length is not None:
            max_length = self.max_length
        else:
            max_length = min(prompt_length + _DEFAULT_NEW_TOKENS, limit)
        if not prompt_length < max_length <= limit:
            raise ValueError(
                f"generate would make {max_length} tokens from a start of {prompt_length}: "
                f"max_length must be more than that and at most the "
                f"max_position_embeddings={limit} of the model."
            )
        return max_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A `GenerationConfig` for a certain model and prompt: nothing is left open."""

    max_length: int
    decoder_start_token_id: int
    pad_token_id: int
    eos_token_ids: tuple[int, ...]
    forced_bos_token_id: int | None
    forced_eos_token_ids: tuple[int, ...]
