"""Logits processors: what changes the scores of the next token before it is chosen.

Those that only sampling uses are called warpers, as in HF, whose classes these are, under
their names and in their order. Each costs a pass over the vocabulary at most.
"""

import abc
from collections.abc import Iterable, Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ..config import as_id_tuple
from .config import GenerationConfig
from .top_k import top_k


Scores = Float[Array, "rows vocab"]
Tokens = Integer[Array, "rows max_length"]


class LogitsProcessor(eqx.Module):
    """The base of all processors. Subclass it for one of your own."""

    @abc.abstractmethod
    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        """The scores of the next token, changed.

        **Arguments:**

        - `input_ids`: the rows so far, the prompt first; a beam, or a sample, is a row,
            and those of one input follow one another. Padding of the prompt is -1. Only
            the first `length` places count.
        - `scores`: logits, or log-probabilities for beams; float32 or better.
        - `length`: how many places are decided, the same for all rows.
        """


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Adds a bias to the token that would complete a sequence."""

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        by_length: dict[int, dict[tuple[int, ...], float]] = {}
        for sequence, bias in self.sequence_bias:
            by_length.setdefault(len(sequence) - 1, {})[sequence] = bias
        result = scores
        for size, group in by_length.items():
            if size <= input_ids.shape[1]:
                sequences = jnp.asarray(list(group), jnp.int32)
                biases = jnp.asarray(list(group.values()), scores.dtype)
                suffix = _suffix(input_ids, length, size)[:, None]
                is_match = jnp.all(suffix == sequences[:, :-1], axis=-1) & (length >= size)
                biases = jnp.where(is_match, biases, 0)
                result = result.at[:, sequences[:, -1]].add(biases)
        return result


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Favours the tokens of the source, which `encoder_input_ids` are, padding being -1."""

    penalty: float = eqx.field(static=True)
    encoder_input_ids: Integer[Array, "batch source"]

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _penalise(scores, _per_row(self.encoder_input_ids, scores), 1 / self.penalty)


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Disfavours the tokens that a row has already. Source: arXiv:1909.05858."""

    penalty: float = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_decided = jnp.arange(input_ids.shape[1]) < length
        return _penalise(scores, jnp.where(is_decided, input_ids, -1), self.penalty)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids n-grams that a row has already."""

    ngram_size: int = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_decided = jnp.arange(input_ids.shape[1]) < length
        history = jnp.where(is_decided, input_ids, -1)
        return _forbid_ngrams(scores, history, input_ids, length, self.ngram_size)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids n-grams of the source; see `EncoderRepetitionPenaltyLogitsProcessor`."""

    ngram_size: int = eqx.field(static=True)
    encoder_input_ids: Integer[Array, "batch source"]

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        history = _per_row(self.encoder_input_ids, scores)
        return _forbid_ngrams(scores, history, input_ids, length, self.ngram_size)


class MinLengthLogitsProcessor(LogitsProcessor):
    """Keeps a row from ending before it has `min_length` tokens."""

    min_length: int = eqx.field(static=True)
    eos_token_id: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _forbid(scores, self.eos_token_id, when=length < self.min_length)


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Keeps rows to a set of sequences: where HF calls a `prefix_allowed_tokens_fn` at
    each step, this walks a trie that is made once.

    **Fields:** the trie's edges, in the order of the nodes they leave and of their tokens.
    Node 0 is the root.

    - `starts`: for each node the first of its edges; the last entry is the end.
    - `tokens`, `targets`: the token of each edge, and the node it leads to.
    - `max_children`: the largest number of edges that leave one node.
    """

    starts: Integer[Array, " nodes+1"]
    tokens: Integer[Array, " edges"]
    targets: Integer[Array, " edges"]
    max_children: int = eqx.field(static=True)

    def __init__(
        self, sequences: Iterable[Iterable[int | np.integer]], prompt: Sequence[int] = ()
    ):
        """Makes the trie.

        **Arguments:**

        - `sequences`: the token ids of each allowed answer, its end of sequence included;
            behind the end of a sequence that has none, everything is allowed.
        - `prompt`: what stands before each answer, as a rule the model's
            `decoder_start_token_id` alone.

        **Raises** `ValueError` if there is no sequence, or an empty one, or a negative id.
        """
        children: list[dict[int, int]] = [{}]
        for sequence in sequences:
            answer = [int(token) for token in sequence]
            if not answer or min(answer) < 0:
                raise ValueError(
                    "PrefixConstrainedLogitsProcessor: a sequence needs token ids, 0 or "
                    f"more; one is {answer}."
                )
            node = 0
            for token in (*prompt, *answer):
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
        if not children[0]:
            raise ValueError("PrefixConstrainedLogitsProcessor: there are no sequences.")
        edges = [edge for node in children for edge in sorted(node.items())]
        counts = [len(node) for node in children]
        self.starts = jnp.asarray(np.cumsum([0, *counts]), jnp.int32)
        self.tokens = jnp.asarray([token for token, _ in edges], jnp.int32)
        self.targets = jnp.asarray([target for _, target in edges], jnp.int32)
        self.max_children = max(counts)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        node = self._walk(input_ids, length)
        first, end = self.starts[node], self.starts[node + 1]
        edge = first[:, None] + jnp.arange(self.max_children)
        is_edge = edge < end[:, None]
        token = self.tokens.at[edge].get(mode="fill", fill_value=0)
        token = jnp.where(is_edge, token, scores.shape[1])
        rows = jnp.arange(len(scores))[:, None]
        kept = scores.at[rows, token].get(mode="fill", fill_value=0)
        allowed = jnp.full_like(scores, -jnp.inf).at[rows, token].set(kept, mode="drop")
        return jnp.where((node < 0)[:, None] | (first == end)[:, None], scores, allowed)

    def _walk(
        self, input_ids: Tokens, length: Integer[Array, ""]
    ) -> Integer[Array, " rows"]:
        """The node that each row stands at; -1 if its sequence is over."""

        def down(i: Integer[Array, ""], node: Integer[Array, " rows"]) -> Array:
            token = input_ids[:, i]
            first, end = self.starts[node], self.starts[node + 1]
            edge = self._search(token, first, end)
            is_edge = (node >= 0) & (edge < end) & (self.tokens[edge] == token)
            target = jnp.where(is_edge, self.targets[edge], -1)
            return jnp.where(token < 0, node, target)

        root = jnp.zeros(len(input_ids), jnp.int32)
        return jax.lax.fori_loop(0, length, down, root)

    def _search(
        self,
        token: Integer[Array, " rows"],
        low: Integer[Array, " rows"],
        high: Integer[Array, " rows"],
    ) -> Integer[Array, " rows"]:
        """The first edge in `[low, high)` with this token or a larger one, or `high`."""
        for _ in range(self.max_children.bit_length()):
            middle = (low + high) // 2
            is_right = (low < high) & (self.tokens[middle] < token)
            low, high = (
                jnp.where(is_right, middle + 1, low),
                jnp.where(is_right, high, jnp.maximum(middle, low)),
            )
        return low


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Makes `bos_token_id` the second token of each row."""

    bos_token_id: int = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _force(scores, (self.bos_token_id,), when=_count(input_ids, length) == 1)


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Makes one of `eos_token_id` the last token of a row of `max_length`."""

    max_length: int = eqx.field(static=True)
    eos_token_id: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _force(scores, self.eos_token_id, when=length == self.max_length - 1)


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Makes NaN 0, and infinities the largest and smallest finite scores."""

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return jnp.nan_to_num(scores)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Favours the end of a row behind `start`, by a `factor` more with each token."""

    start: int = eqx.field(static=True)
    factor: float = eqx.field(static=True)
    eos_token_id: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        columns = jnp.asarray(self.eos_token_id)
        eos = scores[:, columns]
        excess = jnp.maximum(length - self.start, 0)
        bonus = jnp.abs(eos) * (jnp.asarray(self.factor, eos.dtype) ** excess - 1)
        return scores.at[:, columns].add(jnp.where(jnp.isfinite(eos), bonus, 0))


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbids tokens."""

    suppress_tokens: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return _forbid(scores, self.suppress_tokens, when=True)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbids tokens at the place `begin_index`; in rows whose second token is forced, if
    that comes before it, at the place behind that."""

    begin_suppress_tokens: tuple[int, ...] = eqx.field(static=True)
    begin_index: int = eqx.field(static=True)
    is_bos_forced: bool = eqx.field(static=True, default=False)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        begin_index = jnp.asarray(self.begin_index)
        if self.is_bos_forced:
            begin_index += _count(input_ids, begin_index) == 1
        return _forbid(scores, self.begin_suppress_tokens, when=length == begin_index)


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores by `temperature`."""

    temperature: float = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return scores / self.temperature


class TopKLogitsWarper(LogitsProcessor):
    """Keeps the `top_k` likeliest tokens, and what is as likely as the last of them."""

    top_k: int = eqx.field(static=True)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return jnp.where(_is_among_top(scores, self.top_k), scores, -jnp.inf)


class TopPLogitsWarper(LogitsProcessor):
    """Keeps the likeliest tokens that have the probability `top_p` together, and what is
    as likely as the last of them. Source: arXiv:1904.09751."""

    top_p: float = eqx.field(static=True)
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_kept = _are_first(-scores, jax.nn.softmax(scores), self.top_p)
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep)


class MinPLogitsWarper(LogitsProcessor):
    """Keeps the tokens with a share of `min_p` in the likeliest one's probability.
    Source: arXiv:2407.01082."""

    min_p: float = eqx.field(static=True)
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        probabilities = jax.nn.softmax(scores)
        top = jnp.max(probabilities, axis=-1, keepdims=True)
        is_kept = probabilities >= self.min_p * top
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep)


class TypicalLogitsWarper(LogitsProcessor):
    """Keeps the tokens whose information is the closest to the entropy and that have the
    probability `mass` together. Source: arXiv:2202.00666."""

    mass: float = eqx.field(static=True)
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        log_probs = jax.nn.log_softmax(scores)
        surprise = jnp.abs(-log_probs - _entropy(log_probs))
        is_kept = _are_first(surprise, jnp.exp(log_probs), self.mass)
        return _keep(scores, is_kept, -surprise, self.min_tokens_to_keep)


class EpsilonLogitsWarper(LogitsProcessor):
    """Keeps the tokens of a probability of `epsilon` or more. Source: arXiv:2210.15191."""

    epsilon: float = eqx.field(static=True)
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        is_kept = jax.nn.softmax(scores) >= self.epsilon
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep)


class EtaLogitsWarper(LogitsProcessor):
    """`EpsilonLogitsWarper`, with less to keep where the entropy is high.
    Source: arXiv:2210.15191."""

    epsilon: float = eqx.field(static=True)
    min_tokens_to_keep: int = eqx.field(static=True, default=1)

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        log_probs = jax.nn.log_softmax(scores)
        eta = self.epsilon**0.5 * jnp.exp(-_entropy(log_probs))
        is_kept = jnp.exp(log_probs) >= jnp.minimum(self.epsilon, eta)
        return _keep(scores, is_kept, scores, self.min_tokens_to_keep)


class LogitNormalization(LogitsProcessor):
    """Makes the scores log-probabilities."""

    def __call__(
        self, input_ids: Tokens, scores: Scores, length: Integer[Array, ""]
    ) -> Scores:
        return jax.nn.log_softmax(scores)


def logits_processors(
    config: GenerationConfig,
    prompt_length: int,
    encoder_input_ids: Integer[Array, "batch source"] | None,
    custom: Sequence[LogitsProcessor] = (),
) -> tuple[LogitsProcessor, ...]:
    """The processors that settled settings ask for, `custom` ones before the warpers.

    The order is that of HF's `GenerationMixin._get_logits_processor`.

    **Raises** `ValueError` if a setting needs `encoder_input_ids` and there are none.
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
    config: GenerationConfig, encoder_input_ids: Integer[Array, "batch source"] | None
) -> Iterator[LogitsProcessor]:
    """Those that go by the tokens in the row, or in the source."""
    if config.sequence_bias:
        yield SequenceBiasLogitsProcessor(config.sequence_bias)
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
    # A word that is no more than the end of sequence is allowed, as in HF.
    ends = {(token,) for token in as_id_tuple(config.eos_token_id)}
    if words := [word for word in config.bad_words_ids or () if word not in ends]:
        yield SequenceBiasLogitsProcessor(tuple((word, -float("inf")) for word in words))


