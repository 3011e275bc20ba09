"""Tables of embeddings: of tokens, and of positions."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .checks import ArrayLike, as_indices, check_range, error_if, outside
from .matmul import dot_transposed
from .mesh import on_any_mesh, product, split_lookup
from .norm import LayerNorm


#: The row of the position table that holds position 0, a relic of fairseq's padding.
POSITION_OFFSET = 2


class AbstractEmbedding(eqx.Module):
    """A table of token embeddings. A lookup multiplies by `scale`; a head that is tied to
    the table makes logits with it.

    The row of `padding_idx` is looked up like any other, but a lookup gives it no gradient,
    as in PyTorch.

    Source: HF's `BartScaledWordEmbedding`.
    """

    padding_idx: eqx.AbstractVar[int | None]
    scale: eqx.AbstractVar[float]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """The dtype of the embeddings."""

    @abc.abstractmethod
    def rows(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d_model"]:
        """The rows of the table; NaN for ids outside it."""

    @abc.abstractmethod
    def attend(
        self, hidden_states: Float[Array, "rows d_model"]
    ) -> Float[Array, "rows vocab"]:
        """The products of hidden states and all rows of the table: logits, in float32 or
        better."""

    @on_any_mesh
    def __call__(
        self, ids: Integer[ArrayLike, "batch length"], name: str = "input_ids"
    ) -> Float[Array, "batch length d_model"]:
        """Looks `ids` up.

        **Raises** as `eqx_bart.nn.checks.check_range` does if an id lies outside the table;
        `name` is what the message calls the ids.
        """
        return self.lookup(check_range(ids, self.vocab_size, name, "the vocabulary"))

    @on_any_mesh
    def lookup(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d_model"]:
        """`__call__` without a check: NaN for ids outside the table."""
        rows = self.rows(ids)
        if self.padding_idx is not None:
            is_padding = (ids == self.padding_idx)[..., None]
            rows = jnp.where(is_padding, jax.lax.stop_gradient(rows), rows)
        return rows if self.scale == 1 else rows * self.scale


class Embedding(AbstractEmbedding):
    """A table of token embeddings, as they are."""

    weight: Float[Array, "vocab d_model"]
    padding_idx: int | None = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        padding_idx: int | None,
        scale: float,
        init_std: float,
        key: PRNGKeyArray,
    ):
        """Draws the table from `N(0, init_std²)`; the row of `padding_idx` is zero."""
        weight = init_std * jax.random.normal(key, (vocab_size, d_model))
        if padding_idx is not None:
            weight = weight.at[padding_idx].set(0)
        self.weight = weight
        self.padding_idx = padding_idx
        self.scale = scale

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        return self.weight.dtype

    def rows(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d_model"]:
        return rows_of(self.weight, ids)

    def attend(
        self, hidden_states: Float[Array, "rows d_model"]
    ) -> Float[Array, "rows vocab"]:
        return product(dot_transposed, hidden_states, self.weight)


class AbstractPositionalEmbedding(eqx.Module):
    """What is added to the embedding of a token for its position.

    Where the layers use positions themselves, as rotary embeddings do, there is nothing to
    add, and the module returns zeros.
    """

    @property
    @abc.abstractmethod
    def max_positions(self) -> int:
        """The number of positions: the longest sequence, in tokens."""

    @abc.abstractmethod
    def lookup(
        self, position_ids: Integer[Array, "#batch length"]
    ) -> Float[Array, "#batch length #d_model"]:
        """What is added for positions that are known to lie in `[0, max_positions)`."""

    def span(
        self, start: int | Integer[Array, ""], length: int
    ) -> Integer[Array, "1 {length}"]:
        """The positions `start` to `start + length - 1`. The caller must check that a
        traced `start` stays inside the table.

        **Raises** `ValueError` if `length` exceeds the table.
        """
        if length > self.max_positions:
            raise ValueError(
                f"A sequence of {length} tokens is longer than the position table: "
                f"max_position_embeddings is {self.max_positions}. Truncate the input."
            )
        return (start + jnp.arange(length, dtype=jnp.int32))[None]

    def checked(
        self,
        inputs_embeds: Float[Array, "batch length d_model"],
        position_ids: Integer[ArrayLike, "#batch length"],
        name: str,
    ) -> tuple[Float[Array, "batch length d_model"], Integer[Array, "#batch length"]]:
        """`inputs_embeds`, if all their `position_ids` exist; and these. `name` is what the
        message calls them.

        **Raises** as `Embedding.__call__` does if one lies outside the table.
        """
        wrong = outside(position_ids, self.max_positions, name, "the position table")
        return error_if(inputs_embeds, *wrong), as_indices(position_ids)


class LearnedPositionalEmbedding(AbstractPositionalEmbedding):
    """A learned embedding for each position; position 0 is row `POSITION_OFFSET`.

    Source: HF's `BartLearnedPositionalEmbedding`.
    """

    weight: Float[Array, "rows d_model"]

    def __init__(
        self, max_positions: int, d_model: int, *, init_std: float, key: PRNGKeyArray
    ):
        shape = (max_positions + POSITION_OFFSET, d_model)
        self.weight = init_std * jax.random.normal(key, shape)

    @property
    def max_positions(self) -> int:
        return self.weight.shape[0] - POSITION_OFFSET

    @on_any_mesh
    def lookup(
        self, position_ids: Integer[Array, "#batch length"]
    ) -> Float[Array, "#batch length d_model"]:
        return rows_of(self.weight, position_ids + POSITION_OFFSET)


class NoPositionalEmbedding(AbstractPositionalEmbedding):
    """Adds nothing to a token: for layers that use positions themselves, or none."""

    num_positions: int = eqx.field(static=True)

    @property
    def max_positions(self) -> int:
        return self.num_positions

    def lookup(
        self, position_ids: Integer[Array, "#batch length"]
    ) -> Float[Array, "#batch length 1"]:
        return jnp.zeros((*position_ids.shape, 1))


def embed(
    inputs_embeds: Float[Array, "batch length d_model"],
    positions: Float[Array, "#batch length #d_model"],
    layernorm_embedding: LayerNorm,
    dropout: eqx.nn.Dropout,
    *,
    key: PRNGKeyArray | None,
) -> Float[Array, "batch length d_model"]:
    """What BART's first layer reads: tokens plus positions, normalised, in the dtype of the
    tokens."""
    embedded = inputs_embeds + positions.astype(inputs_embeds.dtype)
    return dropout(layernorm_embedding(embedded), key=key)


def rows_of(
    table: Float[Array, "rows width"], ids: Integer[Array, "*batch"]
) -> Float[Array, "*batch width"]:
    """The rows of `table`; NaN for ids outside it."""
    rows = table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return split_lookup(rows)
