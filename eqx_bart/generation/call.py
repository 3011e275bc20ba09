"""A call of `generate`: what the user asked for, and what the compiled loop is given."""

import equinox as eqx
import numpy as np
from jaxtyping import Float, Integer, PRNGKeyArray

from ..nn.checks import ArrayLike
from ..nn.matmul import power_of_two
from ..nn.mesh import split
from ..settings import as_id_tuple
from .cache import GenerationCache
from .config import GenerationConfig
from .inputs import GenerationInputs
from .logits_process import logits_processors, LogitsProcessor
from .slots import Past


#: Shorter answers have buffers of this many steps.
_FEWEST_STEPS = 16


class LoopSettings(eqx.Module):
    """The settings that the loop reads, under HF's names.

    Numbers are arrays, and so operands of the compiled program: it is compiled for no other
    value of them. The other fields change the program.

    **Fields:**

    - `max_new_tokens`: where the loop ends.
    - `eos_token_id`, `pad_token_id`: as in `GenerationConfig`.
    - `length_penalty`: as there.
    - `penalties`: what scores are divided by after each number of new tokens, from 1 on:
        that number to the power `length_penalty`.
    - `num_rows`: how many beams or samples of each input there are.
    - `is_beam_search`: whether they are beams.
    - `num_return_sequences`, `num_beam_groups`, `early_stopping`, `output_scores`,
        `output_logits`, `output_token_log_probs`, `output_attentions`, `output_cache`,
        `max_matching_ngram_size`: as in `GenerationConfig`.
    - `prompt_lookup_num_tokens`: as there; 0 for no drafts.
    """

    max_new_tokens: Integer[ArrayLike, ""]
    eos_token_id: Integer[ArrayLike, " ends"]
    pad_token_id: Integer[ArrayLike, ""]
    length_penalty: Float[ArrayLike, ""]
    penalties: Float[ArrayLike, " steps"]
    num_rows: int = eqx.field(static=True)
    is_beam_search: bool = eqx.field(static=True)
    num_return_sequences: int = eqx.field(static=True)
    num_beam_groups: int = eqx.field(static=True)
    early_stopping: bool | str = eqx.field(static=True)
    output_scores: bool = eqx.field(static=True)
    output_logits: bool = eqx.field(static=True)
    output_token_log_probs: bool = eqx.field(static=True)
    output_attentions: bool = eqx.field(static=True)
    output_cache: bool = eqx.field(static=True)
    prompt_lookup_num_tokens: int = eqx.field(static=True)
    max_matching_ngram_size: int = eqx.field(static=True)

    def __init__(self, config: GenerationConfig, num_steps: int):
        """The settings of `config`, which is settled, for buffers of `num_steps` steps."""
        lengths = np.arange(1, num_steps + 1, dtype=np.float64)
        self.max_new_tokens = np.asarray(config.max_new_tokens, np.int32)
        self.eos_token_id = np.asarray(as_id_tuple(config.eos_token_id), np.int32)
        self.pad_token_id = np.asarray(config.pad_token_id, np.int32)
        self.length_penalty = np.asarray(config.length_penalty, float)
        self.penalties = lengths**config.length_penalty
        self.is_beam_search = config.num_beams > 1
        self.num_rows = max(config.num_beams, config.num_return_sequences)
        self.num_return_sequences = config.num_return_sequences
        self.num_beam_groups = config.num_beam_groups
        self.early_stopping = config.early_stopping
        self.output_scores = config.output_scores
        self.output_logits = config.output_logits
        self.output_token_log_probs = config.output_token_log_probs
        self.output_attentions = config.output_attentions
        self.output_cache = config.output_cache
        self.prompt_lookup_num_tokens = config.prompt_lookup_num_tokens or 0
        self.max_matching_ngram_size = config.max_matching_ngram_size

    @property
    def num_steps(self) -> int:
        """The size of the buffers, in new tokens."""
        return len(self.penalties)


class LoopInputs(eqx.Module):
    """What the compiled loop is given.

    **Fields:**

    - `inputs`: what generation starts from, before `encode_source`.
    - `settings`: what the loop reads of the settings.
    - `processors`: what changes the scores.
    - `key`: for sampling; `None` without it.
    - `past`: what a cache holds already; `None` without one.
    - `num_alike`: how many rows with the same tokens came before each one, for sampling,
        where that is not for the batch itself to say.
    - `num_unread`: how many tokens of the prompt, up to the last one but one, are not in
        the past.
    """

    inputs: GenerationInputs
    settings: LoopSettings = eqx.field(metadata=split())
    processors: tuple[LogitsProcessor, ...]
    key: PRNGKeyArray | None
    past: Past | None
    num_unread: int = eqx.field(static=True)
    num_alike: Integer[ArrayLike, " batch"] | None = None


class GenerationCall(eqx.Module):
    """A call of `generate` that has been checked.

    **Fields:**

    - `inputs`: what generation starts from, before `encode_source`.
    - `processors`: the user's own.
    - `key`: for sampling; `None` without it.
    - `config`: the settings; see `GenerationConfig.settled`.
    - `cache`: what to continue from; `None` without one.
    """

    inputs: GenerationInputs
    processors: tuple[LogitsProcessor, ...]
    key: PRNGKeyArray | None
    config: GenerationConfig
    cache: GenerationCache | None = None

    def exact(self) -> LoopInputs:
        """What the loop is given, in the shapes of this call."""
        past = None if self.cache is None else self.cache.past
        steps = self.config.max_new_tokens
        return self._loop_inputs(self.inputs, steps, past, self._num_unread())

    def in_usual_shapes(self, limit: int) -> LoopInputs:
        """What the loop is given, padded to shapes that many calls share. Sources and
        prompts, and buffers for answers, are no longer than `limit`, unless they are so
        in this call."""
        steps = usual_steps(self.config.max_new_tokens, limit)
        inputs = self.inputs.bucketed(limit)
        most = inputs.prompt.shape[1] - 1
        if self.cache is None:
            return self._loop_inputs(inputs, steps, None, most)
        num_unread = self._num_unread()
        if num_unread:
            num_unread = min(power_of_two(num_unread), most)
        return self._loop_inputs(inputs, steps, self.cache.past.bucketed(), num_unread)

    def _num_unread(self) -> int:
        prompt = self.inputs.prompt
        return prompt.shape[1] - 1 if self.cache is None else self.cache.num_unread(prompt)

    def _loop_inputs(
        self, inputs: GenerationInputs, num_steps: int, past: Past | None, num_unread: int
    ) -> LoopInputs:
        padded_size, prompt_length = inputs.prompt.shape
        batch_size = len(self.inputs.prompt)
        custom = [p.for_batch(batch_size, padded_size) for p in self.processors]
        return LoopInputs(
            inputs,
            LoopSettings(self.config, num_steps),
            logits_processors(self.config, prompt_length, inputs.input_ids, custom),
            self.key,
            past,
            num_unread,
        )


def usual_steps(max_new_tokens: int, limit: int) -> int:
    """The size of buffers for so many tokens: a power of two, or one and a half of it."""
    usual = _FEWEST_STEPS
    while usual < max_new_tokens:
        usual = usual * 3 // 2 if usual & (usual - 1) == 0 else usual * 4 // 3
    return max(min(usual, limit), max_new_tokens)
