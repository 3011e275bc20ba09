"""`generate`, for all models that have a decoder and a language-modelling head."""

import abc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from ..cache import BartCache
from ..checkpoint.errors import CheckpointError
from ..checkpoint.pretrained import PretrainedModel
from ..config import BartConfig
from ..decoder import BartDecoder
from ..layers import Embedding
from .beam_search import BeamSearchState
from .config import GenerationConfig
from .inputs import align_right, GenerationInputs, is_traced
from .logits_process import logits_processors, LogitsProcessor
from .output import GenerationOutput
from .row_keys import row_keys
from .sample import SampleState
from .state import CrossAttentions, GenerationState, initial_fields


class GenerationCall(eqx.Module):
    """A call of `generate` that has been checked; `processors` are the user's own."""

    inputs: GenerationInputs
    processors: tuple[LogitsProcessor, ...]
    key: PRNGKeyArray | None
    config: GenerationConfig = eqx.field(static=True)


class GenerationMixin(PretrainedModel):
    """What generates tokens: `generate`, `stream`, and `init_generation` with `step`.

    Source: HF's `GenerationMixin`.
    """

    generation_config: eqx.AbstractVar[GenerationConfig]

    @property
    @abc.abstractmethod
    def _decoder(self) -> BartDecoder:
        """The decoder."""

    @property
    @abc.abstractmethod
    def _decoder_embed_tokens(self) -> Embedding:
        """The decoder's token embeddings."""

    @abc.abstractmethod
    def _logits(
        self, hidden_states: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        """The language-modelling head."""

    def _encoded(self, inputs: GenerationInputs) -> GenerationInputs:
        """The inputs, with the states of an encoder if there is one."""
        return inputs

    @abc.abstractmethod
    def _generation_call(self, *args: Any, **kwargs: Any) -> GenerationCall:
        """The checked form of the arguments of `generate`."""

    @classmethod
    def _read_settings(cls, directory: Path, config: BartConfig) -> dict[str, Any]:
        if (directory / "generation_config.json").is_file():
            return {"generation_config": GenerationConfig.from_pretrained(directory)}
        try:
            return {"generation_config": GenerationConfig.from_model_config(config)}
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"config.json at {directory}: {error}") from error

    def _write_settings(self, directory: Path) -> None:
        self.generation_config.save_pretrained(directory)

    def _checked_call(
        self,
        inputs: GenerationInputs,
        generation_config: GenerationConfig,
        logits_processors: Sequence[LogitsProcessor],
        key: PRNGKeyArray | None,
    ) -> GenerationCall:
        config = generation_config.settled(inputs.prompt.shape[1], self.config)
        if config.do_sample and key is None:
            raise ValueError(
                "do_sample=True draws at random and needs a key: pass key=...."
            )
        key = key if config.do_sample else None
        return GenerationCall(inputs, tuple(logits_processors), key, config)

    def _generate(self, call: GenerationCall) -> GenerationOutput:
        """Outside of `jit`, in shapes that many inputs share."""
        if is_traced(self, call):
            return self._run(call)
        usual = _in_usual_shapes(self, call)
        return _trimmed(self._run(usual), call, usual)

    @eqx.filter_jit
    def _run(self, call: GenerationCall) -> GenerationOutput:
        state = self._start(call)
        # A user's processor may hold what is no array.
        arrays, others = eqx.partition(state, eqx.is_array)

        def is_unfinished(arrays: Any) -> Bool[Array, ""]:
            return ~eqx.combine(arrays, others).is_done

        def step(arrays: Any) -> Any:
            return eqx.filter(self.step(eqx.combine(arrays, others)), eqx.is_array)

        end = jax.lax.while_loop(is_unfinished, step, arrays)
        return eqx.combine(end, others).output()

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[list[np.ndarray]]:
        """Generates as `generate` does, and yields tokens as soon as they are decided.

        The arguments are those of `generate`. Without beams each step decides a token
        for each row that has not ended; with beams, it decides what all beams that may
        still win have in common, so that a step may decide no token or several.

        **Yields**, step by step, for each row an array of its new token ids, which may be
        empty. Joined, they are the row's `sequences` behind the prompt and without
        padding.

        **Raises** as `generate` does, and `ValueError` inside `jit`, or with beams if
        `num_return_sequences` is more than 1.
        """
        call = self._generation_call(*args, **kwargs)
        if is_traced(self, call):
            raise ValueError("stream cannot run inside jit: use generate, or step.")
        config = call.config
        if config.num_beams > 1 and config.num_return_sequences > 1:
            raise ValueError(
                "stream gives the best beam alone: pass num_return_sequences=1, not "
                f"{config.num_return_sequences}."
            )
        return self._stream(call)

    def _stream(self, call: GenerationCall) -> Iterator[list[np.ndarray]]:
        num_rows = len(call.inputs.prompt) * call.config.num_return_sequences
        state = eqx.filter_jit(self._start)(_in_usual_shapes(self, call))
        step = eqx.filter_jit(self.step)
        yielded = [0] * num_rows
        while not state.is_done:
            state = step(state)
            decided = state.decided()[:num_rows]
            yield [row[n:] for row, n in zip(decided, yielded, strict=True)]
            yielded = [len(row) for row in decided]

    def init_generation(self, *args: Any, **kwargs: Any) -> GenerationState:
        """The state before the first step, for a loop of your own; see `step`.

        The arguments are those of `generate`. The source is encoded here.
        """
        return self._start(self._generation_call(*args, **kwargs))

    def step(self, state: GenerationState) -> GenerationState:
        """The state after one more token in each row.

        A pure function, to be called under `eqx.filter_jit` until `state.is_done`; then
        `state.output()` is what `generate` returns.
        """
        return state.step(self._decode)

    def _start(self, call: GenerationCall) -> GenerationState:
        if len(call.inputs.prompt) == 0:
            raise ValueError("The batch is empty: generation needs at least one row.")
        config, inputs = call.config, self._encoded(call.inputs)
        prompt = align_right(jnp.asarray(inputs.prompt))
        is_beam_search = config.num_beams > 1
        rows = config.num_beams if is_beam_search else config.num_return_sequences
        source = inputs.input_ids
        source = None if source is None else jnp.asarray(source)
        dtype = jnp.result_type(self._decoder_embed_tokens.weight.dtype, jnp.float32)
        fields = initial_fields(
            prompt,
            rows,
            self._prefilled_cache(prompt, rows * config.max_new_tokens, inputs),
            config,
            logits_processors(config, prompt.shape[1], source, call.processors),
            inputs.source_offset,
            self.config.vocab_size,
            dtype,
        )
        keys = None
        if call.key is not None:
            keys = row_keys(call.key, prompt, source)
        state = BeamSearchState if is_beam_search else SampleState
        return state.init(fields, dtype, keys)

    def _prefilled_cache(
        self,
        prompt: Integer[Array, "batch prompt"],
        num_slots: int,
        inputs: GenerationInputs,
    ) -> BartCache:
        """A cache with all but the last token of the prompt, and room for `num_slots`."""
        cross_attention = ()
        dtype = self._decoder_embed_tokens.weight.dtype
        if inputs.encoder_hidden_states is not None:
            states = jnp.asarray(inputs.encoder_hidden_states)
            cross_attention, dtype = self._decoder.cross_attention(states), states.dtype
        mask = inputs.encoder_attention_mask
        batch, length = prompt.shape
        cache = BartCache(
            self.config,
            batch,
            length - 1 + num_slots,
            cross_attention,
            None if mask is None else jnp.asarray(mask),
            dtype=dtype,
        )
        if length == 1:
            return cache
        tokens = prompt[:, :-1]
        positions = jnp.arange(length - 1) - jnp.argmax(prompt >= 0, axis=1)[:, None]
        causal = cache.mask_tokens(tokens >= 0).mask(length - 1)
        return self._extend(tokens, cache, jnp.maximum(positions, 0), causal)[1]

    def _decode(
        self,
        tokens: Integer[Array, "batch rows"],
        cache: BartCache,
        position_ids: Integer[Array, "batch rows"],
        mask: Bool[Array, "batch 1 rows slots"],
        output_attentions: bool,  # noqa: FBT001
    ) -> tuple[Float[Array, "batch rows vocab"], CrossAttentions | None, BartCache]:
        outputs, cache = self._extend(
            tokens, cache, position_ids, mask, output_attentions=output_attentions
        )
        logits = self._logits(outputs.last_hidden_state)
        dtype = jnp.result_type(logits.dtype, jnp.float32)
        return logits.astype(dtype), outputs.cross_attentions, cache

    def _extend(
        self,
        tokens: Integer[Array, "batch new"],
        cache: BartCache,
        position_ids: Integer[Array, "batch new"],
        mask: Bool[Array, "batch 1 new slots"],
        *,
        output_attentions: bool = False,
    ) -> Any:
        """`decode` for tokens and positions that are known to be inside their tables."""
        return self._decoder.extend(
            self._decoder_embed_tokens.lookup(jnp.maximum(tokens, 0)),
            self._decoder.embed_positions.lookup(position_ids),
            cache,
            mask,
            output_attentions=output_attentions,
        )


