"""BART's encoder: Lewis et al. 2019 (arXiv:1910.13461), section 2.1; HF's `BartEncoder`."""

from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..config import BartConfig
from ..nn.checks import ArrayLike, Mask
from ..nn.embedding import AbstractEmbedding
from ..nn.layer import NOTHING, Show
from ..nn.mesh import on_any_mesh
from .layers import BartEncoderLayer
from .outputs import BaseModelOutput
from .stack import BartStack


class BartEncoder(BartStack):
    """A `BartStack` of layers, usually `BartEncoderLayer`s."""

    def __init__(
        self,
        config: BartConfig,
        embed_tokens: AbstractEmbedding | None,
        *,
        key: PRNGKeyArray,
    ):
        """Draws the weights at random, with `config.init_std`."""
        super().__init__(
            config,
            embed_tokens,
            BartEncoderLayer,
            config.encoder_layers,
            config.encoder_layerdrop,
            key=key,
        )

    @on_any_mesh
    def __call__(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        attention_mask: Mask[ArrayLike, "batch length"] | None = None,
        position_ids: Integer[Array, "#batch length"] | None = None,
        *,
        segment_ids: Integer[ArrayLike, "batch length"] | None = None,
        show: Show = NOTHING,
        key: PRNGKeyArray | None = None,
    ) -> BaseModelOutput:
        """Encodes token embeddings.

        **Arguments:**

        - `attention_mask`, `position_ids`, `segment_ids`, `key`: see `BartModel.encode`,
            which checks them.
        - `show`: as in `Context`.
        """
        outputs = self.run_all(
            inputs_embeds, attention_mask, position_ids, segment_ids, show=show, key=key
        )
        shown = dict(outputs.shown)
        attentions = shown.pop("attentions", None)
        return BaseModelOutput(
            last_hidden_state=outputs.hidden_states,
            hidden_states=outputs.all_hidden_states,
            attentions=attentions,
            shown=shown or None,
        )
