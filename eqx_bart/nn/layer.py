"""A layer and what it may know: the contract by which stacks of layers come apart."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from .attention import AbstractAttention, padding_mask
from .cache import FirstSlot, KeyValues
from .segments import segment_mask, segment_positions


#: What a layer has to show as well as its states, by name: `"attentions"`, the weights of
#: its self-attention; `"cross_attentions"`; and anything else that the caller of the model
#: is to see, such as a loss.
Shown = Mapping[str, Array | None]


@dataclasses.dataclass(frozen=True)
class Show:
    """What the caller of a model has asked to see: HF's `output_attentions` and
    `output_hidden_states`."""

    attentions: bool = False
    hidden_states: bool = False


NOTHING = Show()


class Source(eqx.Module):
    """What an encoder has made of its input, for a decoder's layers and its head.

    **Fields:**

    - `hidden_states`: the encoder's last ones.
    - `attention_mask`: which of them may be attended to; `None` for all.
    - `input_ids`: what the encoder has read, if the caller gave it. The ids of padding have
        no meaning.
    - `num_rows`: how many rows of decoder states attend to each row of these: rows that
        follow one another, the samples or beams of an input.
    - `segment_ids`: which example each state is of, see `eqx_bart.nn.segments`; `None`
        where a row is one example.
    - `query_segment_ids`: which example each token is of that attends to these states. The
        decoder says so, by `attended_by`.
    """

    hidden_states: Float[Array, "batch source d_model"]
    attention_mask: Bool[Array, "batch source"] | None = None
    input_ids: Integer[Array, "batch source"] | None = None
    num_rows: int = eqx.field(static=True, default=1)
    segment_ids: Integer[Array, "batch source"] | None = None
    query_segment_ids: Integer[Array, "batch queries"] | None = None

    @property
    def mask(self) -> Bool[Array, "batch 1 #queries source"] | None:
        """The mask of attention to these states.

        **Raises** `ValueError` if a row has more than one example, and nothing says which
        of them attends.
        """
        mask = None
        if self.attention_mask is not None:
            mask = padding_mask(self.attention_mask)
        if self.segment_ids is None:
            return mask
        if self.query_segment_ids is None:
            raise ValueError(
                "This source has segment_ids, and the tokens that attend to it have none: "
                "pass decoder_segment_ids. A cache holds rows of one example each."
            )
        blocks = segment_mask(self.query_segment_ids, self.segment_ids)
        return blocks if mask is None else blocks & mask

    @property
    def positions(self) -> Integer[Array, "#batch source"]:
        """The positions of these states: 0, 1, 2, ... in each example."""
        if self.segment_ids is not None:
            return segment_positions(self.segment_ids)
        return jnp.arange(self.hidden_states.shape[1], dtype=jnp.int32)[None]

    def attended_by(self, segment_ids: Integer[Array, "batch queries"] | None) -> "Source":
        """This source, with the examples that the tokens are of that attend to it.

        **Raises** `ValueError` if only one of the two has `segment_ids`.
        """
        if (segment_ids is None) != (self.segment_ids is None):
            names = ["decoder_segment_ids", "segment_ids of the source"]
            given, missing = names if self.segment_ids is None else reversed(names)
            raise ValueError(f"There are {given}, but no {missing}: they go together.")
        return dataclasses.replace(self, query_segment_ids=segment_ids)


class Context(eqx.Module):
    """What a layer may want to know about the call that it is part of.

    The tokens of a call are its new tokens. They attend to slots: with a cache, those of
    the cache; without one, the new tokens themselves. Slots are not positions: a few beams
    of an input share a row of the cache, and padding shifts rows.

    **Fields:**

    - `mask`: which slots each new token may attend to; `None` for all. True = may attend.
    - `positions`: of the new tokens.
    - `slot_positions`: of the token in each slot, or of the one to be written there.
    - `first_slot`: the new tokens are written to this slot and to those after it: one
        number, or one for each row, where rows advance at their own pace.
    - `attention_mask`: which new tokens are not padding; `None` if there is no padding.
    - `source`: what a decoder's layers attend to as well: a `Source`; more than one, or
        what a model of your own makes of its input; `None` without an encoder.
    - `show`: what the caller has asked to see. The rest need not be computed.
    - `segment_ids`: which example each new token is of, where a row holds more than one;
        see `eqx_bart.nn.segments`. `mask` and positions go by it.
    """

    mask: Bool[Array, "#batch 1 #new slots"] | None
    positions: Integer[Array, "#batch new"]
    slot_positions: Integer[Array, "#batch slots"]
    first_slot: FirstSlot = 0
    attention_mask: Bool[Array, "batch new"] | None = None
    source: Any = None
    show: Show = eqx.field(static=True, default=NOTHING)
    segment_ids: Integer[Array, "batch new"] | None = None


class AbstractLayer(eqx.Module):
    """A layer of a stack. It owns its flow: the stack hands it states and a context, and
    does not know what is inside it.

    Where a function is traced, layers that are alike are traced once, so that what is not
    an array in a layer must be hashable and comparable, as for `equinox.filter_jit`.
    """

    @abc.abstractmethod
    def init_cache(
        self, batch_size: int, num_slots: int, source: Any, dtype: DTypeLike
    ) -> Any:
        """What the layer remembers between calls, as it is before the first one: any pytree
        of arrays. `None` for a layer that is never cached, such as an encoder's.

        **Arguments:**

        - `batch_size`: the number of rows.
        - `num_slots`: how many tokens of a row there is room for.
        - `source`: as in `Context`. What follows from it alone, such as keys and values
            of cross-attention, is computed here, once.
        - `dtype`: of the states.
        """

    @abc.abstractmethod
    def __call__(
        self,
        hidden_states: Float[Array, "batch new d_model"],
        context: Context,
        cache: Any,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "batch new d_model"], Any, Shown]:
        """Runs the layer on new tokens.

        **Arguments:**

        - `hidden_states`: of the new tokens.
        - `context`: see `Context`.
        - `cache`: what `init_cache`, or the last call, returned; or `None`, where there are
            no other tokens than the new ones.
        - `key`: for dropout, in training mode.

        **Returns** the new states; the next cache, `None` if there was none; and what
        there is to show.
        """


def self_attend(
    attention: AbstractAttention,
    hidden_states: Float[Array, "batch new d_model"],
    context: Context,
    cache: KeyValues | None,
    *,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "batch new d_model"], KeyValues | None, Array | None]:
    """Attention of the new tokens to the slots, including their own.

    **Arguments:**

    - `hidden_states`, `context`, `key`: as `AbstractLayer.__call__` takes them.
    - `cache`: the slots; `None` where there are no other tokens than the new ones.

    **Returns** what they attend to, the next cache if there was one, and the weights.
    """
    key_values = attention.key_values(hidden_states, context.positions)
    if cache is not None:
        key_values = cache = cache.write(key_values, context.first_slot)
    attended, weights = attention(
        hidden_states,
        context.positions,
        key_values,
        context.slot_positions,
        context.mask,
        key=key,
    )
    return attended, cache, weights


def cross_attend(
    attention: AbstractAttention,
    hidden_states: Float[Array, "batch new d_model"],
    context: Context,
    source: Source,
    cache: KeyValues | None,
    *,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "batch new d_model"], Array | None]:
    """Attention of the new tokens to a source.

    The rows of an input that share a row of the source, see `Source.num_rows`, become the
    queries of one row.

    **Arguments:**

    - `hidden_states`, `context`, `key`: as `AbstractLayer.__call__` takes them.
    - `cache`: the keys and values of `source`; without them, they are computed here.

    **Returns** what they attend to, and the weights.
    """
    key_values = cache
    if key_values is None:
        key_values = attention.key_values(source.hidden_states, source.positions)
    rows, new, d_model = hidden_states.shape
    batch, queries = rows // source.num_rows, source.num_rows * new
    positions = context.positions
    if source.num_rows > 1:
        positions = jnp.broadcast_to(positions, (rows, new)).reshape(batch, queries)
    attended, weights = attention(
        hidden_states.reshape(batch, queries, d_model),
        positions,
        key_values,
        source.positions,
        source.mask,
        key=key,
    )
    if weights is not None:
        heads, length = weights.shape[1::2]
        weights = weights.reshape(batch, heads, source.num_rows, new, length)
        weights = weights.swapaxes(1, 2)
        weights = weights.reshape(rows, heads, new, length)
    return attended.reshape(hidden_states.shape), weights


@runtime_checkable
class Layers(Protocol):
    """The layers of a stack: a tuple of them, or a module that gives them in order, as
    `RepeatedLayer` does. Such a module may make them on demand: `equinox.tree_at` then
    finds what the module holds, not what it gives."""

    def __iter__(self) -> Iterator[AbstractLayer]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class RepeatedLayer(eqx.Module):
    """One layer that is used `times` times, as if it were that many layers. Its weights are
    trained and stored once.

    Source: Dehghani et al. 2018 (arXiv:1807.03819).
    """

    layer: AbstractLayer
    times: int = eqx.field(static=True)

    def __iter__(self) -> Iterator[AbstractLayer]:
        return iter([self.layer] * self.times)

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: Any) -> Any:
        return ([self.layer] * self.times)[index]