def _place_processors(
    config: GenerationConfig, prompt_length: int
) -> Iterator[LogitsProcessor]:
    """Those that go by how long the row is."""
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
    if config.temperature != 1:
        yield TemperatureLogitsWarper(config.temperature)
    if config.top_k:
        yield TopKLogitsWarper(max(config.top_k, keep))
    if config.top_p < 1:
        yield TopPLogitsWarper(config.top_p, keep)
    if config.min_p:
        yield MinPLogitsWarper(config.min_p, keep)
    if config.typical_p < 1:
        yield TypicalLogitsWarper(config.typical_p, keep)
    if config.epsilon_cutoff:
        yield EpsilonLogitsWarper(config.epsilon_cutoff, keep)
    if config.eta_cutoff:
        yield EtaLogitsWarper(config.eta_cutoff, keep)


def _needed(
    encoder_input_ids: Integer[Array, "batch source"] | None, name: str
) -> Integer[Array, "batch source"]:
    if encoder_input_ids is None:
        raise ValueError(f"{name} needs the input_ids, beside the encoder_outputs.")
    return encoder_input_ids


def _forbid(
    scores: Scores,
    token_ids: tuple[int, ...],
    *,
    when: bool | Bool[Array, "#rows #one"] | Bool[Array, ""],
) -> Scores:
    columns = jnp.asarray(token_ids)
    kept = jnp.where(when, -jnp.inf, scores[:, columns])
    return scores.at[:, columns].set(kept)


