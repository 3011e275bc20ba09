"""BART with a classifier of whole sequences."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..config import BartConfig
from ..nn.checks import error_if
from ..nn.dropout import split_key
from ..nn.layer import Show
from ..nn.linear import Linear
from .bart import BartModel
from .outputs import (
    BaseModelOutputWithCrossAttentions,
    Seq2SeqSequenceClassifierOutput,
)
from .seq2seq import AbstractTrunk, seq2seq_states, Seq2SeqModel


class ClassificationHead(eqx.Module):
    """A tanh layer between dropouts, and a projection.

    Source: HF's `BartClassificationHead`.
    """

    dense: Linear
    out_proj: Linear
    dropout: eqx.nn.Dropout

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        config.check_labels()
        config.check("classifier_dropout")
        dense_key, out_key = jax.random.split(key)
        d_model, std = config.d_model, config.init_std
        self.dense = Linear(d_model, d_model, init_std=std, key=dense_key)
        self.out_proj = Linear(d_model, config.num_labels, init_std=std, key=out_key)
        self.dropout = eqx.nn.Dropout(config.classifier_dropout)

    def __call__(
        self, pooled: Float[Array, "batch d_model"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "batch num_labels"]:
        in_key, hidden_key = split_key(key, 2)
        hidden = jnp.tanh(self.dense(self.dropout(pooled, key=in_key)))
        return self.out_proj(self.dropout(hidden, key=hidden_key))


class BartForSequenceClassification(
    Seq2SeqModel[Seq2SeqSequenceClassifierOutput, BaseModelOutputWithCrossAttentions]
):
    """BART with a classifier of whole sequences, for GLUE tasks and the like.

    The decoder reads what the encoder reads, and the classifier reads the decoder's
    state at the last `</s>` of each row. A call therefore needs `input_ids`.

    Source: Lewis et al. 2019 (arXiv:1910.13461), section 3.1; HF's
    `BartForSequenceClassification`.
    """

    model: BartModel
    classification_head: ClassificationHead
    config: BartConfig

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random; see `BartModel`."""
        model_key, head_key = jax.random.split(key)
        self.model = BartModel(config, key=model_key)
        self.classification_head = ClassificationHead(config, key=head_key)
        self.config = config

    @property
    def _trunk(self) -> AbstractTrunk:
        return self.model

    @property
    def _needs_attentions(self) -> bool:
        return False

    def _output(
        self,
        decoded: BaseModelOutputWithCrossAttentions,
        encoded: Any,
        source: Any,
        show: Show,
        *,
        key: PRNGKeyArray | None,
    ) -> Seq2SeqSequenceClassifierOutput:
        if source.input_ids is None:
            raise ValueError(
                "BartForSequenceClassification needs input_ids: it reads the state at the "
                "last </s> of each row. For embeddings of your own, pass with them the "
                "encoder_outputs of encode(inputs_embeds=...)."
            )
        if source.segment_ids is not None:
            raise ValueError(
                "BartForSequenceClassification has one answer for each row, and rows "
                "with segment_ids hold more than one example: give each a row of its own."
            )
        pooled = last_eos_state(
            decoded.last_hidden_state, source.input_ids, self.config.eos_token_ids
        )
        return Seq2SeqSequenceClassifierOutput(
            logits=self.classification_head(pooled, key=key),
            **seq2seq_states(decoded, encoded, show),
        )

    def _decoder_output(
        self, decoded: BaseModelOutputWithCrossAttentions, source: Any, show: Show
    ) -> BaseModelOutputWithCrossAttentions:
        return decoded


def last_eos_state(
    hidden_states: Float[Array, "batch target d_model"],
    input_ids: Integer[Array, "batch source"],
    eos_token_ids: tuple[int, ...],
) -> Float[Array, "batch d_model"]:
    """Each row's hidden state at its last end-of-sequence token.

    **Raises** `ValueError` if the two lengths differ, if a row has no such token, or if
    the rows have different numbers of such tokens; inside `jit`, when the program runs.
    """
    if hidden_states.shape[1] != input_ids.shape[1]:
        raise ValueError(
            "The decoder must read as many tokens as the encoder for its state at </s> to "
            f"be found: it read {hidden_states.shape[1]}, the encoder {input_ids.shape[1]}."
        )
    is_eos = jnp.isin(input_ids, jnp.asarray(eos_token_ids))
    counts = jnp.sum(is_eos, axis=1)
    order = jnp.cumsum(is_eos, axis=1)
    is_last = is_eos & (order == counts[:, None])
    states = jnp.take_along_axis(
        hidden_states, jnp.argmax(is_last, axis=1)[:, None, None], axis=1
    )[:, 0]
    states = error_if(states, counts == 0, "A row of input_ids has no eos_token_id.")
    return error_if(
        states,
        jnp.any(counts != counts[:1]),
        "All rows of input_ids must have the same number of eos_token_id.",
    )
