"""What the models return, under HF's class and field names.

A field that was not asked for, or that does not exist, is `None`. Shapes: hidden states
are `[batch, length, d_model]`, one for the embeddings and one for each layer; attention
weights are `[batch, heads, queries, keys]`, one for each layer. Anything else that your own
layers have to show is in `shown`, by name, with an entry for each layer.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..nn.mesh import ROWS, split, TENSOR
from ..nn.output import ModelOutput


HiddenStates = tuple[Float[Array, "batch _ d_model"], ...]
Attentions = tuple[Float[Array, "batch _ _ _"] | None, ...]
_BY_TOKEN = split(ROWS, None, TENSOR)
ShownByLayer = dict[str, tuple[Any, ...]]


class BaseModelOutput(ModelOutput):
    """What an encoder returns."""

    last_hidden_state: Float[Array, "batch length d_model"] = eqx.field(
        converter=jnp.asarray
    )
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    shown: ShownByLayer | None = None


class BaseModelOutputWithCrossAttentions(ModelOutput):
    """What a decoder returns."""

    last_hidden_state: Float[Array, "batch length d_model"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    cross_attentions: Attentions | None = None
    shown: ShownByLayer | None = None


class CausalLMOutputWithCrossAttentions(ModelOutput):
    """What a decoder with a language-modelling head returns."""

    logits: Float[Array, "batch length vocab"] = eqx.field(metadata=_BY_TOKEN)
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    cross_attentions: Attentions | None = None
    shown: ShownByLayer | None = None


class _Seq2SeqStates(ModelOutput):
    """The states that every encoder-decoder returns after its own results."""

    decoder_hidden_states: HiddenStates | None = None
    decoder_attentions: Attentions | None = None
    cross_attentions: Attentions | None = None
    encoder_last_hidden_state: Float[Array, "batch source d_model"] | None = None
    encoder_hidden_states: HiddenStates | None = None
    encoder_attentions: Attentions | None = None
    decoder_shown: ShownByLayer | None = None
    encoder_shown: ShownByLayer | None = None


class _LastHiddenState(ModelOutput):
    last_hidden_state: Float[Array, "batch target d_model"]


class _LMLogits(ModelOutput):
    logits: Float[Array, "batch target vocab"] = eqx.field(metadata=_BY_TOKEN)


class _LabelLogits(ModelOutput):
    logits: Float[Array, "batch num_labels"]


class _SpanLogits(ModelOutput):
    start_logits: Float[Array, "batch target"]
    end_logits: Float[Array, "batch target"]


# A dataclass lists the fields of its last base first.
class Seq2SeqModelOutput(_Seq2SeqStates, _LastHiddenState):
    """What `BartModel` returns: `last_hidden_state`, then the states."""


class Seq2SeqLMOutput(_Seq2SeqStates, _LMLogits):
    """What `BartForConditionalGeneration` returns: `logits`, then the states."""


class Seq2SeqSequenceClassifierOutput(_Seq2SeqStates, _LabelLogits):
    """What `BartForSequenceClassification` returns: `logits`, then the states."""


class Seq2SeqQuestionAnsweringModelOutput(_Seq2SeqStates, _SpanLogits):
    """What `BartForQuestionAnswering` returns: `start_logits`, `end_logits`, then the
    states."""
