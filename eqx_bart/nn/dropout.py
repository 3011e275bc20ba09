"""LayerDrop, and keys for it. `equinox.nn.Dropout` drops single activations."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .tree import remembered


def split_key(key: PRNGKeyArray | None, num: int) -> list[PRNGKeyArray | None]:
    """`num` keys split from `key`, or `num` times `None` if it is `None`."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def refuse_training_mode(model: eqx.Module, used: str) -> None:
    """**Raises** `RuntimeError` if a part of `model` is in training mode and would drop
    something; `used` is what the user calls."""
    if _drops_out(model):
        raise RuntimeError(
            f"{used} is not for training mode, in which the model drops out at random: "
            "pass it through equinox.nn.inference_mode(model)."
        )


@remembered
def _drops_out(model: eqx.Module) -> bool:
    """Whether a part of it would drop something."""

    def drops(part: Any) -> bool:
        return getattr(part, "inference", None) is False and getattr(part, "p", 1) != 0

    return any(map(drops, jax.tree.leaves(model, is_leaf=drops)))


class LayerDrop(eqx.Module):
    """Skips a whole layer with probability `p` while training.

    Source: Fan et al. 2019, arXiv:1909.11556.
    """

    p: float
    inference: bool = False

    def __call__(
        self,
        new: Float[Array, "*shape"],
        old: Float[Array, "*shape"],
        *,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "*shape"]:
        """`new`, or `old` where the layer is dropped.

        **Arguments:**

        - `new`, `old`: the states after the layer, and before it.
        - `key`: needed in training mode only, unless `p` is 0.

        **Raises** `RuntimeError` if a key is needed and none is given.
        """
        if self.inference or self.p == 0:
            return new
        if key is None:
            raise RuntimeError(
                "LayerDrop requires a key in training mode: pass key=..., or put the "
                "model into inference mode with equinox.nn.inference_mode."
            )
        return jnp.where(jax.random.bernoulli(key, self.p), old, new)
