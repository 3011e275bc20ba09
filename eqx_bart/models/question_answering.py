"""BART with a head for extractive question answering."""

from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from ..config import BartConfig
from ..nn.layer import Show
from ..nn.linear import AbstractLinear, Linear
from .bart import BartModel
from .outputs import (
    BaseModelOutputWithCrossAttentions,
    Seq2SeqQuestionAnsweringModelOutput,
)
from .seq2seq import AbstractTrunk, seq2seq_states, Seq2SeqModel


class BartForQuestionAnswering(
    Seq2SeqModel[Seq2SeqQuestionAnsweringModelOutput, BaseModelOutputWithCrossAttentions]
):
    """BART with a head for the start and end of an answer in the text, as for SQuAD.

    Source: HF's `BartForQuestionAnswering`.
    """

    model: BartModel
    qa_outputs: AbstractLinear
    config: BartConfig

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random; see `BartModel`."""
        model_key, head_key = jax.random.split(key)
        self.model = BartModel(config, key=model_key)
        self.qa_outputs = Linear(config.d_model, 2, init_std=config.init_std, key=head_key)
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
    ) -> Seq2SeqQuestionAnsweringModelOutput:
        logits = self.qa_outputs(decoded.last_hidden_state)
        return Seq2SeqQuestionAnsweringModelOutput(
            start_logits=logits[..., 0],
            end_logits=logits[..., 1],
            **seq2seq_states(decoded, encoded, show),
        )

    def _decoder_output(
        self, decoded: BaseModelOutputWithCrossAttentions, source: Any, show: Show
    ) -> BaseModelOutputWithCrossAttentions:
        return decoded
