"""`BartModel`: the encoder and the decoder, without a head."""

import math
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from ..config import BartConfig
from ..nn.embedding import AbstractEmbedding, Embedding
from ..nn.layer import Show
from .decoder import BartDecoder
from .encoder import BartEncoder
from .outputs import (
    BaseModelOutputWithCrossAttentions,
    Seq2SeqModelOutput,
)
from .seq2seq import AbstractTrunk, seq2seq_states, Seq2SeqModel


def token_embedding(config: BartConfig, *, key: PRNGKeyArray) -> Embedding:
    """A table of token embeddings for a model of this config.

    **Raises** `ValueError` if the config's `pad_token_id` is outside the table. One below 0
    counts from the end, as in PyTorch.
    """
    padding_idx, size = config.pad_token_id, config.vocab_size
    if padding_idx is not None:
        if not -size <= padding_idx < size:
            raise ValueError(
                f"BartConfig: pad_token_id={padding_idx} is outside the vocabulary of "
                f"{size}: it must be an id below {size}, or none."
            )
        padding_idx %= size
    return Embedding(
        size,
        config.d_model,
        padding_idx=padding_idx,
        scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
        init_std=config.init_std,
        key=key,
    )


class BartModel(
    Seq2SeqModel[Seq2SeqModelOutput, BaseModelOutputWithCrossAttentions], AbstractTrunk
):
    """An encoder-decoder that returns hidden states.

    `shared` is the table of token embeddings. With `tie_word_embeddings` off, encoder and
    decoder have tables of their own, and `shared` is unused, as in HF.

    Source: HF's `BartModel`.
    """

    shared: AbstractEmbedding
    encoder: BartEncoder
    decoder: BartDecoder
    config: BartConfig

    def __init__(self, config: BartConfig, *, key: PRNGKeyArray):
        """Draws the weights at random, as HF does, with `config.init_std`.

        The model is in training mode; see `equinox.nn.inference_mode`.
        """
        keys = jax.random.split(key, 5)
        encoder_tokens = decoder_tokens = None
        if not config.tie_word_embeddings:
            encoder_tokens = token_embedding(config, key=keys[3])
            decoder_tokens = token_embedding(config, key=keys[4])
        self.shared = token_embedding(config, key=keys[0])
        self.encoder = BartEncoder(config, encoder_tokens, key=keys[1])
        self.decoder = BartDecoder(config, decoder_tokens, key=keys[2])
        self.config = config

    @property
    def _trunk(self) -> AbstractTrunk:
        return self

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
    ) -> Seq2SeqModelOutput:
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            **seq2seq_states(decoded, encoded, show),
        )

    def _decoder_output(
        self, decoded: BaseModelOutputWithCrossAttentions, source: Any, show: Show
    ) -> BaseModelOutputWithCrossAttentions:
        return decoded