def _force(
    scores: Scores,
    token_ids: tuple[int, ...],
    *,
    when: Bool[Array, "#rows #one"] | Bool[Array, ""],
) -> Scores:
    forced = jnp.full_like(scores[0], -jnp.inf).at[jnp.asarray(token_ids)].set(0)
    return jnp.where(when, forced, scores)


def _count(input_ids: Tokens, length: Integer[Array, ""]) -> Integer[Array, "rows 1"]:
    """How many of the first `length` places are no padding."""
    is_token = (input_ids >= 0) & (jnp.arange(input_ids.shape[1]) < length)
    return jnp.sum(is_token, axis=1, keepdims=True)


def _per_row(
    values: Integer[Array, "batch source"], scores: Scores
) -> Integer[Array, "rows source"]:
    """What belongs to each input, for each row of `scores`."""
    return jnp.repeat(values, len(scores) // len(values), axis=0)


def _places(scores: Scores, token_ids: Integer[Array, "rows ids"]) -> tuple[Array, Array]:
    """The index of tokens in `scores`, outside of it for negative ones."""
    token_ids = jnp.where(token_ids < 0, scores.shape[1], token_ids)
    return jnp.arange(len(scores))[:, None], token_ids


def _penalise(
    scores: Scores, token_ids: Integer[Array, "rows ids"], penalty: float
) -> Scores:
    """Divides the scores of the tokens by `penalty`; multiplies them, if negative."""
    places = _places(scores, token_ids)
    old = scores.at[places].get(mode="fill", fill_value=0)
    return scores.at[places].set(
        jnp.where(old < 0, old * penalty, old / penalty), mode="drop"
    )


def _suffix(
    input_ids: Tokens, length: Integer[Array, ""], size: int
) -> Integer[Array, "rows {size}"]:
    """The last `size` tokens, if there are as many."""
    return jax.lax.dynamic_slice_in_dim(input_ids, length - size, size, axis=1)


def _forbid_ngrams(
    scores: Scores,
    history: Integer[Array, "rows tokens"],
    input_ids: Tokens,
    length: Integer[Array, ""],
    size: int,
) -> Scores:
    """Forbids what would repeat an n-gram of `history`, where -1 stands in none."""
    num_windows = history.shape[1] - size + 1
    if num_windows < 1 or size > input_ids.shape[1]:
        return scores
    suffix = _suffix(input_ids, length, size - 1)
    is_repeated = jnp.broadcast_to(length >= size - 1, (len(history), num_windows))
    for i in range(size - 1):
        token = history[:, i : i + num_windows]
        is_repeated &= (token == suffix[:, i : i + 1]) & (token >= 0)
    forbidden = jnp.where(is_repeated, history[:, size - 1 :], -1)
    return scores.at[_places(scores, forbidden)].set(-jnp.inf, mode="drop")


def _keep(
    scores: Scores,
    is_kept: Bool[Array, "rows vocab"],
    merit: Float[Array, "rows vocab"],
    at_least: int,
) -> Scores:
    """The scores that are kept, and those of the `at_least` largest in `merit`."""
    return jnp.where(is_kept | _is_among_top(merit, at_least), scores, -jnp.inf)


def _is_among_top(scores: Scores, k: int) -> Bool[Array, "rows vocab"]:
    if k == 1:
        return scores == jnp.max(scores, axis=-1, keepdims=True)
    return scores >= top_k(scores, min(k, scores.shape[1]))[0][:, -1:]


def _entropy(log_probs: Scores) -> Float[Array, "rows 1"]:
    terms = jnp.where(jnp.isneginf(log_probs), 0, jnp.exp(log_probs) * log_probs)
    return -jnp.sum(terms, axis=-1, keepdims=True)


def _are_first(
    order: Float[Array, "rows vocab"], probabilities: Scores, mass: float
) -> Bool[Array, "rows vocab"]:
    """Whether all that comes before a token, in ascending `order`, has less than `mass`.

    The last such value of `order` is found by bisection, bit by bit, in a pass each:
    far less than to sort a vocabulary.
    """
    keys = _ordered_bits(order)
    num_bits = jnp.iinfo(keys.dtype).bits

    def before(bound: Integer[Array, "rows 1"]) -> Float[Array, "rows 1"]:
        return jnp.sum(jnp.where(keys < bound, probabilities, 0), axis=-1, keepdims=True)

    def set_bit(i: Integer[Array, ""], bound: Integer[Array, "rows 1"]) -> Array:
        trial = bound | (jnp.ones((), keys.dtype) << (num_bits - 1 - i).astype(keys.dtype))
        return jnp.where(before(trial) < mass, trial, bound)

    bound = jax.lax.fori_loop(0, num_bits, set_bit, jnp.zeros_like(keys[:, :1]))
    return keys <= bound


def _ordered_bits(x: Float[Array, "*shape"]) -> Integer[Array, "*shape"]:
    """Unsigned integers that stand in the order of the floats `x`."""
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, unsigned)
    sign = jnp.ones((), unsigned) << (8 * x.dtype.itemsize - 1)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)
