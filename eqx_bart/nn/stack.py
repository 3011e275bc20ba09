"""What runs the layers of an encoder or a decoder."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.core
from jaxtyping import Array, Float, PRNGKeyArray

from .dropout import LayerDrop, split_key
from .layer import Context, Layers, Shown
from .norm import LayerNorm


class Checkpointing(eqx.Module):
    """Gradient checkpointing: a stack keeps only the inputs of its layers for the gradient,
    and computes the rest again. `policy`, as in `jax.checkpoint`, says what else to keep.
    """

    policy: Callable[..., Any] | None = eqx.field(static=True, default=None)

    def __call__(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer`, checkpointed."""
        return eqx.filter_checkpoint(layer, policy=self.policy)


class StackOutput(eqx.Module):
    """What `run_layers` returns.

    **Fields:**

    - `hidden_states`: the last ones.
    - `all_hidden_states`: those before the first layer and after each, if they were asked
        for.
    - `caches`: of the layers, if there were any.
    - `shown`: what each layer had to show, by name. Attention weights only if they were
        asked for.
    """

    hidden_states: Float[Array, "batch new d_model"]
    all_hidden_states: tuple[Float[Array, "batch new d_model"], ...] | None
    caches: tuple[Any, ...] | None
    shown: dict[str, tuple[Any, ...]]


def run_layers(
    layers: Layers,
    hidden_states: Float[Array, "batch new d_model"],
    context: Context,
    caches: Sequence[Any] | None = None,
    *,
    layerdrop: LayerDrop,
    layer_norm: LayerNorm | None,
    checkpointing: Checkpointing | None,
    keys: Sequence[PRNGKeyArray | None],
) -> StackOutput:
    """Hands states from layer to layer, with a cache for each layer or without any, and
    normalises the last states by `layer_norm`, if there is one.

    **Raises** `ValueError` if the caches are those of another number of layers.
    """
    if caches is not None and len(caches) != len(layers):
        raise ValueError(
            f"The cache is that of {len(caches)} layers, and there are {len(layers)}. Make "
            "one with the init_cache of the model that decodes."
        )
    states, next_caches, shown = [hidden_states], list[Any](), list[Shown]()
    is_traced = isinstance(hidden_states, jax.core.Tracer)
    for i, (layer, key) in enumerate(zip(layers, keys, strict=True)):
        drop_key, layer_key = split_key(key, 2)
        apply = layer if checkpointing is None else checkpointing(layer)
        if is_traced:
            apply = functools.partial(_traced_once, apply)
        new, cache, shows = apply(
            states[-1], context, None if caches is None else caches[i], key=layer_key
        )
        new = layerdrop(new, states[-1], key=drop_key)
        states = [*states, new] if context.show.hidden_states else [new]
        next_caches.append(cache)
        shown.append(_asked_for(shows, context))
    if layer_norm is not None:
        states[-1] = layer_norm(states[-1])
    return StackOutput(
        states[-1],
        tuple(states) if context.show.hidden_states else None,
        None if caches is None else tuple(next_caches),
        {name: tuple(shows.get(name) for shows in shown) for name in _names(shown)},
    )


@eqx.filter_jit
def _traced_once(layer: Callable[..., Any], *args: Any, key: PRNGKeyArray | None) -> Any:
    """What `layer` returns; layers that are alike are traced once. BART-base's `generate`
    is traced and lowered in 0.5 s where it took 0.85, and compiled as it was: XLA puts
    the layers in the places of their calls."""
    return layer(*args, key=key)


def _asked_for(shows: Shown, context: Context) -> Shown:
    if context.show.attentions:
        return shows
    return {n: x for n, x in shows.items() if n not in ("attentions", "cross_attentions")}


def _names(shown: Sequence[Shown]) -> list[str]:
    return list(dict.fromkeys(name for shows in shown for name in shows))
