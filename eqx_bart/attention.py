"""Multi-head attention, and the masks that it takes. Masks are boolean, True = may attend.

Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; HF's `BartAttention`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .cache import KeyValues
from .checks import ArrayLike, Mask
from .layers import dot_transposed, Linear, matmul


class Attention(eqx.Module):
    """Attention of queries, projected here, to keys and values from `key_values`.

    Self-attention, causal attention and cross-attention, cached or not, are this one
    module: they differ in whose `key_values` they are given, and in the mask.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear
    dropout: eqx.nn.Dropout
    num_heads: int = eqx.field(static=True)

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dropout: float,
        init_std: float,
        key: PRNGKeyArray,
    ):
        q, k, v, out = (
            Linear(d_model, d_model, init_std=init_std, key=key)
            for key in jax.random.split(key, 4)
        )
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q, k, v, out
        self.dropout = eqx.nn.Dropout(dropout)
        self.num_heads = num_heads

    def key_values(self, states: Float[Array, "batch length d_model"]) -> KeyValues:
        """The keys and values of `states`."""
        return KeyValues(
            self._split_heads(self.k_proj(states)), self._split_heads(self.v_proj(states))
        )

    def __call__(
        self,
        hidden_states: Float[Array, "batch queries d_model"],
        key_values: KeyValues,
        mask: Bool[Array, "#batch 1 #queries keys"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[
        Float[Array, "batch queries d_model"], Float[Array, "batch heads queries keys"]
    ]:
        """Returns the new states and the attention weights, after dropout."""
        query = self._split_heads(self.q_proj(hidden_states))
        attended, weights = dot_product_attention(
            query, key_values, mask, dropout=self.dropout, key=key
        )
        return self.out_proj(self._merge_heads(attended)), weights

    def _split_heads(
        self, x: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch heads length head_dim"]:
        batch, length, d_model = x.shape
        head_dim = d_model // self.num_heads
        return _swap_copy(x.reshape(batch, length, self.num_heads, head_dim))

    def _merge_heads(
        self, x: Float[Array, "batch heads length head_dim"]
    ) -> Float[Array, "batch length d_model"]:
        batch, heads, length, head_dim = x.shape
        return _swap_copy(x).reshape(batch, length, heads * head_dim)


def _swap_copy(x: Float[Array, "batch m n head_dim"]) -> Float[Array, "batch n m head_dim"]:
    """A copy of `x` with its middle axes swapped. Without the axis of length 1 XLA's CPU
    backend leaves it where it is, where products of it are slow, and so are gradients."""
    return x[..., None, :].swapaxes(1, 2).squeeze(-2)


def dot_product_attention(
    query: Float[Array, "batch heads queries head_dim"],
    key_values: KeyValues,
    mask: Bool[Array, "#batch 1 #queries keys"] | None,
    *,
    dropout: eqx.nn.Dropout,
    key: PRNGKeyArray | None,
) -> tuple[
    Float[Array, "batch heads queries head_dim"], Float[Array, "batch heads queries keys"]
]:
    """Scaled dot-product attention; returns what is attended to, and the weights.

    The softmax is computed in float32 or better. A query that may attend to nothing
    attends to everything alike.
    """
    dtype = jnp.result_type(query.dtype, jnp.float32)
    query = query * query.shape[-1] ** -0.5
    scores = dot_transposed(query, key_values.keys)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    weights = dropout(weights, key=key)
    attended = matmul(weights, key_values.values)
    return attended.astype(query.dtype), weights


def padding_mask(
    attention_mask: Mask[ArrayLike, "batch keys"],
) -> Bool[Array, "batch 1 1 keys"]:
    """The mask that keeps every query from the padding."""
    return jnp.asarray(attention_mask, bool)[:, None, None, :]


def causal_mask(length: int) -> Bool[Array, "1 1 {length} {length}"]:
    """The mask that keeps every query from the positions behind it."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]
