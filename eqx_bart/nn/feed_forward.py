"""The feed-forward block of a layer: the contract, and BART's."""

import abc

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .activations import ACTIVATIONS
from .layer import Context, Shown
from .linear import AbstractLinear, Linear


class AbstractFeedForward(eqx.Module):
    """The block of a layer that maps each position by itself, inside a residual."""

    @abc.abstractmethod
    def __call__(
        self,
        hidden_states: Float[Array, "batch new d_model"],
        context: Context,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "batch new d_model"], Shown]:
        """Runs the block on new tokens.

        **Arguments:**

        - `hidden_states`: of the new tokens.
        - `context`: see `Context`.
        - `key`: for dropout, in training mode.

        **Returns** the new states, without the residual; and what the block has to show,
        usually `{}`, or a balance loss of experts, for example.
        """


def transform(
    feed_forward: AbstractFeedForward,
    hidden_states: Float[Array, "batch new d_model"],
    context: Context,
    *,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "batch new d_model"], Shown]:
    """Runs a block, and checks that it keeps the shape of the states: a residual would
    broadcast another.

    The arguments and results are those of `AbstractFeedForward.__call__`.
    """
    return feed_forward(hidden_states, context, key=key)


class FeedForward(AbstractFeedForward):
    """Two linear maps around an activation.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.3; `fc1` and `fc2` of HF's
    `BartEncoderLayer`.
    """

    fc1: AbstractLinear
    fc2: AbstractLinear
    dropout: eqx.nn.Dropout
    activation_function: str = eqx.field(static=True)

    def __init__(
        self,
        d_model: int,
        ffn_dim: int,
        *,
        activation_function: str,
        dropout: float,
        init_std: float,
        key: PRNGKeyArray,
    ):
        """Draws the weights from `N(0, init_std²)`.

        **Arguments:**

        - `activation_function`: a name in `eqx_bart.nn.activations.ACTIVATIONS`.
        - `dropout`: the probability that an activation is dropped.
        """
        fc1_key, fc2_key = jax.random.split(key)
        self.fc1 = Linear(d_model, ffn_dim, init_std=init_std, key=fc1_key)
        self.fc2 = Linear(ffn_dim, d_model, init_std=init_std, key=fc2_key)
        self.dropout = eqx.nn.Dropout(dropout)
        self.activation_function = activation_function

    def __call__(
        self,
        hidden_states: Float[Array, "batch new d_model"],
        context: Context,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "batch new d_model"], Shown]:
        hidden = ACTIVATIONS[self.activation_function](self.fc1(hidden_states))
        return self.fc2(self.dropout(hidden, key=key)), {}
