"""`GenerationConfig`: how `generate` chooses its tokens."""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, no_type_check, Unpack

import jax

from ..config import BartConfig
from ..files.errors import CheckpointError
from ..files.hub import HubOptions, locate
from ..files.json_files import read_json, write_json
from ..hf_names import answer
from ..settings import (
    ABOVE_ZERO,
    as_id_tuple,
    as_lists,
    BIASES,
    check_setting,
    Config,
    COUNT,
    CUTOFF,
    documented,
    FLAG,
    FRACTION,
    INTEGER,
    is_int,
    is_real,
    Kind,
    nearest,
    NUMBER,
    plain_fields,
    POSITIVE,
    POSITIVE_FRACTION,
    SEQUENCES,
    setting,
    settings_of,
    TOKEN_ID,
    TOKEN_ID_OR_IDS,
    TOKEN_IDS,
)
from .unsupported import INERT, NEUTRAL


_DEFAULT_NEW_TOKENS = 20

_OTHERS = {*NEUTRAL, *INERT}

# Where settings are from, the last first.
_ORIGINS = (
    _ARGUMENT := "an argument of generate",
    _GIVEN_CONFIG := "the generation_config given",
    _CHANGED := "a change of the model's generation_config",
    _OWN := "the model's generation_config",
)
# The settings on which it depends whether others count.
_DECISIVE = ("num_beams", "do_sample")

_length = functools.partial(setting, "**Length:**")
_strategy = functools.partial(setting, "**Strategy:**")
_search = functools.partial(
    setting,
    "**Beam search**, with `num_beams` above 1 only:",
    is_used=lambda values: values["num_beams"] > 1,
)
_drafts = functools.partial(
    setting,
    "**Drafts**, without beams: the tokens are the same, sooner where they copy:",
)
_scores = functools.partial(setting, "**Scores**, in the order in which they apply:")
_sampling = functools.partial(
    setting,
    "**Sampling**, with `do_sample` only, before `renormalize_logits` and in this order:",
    is_used=lambda values: values["do_sample"],
)
_tokens = functools.partial(setting, "**Token ids:**")
_results = functools.partial(setting, "**Results** on request, see `GenerationOutput`:")

_EARLY_STOPPING = Kind(
    lambda v: isinstance(v, bool) or v == "never", 'be true, false or "never"'
)
_TEMPERATURE = Kind(lambda v: is_real(v) and v > 0, "be above 0; do_sample=False is greedy")
_NOT_NEGATIVE = Kind(lambda v: is_real(v) and v >= 0, "be a number, 0 or more")
_TOKEN_ID_OR_NONE = Kind(is_int, "be a token id, an integer", as_id_tuple)
_DECAY = Kind(
    lambda v: (
        isinstance(v, tuple)
        and len(v) == 2
        and COUNT.is_valid(v[0])
        and ABOVE_ZERO.is_valid(v[1])
    ),
    "be a start, an integer, and a factor above 0",
)


def _takes_others(cls: type[Config]) -> type[Config]:
    """Takes HF's other settings by name too, as a part of `extra`."""
    init: Any = cls.__init__

    @functools.wraps(init)
    def with_others(self: Config, **settings: Any) -> None:
        others = {name: settings.pop(name) for name in _OTHERS & settings.keys()}
        init(self, **settings | {"extra": {**settings.get("extra", {}), **others}})

    cls.__init__ = with_others
    return cls


