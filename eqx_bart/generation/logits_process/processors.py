"""Which processors the settings ask for, in HF's order."""

from collections.abc import Iterator, Sequence

from jaxtyping import Integer

from ...config import as_id_tuple
from ...nn.checks import ArrayLike
from ..config import GenerationConfig
from .base import LogitsProcessor
from .context import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)
from .diversity import HammingDiversityLogitsProcessor
from .place import (
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    MinLengthLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from .warpers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


def logits_processors(
    config: GenerationConfig,
    prompt_length: int,
    encoder_input_ids: Integer[ArrayLike, "batch source"] | None,
    custom: Sequence[LogitsProcessor] = (),
) -> tuple[LogitsProcessor, ...]:
    """The processors that the settings ask for.

    **Arguments:**

    - `config`: the settings; see `GenerationConfig.settled`.
    - `prompt_length`: the length of the prompt, padding included.
    - `encoder_input_ids`: the source, where padding is -1.
    - `custom`: the user's own, which come before the warpers.

    **Raises** `ValueError` if a setting needs `encoder_input_ids` and there are none.

    Source: HF's `GenerationMixin._get_logits_processor`, whose order this is.
    """
    processors = [
        *_context_processors(config, encoder_input_ids),
        *_place_processors(config, prompt_length),
        *custom,
    ]
    if config.do_sample:
        processors += _warpers(config)
    if config.renormalize_logits:
        processors.append(LogitNormalization())
    return tuple(processors)


def _context_processors(
    config: GenerationConfig, encoder_input_ids: Integer[ArrayLike, "batch source"] | None
) -> Iterator[LogitsProcessor]:
    """Those that depend on the tokens of the row, or of the source."""
    if config.sequence_bias:
        yield SequenceBiasLogitsProcessor(config.sequence_bias)
    if config.num_beam_groups > 1:
        yield HammingDiversityLogitsProcessor(config.diversity_penalty)
    if config.encoder_repetition_penalty != 1:
        source = _needed(encoder_input_ids, "encoder_repetition_penalty")
        yield EncoderRepetitionPenaltyLogitsProcessor(
            config.encoder_repetition_penalty, source
        )
    if config.repetition_penalty != 1:
        yield RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
    if config.no_repeat_ngram_size:
        yield NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)
    if config.encoder_no_repeat_ngram_size:
        source = _needed(encoder_input_ids, "encoder_no_repeat_ngram_size")
        yield EncoderNoRepeatNGramLogitsProcessor(
            config.encoder_no_repeat_ngram_size, source
        )
    # A word that is just the end of sequence is allowed, as in HF.
    ends = {(token,) for token in as_id_tuple(config.eos_token_id)}
    if words := [word for word in config.bad_words_ids or () if word not in ends]:
        yield SequenceBiasLogitsProcessor(tuple((word, -float("inf")) for word in words))


def _place_processors(
    config: GenerationConfig, prompt_length: int
) -> Iterator[LogitsProcessor]:
    """Those that depend on how long the row is."""
    eos = as_id_tuple(config.eos_token_id)
    if config.min_new_tokens and eos:
        yield MinLengthLogitsProcessor(prompt_length + config.min_new_tokens, eos)
    if config.forced_bos_token_id is not None:
        yield ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id)
    if forced := as_id_tuple(config.forced_eos_token_id):
        yield ForcedEOSTokenLogitsProcessor(prompt_length + config.max_new_tokens, forced)
    if config.remove_invalid_values:
        yield InfNanRemoveLogitsProcessor()
    if config.exponential_decay_length_penalty and eos:
        start, factor = config.exponential_decay_length_penalty
        yield ExponentialDecayLengthPenalty(prompt_length + start, factor, eos)
    if config.suppress_tokens:
        yield SuppressTokensLogitsProcessor(config.suppress_tokens)
    if config.begin_suppress_tokens:
        yield SuppressTokensAtBeginLogitsProcessor(
            config.begin_suppress_tokens,
            prompt_length,
            config.forced_bos_token_id is not None,
        )


def _warpers(config: GenerationConfig) -> Iterator[LogitsProcessor]:
    # Beam search needs a token that does not end the row.
    keep = 1 if config.num_beams == 1 else 1 + max(1, len(as_id_tuple(config.eos_token_id)))
    yield TemperatureLogitsWarper(config.temperature)
    if config.top_k:
        yield TopKLogitsWarper(config.top_k, min_tokens_to_keep=keep)
    if config.top_p < 1:
        yield TopPLogitsWarper(config.top_p, min_tokens_to_keep=keep)
    if config.min_p:
        yield MinPLogitsWarper(config.min_p, min_tokens_to_keep=keep)
    if config.typical_p < 1:
        yield TypicalLogitsWarper(config.typical_p, min_tokens_to_keep=keep)
    if config.epsilon_cutoff:
        yield EpsilonLogitsWarper(config.epsilon_cutoff, min_tokens_to_keep=keep)
    if config.eta_cutoff:
        yield EtaLogitsWarper(config.eta_cutoff, min_tokens_to_keep=keep)


def _needed(
    encoder_input_ids: Integer[ArrayLike, "batch source"] | None, name: str
) -> Integer[ArrayLike, "batch source"]:
    if encoder_input_ids is None:
        raise ValueError(f"{name} needs the input_ids, beside the encoder_outputs.")
    return encoder_input_ids
