"""Multi-head attention: the contract, BART's own, and masks. Masks are boolean, True = may
attend.

Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; HF's `BartAttention`.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from .cache import KeyValues
from .checks import ArrayLike, Mask
from .linear import AbstractLinear, Linear
from .matmul import at_least_float32, dot_transposed, matmul


class AbstractAttention(eqx.Module):
    """Attention of queries to the keys and values of the same tokens, or of others.

    Self-attention, causal attention and cross-attention, cached or not, are one module:
    they differ in whose `KeyValues` they are given, and in the mask. The layer calls
    `key_values` for the new tokens, writes the result to the slots of a cache if there is
    one, and then calls `__call__` with all slots. What depends only on a token and its
    position, such as a rotation of its key, is thus done once, in `key_values`.

    Positions are given for queries and for keys: slots are not positions.
    """

    @abc.abstractmethod
    def init_cache(self, batch_size: int, num_slots: int, dtype: DTypeLike) -> KeyValues:
        """Empty slots for keys and values, in the shapes that `key_values` makes.

        **Arguments:**

        - `batch_size`: the number of rows.
        - `num_slots`: how many tokens of a row there is room for.
        - `dtype`: of the keys and values.
        """

    @abc.abstractmethod
    def key_values(
        self,
        states: Float[Array, "batch length d_model"],
        positions: Integer[Array, "#batch length"],
    ) -> KeyValues:
        """The keys and values of tokens with these states, at these positions."""

    @abc.abstractmethod
    def __call__(
        self,
        hidden_states: Float[Array, "batch queries d_model"],
        positions: Integer[Array, "#batch queries"],
        key_values: KeyValues,
        key_positions: Integer[Array, "#batch keys"],
        mask: Bool[Array, "#batch 1 #queries keys"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[
        Float[Array, "batch queries d_model"],
        Float[Array, "batch heads queries keys"] | None,
    ]:
        """Attends from the queries to the slots.

        **Arguments:**

        - `hidden_states`, `positions`: of the queries, which are projected here.
        - `key_values`, `key_positions`: of all slots. What is in slots that the mask
            leaves out has no meaning.
        - `mask`: which slots each query may attend to; `None` for all. A query that may
            attend to none must give something finite.
        - `key`: for dropout, in training mode.

        **Returns** the new states; and the weights, or `None` where the algorithm does not
        compute them.
        """


class Attention(AbstractAttention):
    """BART's attention: as many heads for keys and values as for queries. It does not use
    positions.

    Source: HF's `BartAttention`.
    """

    q_proj: AbstractLinear
    k_proj: AbstractLinear
    v_proj: AbstractLinear
    out_proj: AbstractLinear
    dropout: eqx.nn.Dropout
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dropout: float,
        init_std: float,
        key: PRNGKeyArray,
    ):
        """Draws the weights from `N(0, init_std²)`; `dropout` is the probability that an
        attention weight is dropped."""
        q, k, v, out = (
            Linear(d_model, d_model, init_std=init_std, key=key)
            for key in jax.random.split(key, 4)
        )
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q, k, v, out
        self.dropout = eqx.nn.Dropout(dropout)
        self.num_heads = num_heads
        self.head_dim = d_model // num_heads

    def init_cache(self, batch_size: int, num_slots: int, dtype: DTypeLike) -> KeyValues:
        return KeyValues.zeros(batch_size, self.num_heads, num_slots, self.head_dim, dtype)

    def key_values(
        self,
        states: Float[Array, "batch length d_model"],
        positions: Integer[Array, "#batch length"] | None = None,
    ) -> KeyValues:
        return KeyValues(
            split_heads(self.k_proj(states), self.num_heads),
            split_heads(self.v_proj(states), self.num_heads),
        )

    def __call__(
        self,
        hidden_states: Float[Array, "batch queries d_model"],
        positions: Integer[Array, "#batch queries"],
        key_values: KeyValues,
        key_positions: Integer[Array, "#batch keys"],
        mask: Bool[Array, "#batch 1 #queries keys"] | None,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[
        Float[Array, "batch queries d_model"], Float[Array, "batch heads queries keys"]
    ]:
        return self.attend(self.queries(hidden_states), key_values, mask, key=key)

    def queries(
        self, hidden_states: Float[Array, "batch queries d_model"]
    ) -> Float[Array, "batch heads queries head_dim"]:
        """The queries of tokens with these states."""
        return split_heads(self.q_proj(hidden_states), self.num_heads)

    def attend(
        self,
        queries: Float[Array, "batch heads queries head_dim"],
        key_values: KeyValues,
        mask: Bool[Array, "#batch 1 #queries keys"] | None,
        *,
        bias: Float[Array, "#batch #heads #queries keys"] | None = None,
        key: PRNGKeyArray | None,
    ) -> tuple[
        Float[Array, "batch queries d_model"], Float[Array, "batch heads queries keys"]
    ]:
        """Attends from given queries: for an attention of your own that differs in its
        queries, or by a bias.

        The arguments are those of `dot_product_attention`.

        **Returns** what is attended to, after `out_proj`; and the weights.
        """
        attended, weights = dot_product_attention(
            queries, key_values, mask, bias=bias, dropout=self.dropout, key=key
        )
        return self.out_proj(merge_heads(attended)), weights


def split_heads(
    x: Float[Array, "batch length d_model"], num_heads: int
) -> Float[Array, "batch {num_heads} length head_dim"]:
    """`x` split into heads, in the layout in which products of them are fast."""
    batch, length, d_model = x.shape
    return _swap_copy(x.reshape(batch, length, num_heads, d_model // num_heads))


def merge_heads(
    x: Float[Array, "batch heads length head_dim"],
) -> Float[Array, "batch length d_model"]:
    """The reverse of `split_heads`."""
    batch, heads, length, head_dim = x.shape
    return _swap_copy(x).reshape(batch, length, heads * head_dim)


def _swap_copy(x: Float[Array, "batch m n head_dim"]) -> Float[Array, "batch n m head_dim"]:
    """A copy of `x` with its middle axes swapped. Without the axis of length 1, XLA's CPU
    backend makes no copy, and products of the result and their gradients are slow."""
    return x[..., None, :].swapaxes(1, 2).squeeze(-2)


def dot_product_attention(
    query: Float[Array, "batch heads queries head_dim"],
    key_values: KeyValues,
    mask: Bool[Array, "#batch 1 #queries keys"] | None,
    *,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    dropout: eqx.nn.Dropout,
    key: PRNGKeyArray | None,
) -> tuple[
    Float[Array, "batch heads queries head_dim"], Float[Array, "batch heads queries keys"]
]:
    """Scaled dot-product attention, with its softmax in float32 or better.

    **Arguments:**

    - `query`, `key_values`: split into heads; see `split_heads`.
    - `mask`: which keys each query may attend to; `None` for all. A query that may attend
        to none attends to all equally.
    - `bias`: what is added to the scaled scores.
    - `dropout`, `key`: applied to the weights.

    **Returns** what is attended to, and the weights.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.1.
    """
    return _attend(
        query, key_values.keys, key_values.values, mask, bias, dropout=dropout, key=key
    )


def _attend(
    query: Float[Array, "batch heads queries head_dim"],
    keys: Float[Array, "batch heads keys head_dim"],
    values: Float[Array, "batch heads keys head_dim"],
    mask: Bool[Array, "#batch 1 #queries keys"] | None,
    bias: Float[Array, "#batch #heads #queries keys"] | None,
    *,
    dropout: eqx.nn.Dropout,
    key: PRNGKeyArray | None,
) -> tuple[
    Float[Array, "batch heads queries head_dim"], Float[Array, "batch heads queries keys"]
]:
    """`dot_product_attention`, with keys and values as arguments of their own, so that all
    shapes are checked against one another."""
    dtype = at_least_float32(query)
    query = query * query.shape[-1] ** -0.5
    scores = dot_transposed(query, keys)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    weights = dropout(weights, key=key)
    attended = matmul(weights, values)
    return attended.astype(query.dtype), weights


def padding_mask(
    attention_mask: Mask[ArrayLike, "batch keys"],
) -> Bool[Array, "batch 1 1 keys"]:
    """The mask that keeps every query from the padding."""
    return jnp.asarray(attention_mask, bool)[:, None, None, :]


def causal_mask(length: int) -> Bool[Array, "1 1 {length} {length}"]:
    """The mask that keeps every query from the positions after it."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]