@no_type_check  # __post_init__ gives better messages
@_takes_others
@documented
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The settings of `generate`, under HF's names.

    Every setting is optional. What a config given to `generate` does not set is taken from
    the model's own `generation_config`, and then from HF's defaults, which are in
    parentheses below. `generate` checks the settings that it uses, and no others: a
    checkpoint loads whatever its settings are.

    `extra` has HF's other settings, kept so that they can be written back. They may be
    given by name as well. `generate` refuses those that would change its result. `origins`
    says where settings are from, if they are from more than one place, for messages.

    Source: HF's `GenerationConfig`.
    """

    max_length: int | None = _length(
        POSITIVE, "the length of the result at most, the prompt included"
    )
    max_new_tokens: int = _length(
        POSITIVE,
        "the same, the prompt excluded; it overrides `max_length`. With neither, 20 "
        "tokens are generated, or as many as the model has positions for",
    )
    min_length: int | None = _length(
        INTEGER,
        "no row ends before it has this many tokens, the prompt included; 0 or less is "
        "none. A maximum that overrides the settings of which this is one goes first",
        default=0,
    )
    min_new_tokens: int = _length(
        INTEGER, "the same, the prompt excluded; it overrides `min_length`"
    )
    do_sample: bool = _strategy(
        FLAG, "draw tokens at random, rather than take the likeliest", default=False
    )
    num_beams: int = _strategy(
        POSITIVE, "how many continuations of a row are searched; 1 is no search", default=1
    )
    num_return_sequences: int = _strategy(
        POSITIVE, "how many of them, or how many samples, to return", default=1
    )
    early_stopping: bool | str = _search(
        _EARLY_STOPPING,
        "end the search of a row when it has `num_beams` ended ones (True), when better "
        'ones are unlikely (False), or impossible ("never")',
        default=False,
    )
    length_penalty: float = _search(
        NUMBER, "beams rank by log-probability over length to this power", default=1.0
    )
    num_beam_groups: int = _search(
        POSITIVE,
        "how many groups the beams are divided into, for diverse answers: in each step, a "
        "group avoids the tokens that the groups before it have chosen",
        default=1,
    )
    diversity_penalty: float = _search(
        _NOT_NEGATIVE,
        "with groups, what is subtracted from the score of a token for each beam of a "
        "group before that has chosen it; above 0, and after `sequence_bias`",
        default=0.0,
    )
    prompt_lookup_num_tokens: int | None = _drafts(
        POSITIVE,
        "how many tokens are drafted: those that came after the row's last tokens in the "
        "source, or in the row. A draft that is right saves a step",
    )
    max_matching_ngram_size: int = _drafts(
        POSITIVE, "how many of the last tokens are looked up, at most", default=3
    )
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = _scores(
        BIASES,
        "what is added to the score of the last token of each sequence, where the others "
        "come before it: pairs of token ids and a number",
    )
    encoder_repetition_penalty: float = _scores(
        ABOVE_ZERO, "above 1, favours the tokens of the source", default=1.0
    )
    repetition_penalty: float = _scores(
        ABOVE_ZERO, "above 1, disfavours the tokens of the row itself", default=1.0
    )
    no_repeat_ngram_size: int = _scores(
        COUNT, "no n-gram of this size in the row comes up again; 0 is none", default=0
    )
    encoder_no_repeat_ngram_size: int = _scores(
        COUNT, "no n-gram of this size in the source comes up; 0 is none", default=0
    )
    bad_words_ids: tuple[tuple[int, ...], ...] | None = _scores(
        SEQUENCES, "sequences of token ids that may not come up"
    )
    forced_bos_token_id: int | None = _scores(
        TOKEN_ID, "the token that comes second, after the start"
    )
    forced_eos_token_id: int | tuple[int, ...] | None = _scores(
        TOKEN_ID_OR_IDS, "the token at `max_length`, if a row gets there"
    )
    remove_invalid_values: bool = _scores(
        FLAG, "replace NaN and infinity by finite scores", default=False
    )
    exponential_decay_length_penalty: tuple[int, float] | None = _scores(
        _DECAY,
        "a start and a factor; from the start on, the end is favoured, by a factor more "
        "each step",
    )
    suppress_tokens: tuple[int, ...] | None = _scores(
        TOKEN_IDS, "tokens that may not come up"
    )
    begin_suppress_tokens: tuple[int, ...] | None = _scores(
        TOKEN_IDS, "tokens that may not come up as the first"
    )
    renormalize_logits: bool = _scores(
        FLAG, "make the scores log-probabilities again, at last", default=False
    )
    temperature: float = _sampling(
        _TEMPERATURE, "what the scores are divided by", default=1.0
    )
    top_k: int = _sampling(
        COUNT, "keep this many of the likeliest tokens; 0 keeps all", default=50
    )
    top_p: float = _sampling(
        FRACTION,
        "keep the likeliest that have this probability together; 1 keeps all",
        default=1.0,
    )
    min_p: float = _sampling(
        FRACTION,
        "keep those with this share of the likeliest's probability; 0 keeps all",
        default=0.0,
    )
    typical_p: float = _sampling(
        POSITIVE_FRACTION,
        "keep the most typical that have this probability together; 1 keeps all",
        default=1.0,
    )
    epsilon_cutoff: float = _sampling(
        CUTOFF, "keep those that are likelier than this; 0 keeps all", default=0.0
    )
    eta_cutoff: float = _sampling(
        CUTOFF,
        "the same, with a lower bar where probability is spread; 0 keeps all",
        default=0.0,
    )
    decoder_start_token_id: int | None = _tokens(
        TOKEN_ID, "the first token of the result; `bos_token_id` by default"
    )
    bos_token_id: int | None = _tokens(
        TOKEN_ID, "the first token, unless `decoder_start_token_id` is set"
    )
    eos_token_id: int | tuple[int, ...] | None = _tokens(
        TOKEN_ID_OR_IDS, "the token, or tokens, that end a row"
    )
    pad_token_id: int = _tokens(
        _TOKEN_ID_OR_NONE,
        "what fills a row after its end; by default, and where it is negative, the first "
        "`eos_token_id`",
    )
    output_scores: bool = _results(
        FLAG, "what each step has chosen from, as `scores`", default=False
    )
    output_logits: bool = _results(
        FLAG, "the same before all processors, as `logits`", default=False
    )
    output_token_log_probs: bool = _results(
        FLAG, "the log-probability of each new token, as `token_log_probs`", default=False
    )
    output_attentions: bool = _results(
        FLAG, "the decoder's attention to the source, as `cross_attentions`", default=False
    )
    output_cache: bool = _results(
        FLAG,
        "what another call may continue from, as `cache`; without beams",
        default=False,
    )
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    origins: Mapping[str, str] = dataclasses.field(
        default_factory=dict, hash=False, compare=False, repr=False
    )

    def __post_init__(self):
        if isinstance(self.sequence_bias, Mapping):
            object.__setattr__(self, "sequence_bias", tuple(self.sequence_bias.items()))
        plain_fields(self)
        object.__setattr__(self, "extra", copy.deepcopy(dict(self.extra)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerationConfig":
        """Builds a config from the contents of a `generation_config.json`."""
        names = settings_of(cls)
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
        # In `config.json` these two are about what a call of the model returns.
        names = cls._names() - {"output_attentions", "output_hidden_states"}
        return cls.from_dict({k: v for k, v in values.items() if k in names})

    def to_dict(self) -> dict[str, Any]:
        """The contents of this config's `generation_config.json`."""
        return {name: as_lists(v) for name, v in self._set().items()} | dict(self.extra)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, **hub: Unpack[HubOptions]
    ) -> "GenerationConfig":
        """Reads `generation_config.json`.

        The arguments are those of `BartConfig.from_pretrained`, without fields to change.

        **Raises** as it does.
        """
        path = locate(path, weights=False, **hub)
        values = read_json(path, "generation_config.json")
        try:
            return cls.from_dict(values)
        except Exception as error:
            raise CheckpointError(f"generation_config.json at {path}: {error}") from error

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `generation_config.json` into `directory`, which is made if needed."""
        write_json(Path(directory), "generation_config.json", self.to_dict())

    def updated(
        self, other: "GenerationConfig | None", overrides: dict[str, Any]
    ) -> "GenerationConfig":
        """These settings, overridden by those that `other` sets, then by `overrides`.

        A length in tokens replaces one in new tokens, and the other way round.

        **Raises** `TypeError` if an override is not a setting of HF's.
        """
        if unknown := overrides.keys() - self._names():
            name = min(unknown)
            hint = answer(name) or nearest(name, self._names())
            raise TypeError(f"generate has no argument or setting {name!r}{hint}")
        values, origins = self.to_dict(), dict(self.origins)
        for update, origin in (
            ({} if other is None else other.to_dict(), _GIVEN_CONFIG),
            (overrides, _ARGUMENT),
        ):
            for total, new in (
                ("max_length", "max_new_tokens"),
                ("min_length", "min_new_tokens"),
            ):
                if update.get(total) is not None:
                    values.pop(new, None)
                elif update.get(new) is not None:
                    values.pop(total, None)
            values |= update
            origins |= dict.fromkeys(update, origin)
        return dataclasses.replace(type(self).from_dict(values), origins=origins)

    def changed(
        self, other: "GenerationConfig | None", overrides: dict[str, Any]
    ) -> "GenerationConfig":
        """These settings, `updated` for good: a model's own, for calls to come."""
        new = self.updated(other, overrides)
        origins = dict.fromkeys(new.origins, _CHANGED)
        return dataclasses.replace(new, origins=origins)

    @classmethod
    def _names(cls) -> set[str]:
        """The names of all of HF's settings that are known here."""
        return {*settings_of(cls), *_OTHERS}

    @property
    def start_token_id(self) -> int:
        """The token that a decoder starts with.

        **Raises** `ValueError` if there is none.
        """
        for token_id in (self.decoder_start_token_id, self.bos_token_id):
            if token_id is not None:
                return token_id
        raise ValueError(
            "generate needs decoder_start_token_id or bos_token_id, and has neither."
        )

    def settled(
        self, prompt_length: int, vocab_size: int, max_positions: int
    ) -> "GenerationConfig":
        """These settings, with every open one decided, and those that are not used at their
        defaults.

        Lengths are then those of the new tokens alone, so that the settings are the same
        for longer prompts.

        **Arguments:**

        - `prompt_length`: the length of the prompt, in tokens.
        - `vocab_size`, `max_positions`: the model's numbers of tokens and positions.

        **Raises** `ValueError` if a setting that is used is impossible, does not fit the
        model, contradicts another, or is one that `generate` does not have.
        """
        self._refuse_unsupported()
        values = self._used(self._defaults() | self._set())
        self._check_used(values, vocab_size)
        self._check_contradictions(values)
        most = self._max_new_tokens(prompt_length, max_positions)
        least = self._min_new_tokens(prompt_length, most)
        values |= {"max_new_tokens": most, "min_new_tokens": least}
        values |= {"max_length": None, "min_length": None}
        if values.get("pad_token_id", -1) < 0:
            values["pad_token_id"] = next(iter(as_id_tuple(self.eos_token_id)), 0)
        return type(self)(**values)

    def _set(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in settings_of(type(self))}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        values = {name: declared.default for name, declared in settings_of(cls).items()}
        return {name: value for name, value in values.items() if value is not None}

    def _used(self, values: dict[str, Any]) -> dict[str, Any]:
        """The settings that are used, and the defaults of the others."""
        settings = settings_of(type(self))
        for name in _DECISIVE:
            check_setting(self, name, settings[name], self._origin(name))
        return {
            name: value if settings[name].is_used(values) else settings[name].default
            for name, value in values.items()
        }

    def _check_used(self, values: dict[str, Any], vocab_size: int) -> None:
        for name, declared in settings_of(type(self)).items():
            if not declared.is_used(values) or name not in values:
                continue
            check_setting(self, name, declared, self._origin(name))
            for token_id in declared.kind.token_ids(values[name]):
                if token_id >= vocab_size:
                    raise ValueError(
                        f"GenerationConfig: {name}={token_id}{self._origin(name)} is "
                        f"outside the vocabulary of {vocab_size}."
                    )

    def _check_contradictions(self, values: dict[str, Any]) -> None:
        several, beams = values["num_return_sequences"], values["num_beams"]
        if several > beams > 1:
            raise ValueError(
                f"GenerationConfig: {self._said('num_return_sequences')} is more than "
                f"{self._said('num_beams')}."
            )
        if several > 1 and beams == 1 and not values["do_sample"]:
            raise ValueError(
                f"GenerationConfig: {self._said('num_return_sequences')}, but greedy "
                "search has one answer. Set num_beams or do_sample."
            )
        if values["output_cache"] and max(several, beams) > 1:
            name = "num_beams" if beams > 1 else "num_return_sequences"
            raise ValueError(
                f"GenerationConfig: {self._said('output_cache')}, but a cache has one row "
                f"for each input, and {self._said(name)}."
            )
        if beams > 1 and values.get("prompt_lookup_num_tokens"):
            raise ValueError(
                f"GenerationConfig: {self._said('prompt_lookup_num_tokens')}, but drafts "
                f"are tried without beams, and {self._said('num_beams')}. Set one of them "
                "to None or 1."
            )
        if beams > 1:
            self._check_groups(values)
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = set(as_id_tuple(getattr(self, name)))
            if forced and forced <= set(self.suppress_tokens or ()):
                raise ValueError(
                    f"GenerationConfig: {self._said('suppress_tokens')} has all of "
                    f"{self._said(name)}."
                )

    def _check_groups(self, values: dict[str, Any]) -> None:
        groups, penalty = values["num_beam_groups"], values["diversity_penalty"]
        if (groups > 1) != (penalty > 0):
            raise ValueError(
                f"GenerationConfig: num_beam_groups={groups}, and diversity_penalty="
                f"{penalty}. Groups search apart by a penalty above 0, and it is between "
                "groups: set both, or neither."
            )
        if values["num_beams"] % groups:
            raise ValueError(
                f"GenerationConfig: {self._said('num_beams')} cannot be divided into "
                f"{self._said('num_beam_groups')} groups of the same size."
            )
        if groups > 1 and values["do_sample"]:
            raise ValueError(
                f"GenerationConfig: {self._said('num_beam_groups')}, but groups search for "
                f"the likeliest tokens, and {self._said('do_sample')} draws them."
            )

    def _said(self, name: str) -> str:
        """A setting and its value, for a message, and where the value is from."""
        return f"{name}={getattr(self, name)!r}{self._origin(name)}"

    def _origin(self, name: str) -> str:
        """Where a value is from, for a message, if values are from more than one place."""
        return f" ({self.origins.get(name, _OWN)})" if self.origins else ""

    def _refuse_unsupported(self) -> None:
        values = {k: v for k, v in self.extra.items() if k in NEUTRAL and v is not None}
        refused = {k: v for k, v in values.items() if v not in NEUTRAL[k]}
        if refused:
            given = ", ".join(f"{k}={v!r}" for k, v in refused.items())
            without = ", ".join(f"{k}={next(iter(NEUTRAL[k]), None)!r}" for k in refused)
            raise ValueError(
                f"generate does not support {given} and will not ignore it: pass {without} "
                "to do without."
            )

    def _max_new_tokens(self, prompt_length: int, max_positions: int) -> int:
        limit = max_positions + 1  # the last token is not read, and needs no position
        default = min(prompt_length + _DEFAULT_NEW_TOKENS, max_positions)
        values = {"max_length": default} | self._set()
        max_length = values["max_length"]
        if "max_new_tokens" in values:
            max_length = prompt_length + values["max_new_tokens"]
        if not prompt_length < max_length <= limit:
            raise ValueError(
                f"generate would make {max_length} tokens from a start of {prompt_length}: "
                f"max_length{self._origin('max_length')} must be more than that, and at "
                f"most one more than the max_position_embeddings={max_positions} of the "
                "model."
            )
        return max_length - prompt_length

    def _min_new_tokens(self, prompt_length: int, max_new_tokens: int) -> int:
        """The minimum, as far as the maximum allows: it is a contradiction only if the
        minimum is not older than the maximum."""
        values = {"min_length": 0} | self._set()
        name, least = "min_length", values["min_length"] - prompt_length
        if "min_new_tokens" in values:
            name, least = "min_new_tokens", values["min_new_tokens"]
        most = "max_new_tokens" if "max_new_tokens" in values else "max_length"
        ages = [self._age(name), self._age(most)]
        if least > max_new_tokens and ages[0] <= ages[1]:
            limit = self._said(most) if most in values else "the default"
            raise ValueError(
                f"GenerationConfig: {self._said(name)} is more than {limit} allows: "
                f"{max_new_tokens} new tokens."
            )
        return min(max(least, 0), max_new_tokens)

    def _age(self, name: str) -> int:
        """How often the settings have been overridden since this one was set."""
        return _ORIGINS.index(self.origins.get(name, _OWN))
