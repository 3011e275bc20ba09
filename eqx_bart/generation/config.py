"""`GenerationConfig`: how `generate` chooses its tokens."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, no_type_check

import jax

from ..config import as_id_tuple, BartConfig, plain_fields, SEVERAL_IDS
from ..files.errors import CheckpointError
from ..files.hub import locate
from ..files.json_files import read_json, write_json


# HF's settings that would change the result and that `generate` does not have, with the
# values at which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "constraints": ([],),
    "dola_layers": (),
    "force_words_ids": ([],),
    "guidance_scale": (1.0,),
    "low_memory": (False,),
    "max_time": (),
    "num_beam_groups": (1,),
    "output_hidden_states": (False,),
    "penalty_alpha": (0.0,),
    "stop_strings": ([],),
    "token_healing": (False,),
    "top_h": (),
    "watermarking_config": (),
}
# HF's settings of how it computes the result.
_INERT = (
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "disable_compile",
    "diversity_penalty",
    "is_assistant",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "use_cache",
    "use_mtp",
)
_DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "length_penalty": 1.0,
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_logits": False,
    "output_scores": False,
    "output_token_log_probs": False,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}
_DEFAULT_NEW_TOKENS = 20

# What settings are that are not set; none is that in a config that is settled.
_UNSET: Any = None

# The settings that hold token ids: one, several, or sequences of them.
_TOKEN_ID = (
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
)
_TOKEN_IDS = (*SEVERAL_IDS, "suppress_tokens", "begin_suppress_tokens")


def _is_int(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_real(value: Any) -> bool:
    return _is_int(value, -(10**9)) or (isinstance(value, float) and math.isfinite(value))


def _is_ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_int(i) for i in value)


def _is_id_or_ids(value: Any) -> bool:
    return _is_int(value) or (_is_ids(value) and len(value) > 0)


def _is_biases(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and _is_ids(pair[0])
        and len(pair[0]) > 0
        and isinstance(pair[1], int | float)
        and not math.isnan(pair[1])
        for pair in value
    )


def _is_decay(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2
    return is_pair and _is_int(value[0]) and _is_real(value[1]) and value[1] > 0


# What the values of each setting must be, in words and as a function.
_Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: _Rule = (lambda v: _is_int(v, 1), "be an integer, 1 or more")
_COUNT: _Rule = (_is_int, "be an integer, 0 or more")
_FLAG: _Rule = (lambda v: isinstance(v, bool), "be true or false")
_ABOVE_ZERO: _Rule = (lambda v: _is_real(v) and v > 0, "be a number above 0")
_FRACTION: _Rule = (lambda v: _is_real(v) and 0 <= v <= 1, "lie in [0, 1]")
_CUTOFF: _Rule = (lambda v: _is_real(v) and 0 <= v < 1, "lie in [0, 1)")
_IDS: _Rule = (_is_ids, "be a list of token ids")
_RULES: dict[str, _Rule] = {
    **{name: _FLAG for name, value in _DEFAULTS.items() if value is False},
    "max_length": _POSITIVE,
    "max_new_tokens": _POSITIVE,
    "min_length": _COUNT,
    "min_new_tokens": _COUNT,
    "num_beams": _POSITIVE,
    "num_return_sequences": _POSITIVE,
    "early_stopping": (
        lambda v: isinstance(v, bool) or v == "never",
        'be true, false or "never"',
    ),
    "length_penalty": (_is_real, "be a number"),
    "temperature": (
        lambda v: _is_real(v) and v > 0,
        "be above 0; do_sample=False is greedy",
    ),
    "top_k": _COUNT,
    "top_p": _FRACTION,
    "min_p": _FRACTION,
    "typical_p": (lambda v: _is_real(v) and 0 < v <= 1, "lie in (0, 1]"),
    "epsilon_cutoff": _CUTOFF,
    "eta_cutoff": _CUTOFF,
    "repetition_penalty": _ABOVE_ZERO,
    "encoder_repetition_penalty": _ABOVE_ZERO,
    "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT,
    "bad_words_ids": (
        lambda v: isinstance(v, tuple) and all(_is_ids(ids) and ids for ids in v),
        "be a list of lists of token ids",
    ),
    "sequence_bias": (_is_biases, "be pairs of a list of token ids and a number"),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "exponential_decay_length_penalty": (
        _is_decay,
        "be a start, an integer, and a factor above 0",
    ),
    **dict.fromkeys(_TOKEN_ID, (_is_int, "be a token id, an integer, 0 or more")),
    **dict.fromkeys(SEVERAL_IDS, (_is_id_or_ids, "be a token id, an integer, or several")),
}


@no_type_check  # __post_init__ gives better messages
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The settings of `generate`, under HF's names.

    Every field is optional. A config that is given to `generate` leaves what it does not
    set to the model's own `generation_config`, and that leaves it to HF's defaults, which
    stand in parentheses below. Source: HF's `GenerationConfig`.

    **Length:**

    - `max_length`: the length of the result at most, the prompt included.
    - `max_new_tokens`: the same, the prompt excluded; it goes before `max_length`. With
        neither, 20 tokens are generated, or as many as the model has positions for.
    - `min_length`, `min_new_tokens`: no row ends before it has this many. (0)

    **Strategy:**

    - `do_sample`: draw tokens at random, rather than take the likeliest. (False)
    - `num_beams`: how many continuations of a row beam search follows. (1, no search)
    - `num_return_sequences`: how many of them, or how many samples, to return. (1)
    - `early_stopping`: end the search of a row when it has `num_beams` ended ones (True),
        when better ones are unlikely (False), or impossible ("never"). (False)
    - `length_penalty`: beams are ranked by log-probability over length to this power. (1)

    **Scores**, in the order in which they apply:

    - `sequence_bias`: what is added to the score of the last token of each sequence, where
        the others stand before it: pairs of token ids and a number.
    - `encoder_repetition_penalty`: above 1, favours the tokens of the source. (1)
    - `repetition_penalty`: above 1, disfavours the tokens of the row itself. (1)
    - `no_repeat_ngram_size`, `encoder_no_repeat_ngram_size`: n-grams of this size that
        stand in the row, or the source, may not come up again. (0, none)
    - `bad_words_ids`: sequences of token ids that may not come up.
    - `forced_bos_token_id`: the token that comes second, behind the start.
    - `forced_eos_token_id`: the token at `max_length`, if a row gets there.
    - `remove_invalid_values`: replace NaN and infinity by finite scores. (False)
    - `exponential_decay_length_penalty`: a start and a factor; from the start on, the end
        is favoured, by a factor more each step.
    - `suppress_tokens`, `begin_suppress_tokens`: tokens that may not come up, at all or
        as the first.
    - `renormalize_logits`: make the scores log-probabilities again, at last. (False)

    **Sampling**, with `do_sample` only, before `renormalize_logits` and in this order:

    - `temperature`: what the scores are divided by. (1)
    - `top_k`: keep this many of the likeliest tokens; 0 keeps all. (50)
    - `top_p`: keep the likeliest that have this probability together. (1, all)
    - `min_p`: keep those with this share of the likeliest's probability. (0, all)
    - `typical_p`: keep the most typical that have this probability together. (1, all)
    - `epsilon_cutoff`, `eta_cutoff`: keep those that are likelier than this. (0, all)

    **Token ids:**

    - `decoder_start_token_id`: the first token of the result; `bos_token_id` by default.
    - `eos_token_id`: the token, or tokens, that end a row.
    - `pad_token_id`: what fills a row behind its end; the first `eos_token_id` by default.

    **Results** on request, see `GenerationOutput`: `output_scores`, `output_logits`,
    `output_token_log_probs`, `output_attentions`.

    `extra` has HF's other settings, kept so that they can be written back. `generate`
    refuses those that would change its result.

    **Raises** `ValueError` naming the field, its value and what is allowed.
    """

    max_length: int | None = None
    max_new_tokens: int = _UNSET
    min_length: int | None = None
    min_new_tokens: int = _UNSET
    do_sample: bool = _UNSET
    num_beams: int = _UNSET
    num_return_sequences: int = _UNSET
    early_stopping: bool | str = _UNSET
    length_penalty: float = _UNSET
    temperature: float = _UNSET
    top_k: int = _UNSET
    top_p: float = _UNSET
    min_p: float = _UNSET
    typical_p: float = _UNSET
    epsilon_cutoff: float = _UNSET
    eta_cutoff: float = _UNSET
    repetition_penalty: float = _UNSET
    encoder_repetition_penalty: float = _UNSET
    no_repeat_ngram_size: int = _UNSET
    encoder_no_repeat_ngram_size: int = _UNSET
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = _UNSET
    renormalize_logits: bool = _UNSET
    pad_token_id: int = _UNSET
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    output_scores: bool = _UNSET
    output_logits: bool = _UNSET
    output_token_log_probs: bool = _UNSET
    output_attentions: bool = _UNSET
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        if isinstance(self.sequence_bias, Mapping):
            object.__setattr__(self, "sequence_bias", tuple(self.sequence_bias.items()))
        plain_fields(self)
        object.__setattr__(self, "extra", copy.deepcopy(dict(self.extra)))
        for name in self._fields():
            is_valid, expected = _RULES[name]
            value = getattr(self, name)
            if value is not None and not is_valid(value):
                raise ValueError(
                    f"GenerationConfig: {name} must {expected}; it is {value!r}."
                )
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        """Looks at the settings that are set; those that are not may come to fit."""
        for least, most in (
            ("min_length", "max_length"),
            ("min_new_tokens", "max_new_tokens"),
            ("num_return_sequences", "num_beams"),
        ):
            low, high = getattr(self, least), getattr(self, most)
            if least == "num_return_sequences" and high == 1:
                continue
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"GenerationConfig: {least}={low} is more than {most}={high}."
                )
        several = (self.num_return_sequences or 1) > 1
        if several and self.num_beams == 1 and self.do_sample is False:
            raise ValueError(
                f"GenerationConfig: num_return_sequences={self.num_return_sequences}, but "
                "greedy search has one answer. Set num_beams or do_sample."
            )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = set(as_id_tuple(getattr(self, name)))
            if forced and forced <= set(self.suppress_tokens or ()):
                raise ValueError(
                    f"GenerationConfig: suppress_tokens has all of {name}={forced}."
                )

    @classmethod
    def _fields(cls) -> Iterator[str]:
        return (field.name for field in dataclasses.fields(cls) if field.name != "extra")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerationConfig":
        """Builds a config from the contents of a `generation_config.json`."""
        names = set(cls._fields())
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
        # There these two are about what a call of the model returns.
        names = cls._names() - {"output_attentions", "output_hidden_states"}
        return cls.from_dict({k: v for k, v in values.items() if k in names})

    def to_dict(self) -> dict[str, Any]:
        """The contents of this config's `generation_config.json`."""
        return {name: _as_lists(v) for name, v in self._set().items()} | dict(self.extra)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "GenerationConfig":
        """Reads `generation_config.json`.

        Takes and **raises** what `BartConfig.from_pretrained` does, overrides apart.
        """
        path = locate(
            path,
            weights=False,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        values = read_json(path, "generation_config.json")
        try:
            return cls.from_dict(values)
        except Exception as error:
            raise CheckpointError(f"generation_config.json at {path}: {error}") from error

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `generation_config.json` into `directory`, which is made if need be."""
        write_json(Path(directory), "generation_config.json", self.to_dict())

    def updated(
        self, other: "GenerationConfig | None", overrides: dict[str, Any]
    ) -> "GenerationConfig":
        """These settings, overridden by those that `other` sets, then by `overrides`.

        A length in tokens replaces one in new tokens, and the other way round.

        **Raises** `TypeError` if an override is not a setting of HF's.
        """
        if unknown := overrides.keys() - self._names():
            raise TypeError(
                f"generate has no setting {', '.join(sorted(unknown))}; GenerationConfig "
                f"lists those that it has."
            )
        values = self.to_dict()
        for update in ({} if other is None else other.to_dict(), overrides):
            for total, new in (
                ("max_length", "max_new_tokens"),
                ("min_length", "min_new_tokens"),
            ):
                if update.get(total) is not None:
                    values.pop(new, None)
                elif update.get(new) is not None:
                    values.pop(total, None)
            values |= update
        return type(self).from_dict(values)

    @classmethod
    def _names(cls) -> set[str]:
        """The names of all of HF's settings that are known here."""
        return {*cls._fields(), *_NEUTRAL, *_INERT}

    @property
    def start_token_id(self) -> int:
        """The token that a decoder starts with. **Raises** `ValueError` without one."""
        for token_id in (self.decoder_start_token_id, self.bos_token_id):
            if token_id is not None:
                return token_id
        raise ValueError(
            "generate needs decoder_start_token_id or bos_token_id, and has neither."
        )

    def settled(
        self, prompt_length: int, vocab_size: int, max_positions: int
    ) -> "GenerationConfig":
        """These settings, with nothing left open, for a prompt of this length and a model
        of so many tokens and positions.

        Lengths are those of the new tokens alone, so that the settings are the same for
        longer prompts.

        **Raises** `ValueError` if a setting does not fit the model, or is one that
        `generate` does not have.
        """
        self._refuse_unsupported()
        self._check_ids(vocab_size)
        values = _DEFAULTS | self._set()
        values["max_new_tokens"] = self._max_new_tokens(prompt_length, max_positions)
        if "min_new_tokens" not in values:
            values["min_new_tokens"] = max(values.get("min_length", 0) - prompt_length, 0)
        values |= {"max_length": None, "min_length": None}
        if "pad_token_id" not in values:
            values["pad_token_id"] = next(iter(as_id_tuple(self.eos_token_id)), 0)
        return type(self)(**values)

    def _set(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self._fields()}
        return {name: value for name, value in values.items() if value is not None}

    def _check_ids(self, vocab_size: int) -> None:
        for name in self._fields():
            value = getattr(self, name)
            if name in (*_TOKEN_ID, *_TOKEN_IDS):
                ids = as_id_tuple(value)
            elif name == "bad_words_ids":
                ids = (i for word in value or () for i in word)
            elif name == "sequence_bias":
                ids = (i for sequence, _ in value or () for i in sequence)
            else:
                continue
            for token_id in ids:
                if token_id >= vocab_size:
                    raise ValueError(
                        f"GenerationConfig: {name}={token_id} is outside the vocabulary "
                        f"of {vocab_size}."
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

    def _max_new_tokens(self, prompt_length: int, limit: int) -> int:
        values = self._set()
        if "max_new_tokens" in values:
            max_length = prompt_length + self.max_new_tokens
        else:
            default = min(prompt_length + _DEFAULT_NEW_TOKENS, limit)
            max_length = values.get("max_length", default)
        if not prompt_length < max_length <= limit:
            raise ValueError(
                f"generate would make {max_length} tokens from a start of {prompt_length}: "
                f"max_length must be more than that and at most the "
                f"max_position_embeddings={limit} of the model."
            )
        if "min_new_tokens" not in values and (self.min_length or 0) > max_length:
            raise ValueError(
                f"GenerationConfig: min_length={self.min_length} is more than the "
                f"{max_length} tokens that may be generated, the prompt included."
            )
        return max_length - prompt_length


def _as_lists(value: Any) -> Any:
    return [_as_lists(v) for v in value] if isinstance(value, tuple) else value