def _in_usual_shapes(model: GenerationMixin, call: GenerationCall) -> GenerationCall:
    limit = model.config.max_position_embeddings
    return eqx.tree_at(lambda call: call.inputs, call, call.inputs.bucketed(limit))


def _trimmed(
    output: GenerationOutput, call: GenerationCall, usual: GenerationCall
) -> GenerationOutput:
    """The output for `usual`, without what `call` does not have."""
    config = call.config
    batch, prompt_length = call.inputs.prompt.shape
    padding = usual.inputs.prompt.shape[1] - prompt_length
    rows = batch * config.num_return_sequences
    beams = batch * max(config.num_beams, config.num_return_sequences)
    source = call.inputs.source_length
    shapes = (jax.tree.map(np.shape, x.inputs) for x in (call, usual))
    if next(shapes) == next(shapes):
        return output

    def cut(x: Any, *slices: slice) -> Any:
        # By way of NumPy, since each shape would be another program.
        return None if x is None else jax.device_put(np.asarray(x)[slices])

    cross_attentions = output.cross_attentions
    return GenerationOutput(
        sequences=cut(output.sequences, slice(rows), slice(padding, None)),
        lengths=jax.device_put(np.asarray(output.lengths)[:rows] - padding),
        sequences_scores=cut(output.sequences_scores, slice(rows)),
        scores=cut(output.scores, slice(None), slice(beams)),
        logits=cut(output.logits, slice(None), slice(beams)),
        beam_indices=cut(output.beam_indices, slice(rows)),
        token_log_probs=cut(output.token_log_probs, slice(rows)),
        cross_attentions=None
        if cross_attentions is None
        else tuple(
            cut(x, slice(rows), slice(None), slice(None), slice(source))
            for x in cross_attentions
        ),
    )
