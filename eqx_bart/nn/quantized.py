"""Linear maps and tables of embeddings in 8 bits: a quarter of the memory of float32.

A weight is stored as integers, with a scale for each output, so that the error of an entry
is at most half of that scale. What is multiplied by it is rounded as it comes, row by row.

Sources: Dettmers et al. 2022 (arXiv:2208.07339), section 2.1, for scales by rows and by
outputs; Xiao et al. 2022 (arXiv:2211.10438), section 4, for smoothing.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Integer

from .embedding import AbstractEmbedding, Embedding, rows_of
from .linear import AbstractLinear, for_each_row, Linear
from .matmul import at_least_float32, int8_dot_transposed, rounded, to_integers
from .mesh import product, split_lookup


class Int8Linear(AbstractLinear):
    """A linear map in 8 bits. Each input is multiplied by its entry of `smoothing`, if
    there is one; its weights have been divided by that.

    The gradient by the input is that of the map without rounding. Integers have none: train
    adapters, with `lora`.
    """

    qweight: Int8[Array, "d_out d_in"]
    scales: Float[Array, " d_out"]
    bias: Float[Array, " d_out"] | None
    smoothing: Float[Array, " d_in"] | None

    def __init__(
        self, linear: Linear, smoothing: Float[Array, " d_in"] | None = None
    ) -> None:
        """Rounds the weights of `linear`."""
        weight = linear.weight.T
        if smoothing is not None:
            weight = weight / for_each_row(smoothing, weight)
        self.qweight, self.scales = int8_rows(weight)
        self.bias = linear.bias
        self.smoothing = smoothing

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_in, d_out)`."""
        d_out, d_in = self.qweight.shape
        return d_in, d_out

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the scales."""
        return self.scales.dtype

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        smooth = x if self.smoothing is None else x * for_each_row(self.smoothing, x)
        y = product(int8_dot_transposed, smooth, self.qweight)
        y = y * for_each_row(self.scales, y)
        if self.bias is not None:
            y = y + for_each_row(self.bias, y)
        return y.astype(x.dtype)


class Int8Embedding(AbstractEmbedding):
    """A table of token embeddings in 8 bits, with a scale for each token."""

    qweight: Int8[Array, "vocab d_model"]
    scales: Float[Array, " vocab"]
    padding_idx: int | None = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, embedding: Embedding) -> None:
        """Rounds the entries of `embedding`."""
        self.qweight, self.scales = int8_rows(embedding.weight)
        self.padding_idx = embedding.padding_idx
        self.scale = embedding.scale

    @property
    def vocab_size(self) -> int:
        return self.qweight.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        return self.scales.dtype

    def rows(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d_model"]:
        integers = self.qweight.at[ids].get(mode="fill", fill_value=0)
        scales = rows_of(self.scales[:, None], ids)
        return split_lookup(integers.astype(self.dtype)) * scales

    def attend(
        self, hidden_states: Float[Array, "rows d_model"]
    ) -> Float[Array, "rows vocab"]:
        logits = product(int8_dot_transposed, hidden_states, self.qweight)
        return logits * for_each_row(self.scales, logits)


@jax.jit
def int8_rows(
    weight: Float[Array, "rows columns"],
) -> tuple[Int8[Array, "rows columns"], Float[Array, " rows"]]:
    """The rows of a weight as integers, and their scales, in its dtype. Integers are in
    units of the scales as they are stored, whatever their precision."""
    precise = weight.astype(at_least_float32(weight))
    scales = rounded(precise)[1].astype(weight.dtype)
    return to_integers(precise, scales.astype(precise.dtype)), scales
