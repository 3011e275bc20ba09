"""The losses for fine-tuning BART, as sums and counts that add up over batches."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from ..explained import explained
from ..models.bart import BartModel
from ..models.conditional_generation import BartForConditionalGeneration
from ..models.inputs import IGNORE_INDEX, refuse_overrides, shift_tokens_right
from ..models.question_answering import BartForQuestionAnswering
from ..models.sequence_classification import BartForSequenceClassification
from ..nn.checks import ArrayLike, as_indices, error_if, Mask, outside
from ..nn.matmul import at_least_float32
from ..nn.mesh import on_any_mesh, row_parts


class LossSum(eqx.Module):
    """The sum of a loss over entries, and how many entries there are.

    Add the sums of batches, or of devices, before you take the mean, so that each entry
    has the same weight: `a + b`, or `jax.lax.psum(loss, axis_name)`.
    """

    total: Float[Array, "*terms"]
    count: Integer[Array, "*terms"]

    def __add__(self, other: "LossSum") -> "LossSum":
        return jax.tree.map(jnp.add, self, other)

    @property
    def mean(self) -> Float[Array, ""]:
        """The mean over the entries, 0 if there are none; with more than one term, the mean
        of the terms' means."""
        return jnp.mean(self.total / jnp.maximum(self.count, 1).astype(self.total.dtype))


@explained
@on_any_mesh
def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[ArrayLike, "*batch"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> LossSum:
    """The cross-entropy of `labels`, computed in float32 or better.

    **Arguments:**

    - `labels`: the class of each entry, or `ignore_index` for those that do not count.
    - `label_smoothing`: the share of each label that is spread evenly over all classes
        (arXiv:1512.00567, section 7), in [0, 1].
    - `z_loss`: the weight of the square of `logsumexp(logits)`, which keeps that near 0
        (arXiv:2204.02311, section 5).

    **Raises** `ValueError` if a label is no class; under `jit`, when the program runs. Also
    if `label_smoothing` lies outside [0, 1].

    Source: PyTorch's `cross_entropy`.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1]; it is {label_smoothing}.")
    classes, wrong = _classes(labels, logits.shape[-1], ignore_index)
    logits = logits.astype(at_least_float32(logits))
    log_normaliser = error_if(jax.nn.logsumexp(logits, axis=-1), *wrong)
    counts = jnp.asarray(labels != ignore_index)
    chosen = jnp.take_along_axis(logits, as_indices(classes)[..., None], axis=-1)[..., 0]
    losses = log_normaliser - (1 - label_smoothing) * chosen
    if label_smoothing:
        losses -= label_smoothing * jnp.mean(logits, axis=-1)
    if z_loss:
        losses += z_loss * jnp.square(log_normaliser)
    return LossSum(jnp.sum(jnp.where(counts, losses, 0)), jnp.sum(counts, dtype=jnp.int32))


@explained
@on_any_mesh
def chunked_cross_entropy(
    head: Callable[[Float[Array, "_ rows d_model"]], Float[Array, "_ rows classes"]],
    hidden_states: Float[Array, "*batch d_model"],
    labels: Integer[ArrayLike, "*batch"],
    *,
    chunk_size: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> LossSum:
    """`cross_entropy(head(hidden_states), labels)`, `chunk_size` rows at a time.

    The logits of more rows are never in memory, neither forward nor backward: the gradient
    of each chunk is taken together with its loss.

    **Arguments:**

    - `head`: a module from hidden states to logits, whose floating arrays are all
        differentiated; see `BartForConditionalGeneration.projection`.
    - `hidden_states`: what the head reads, with a label for each.
    - `chunk_size`: how many rows' logits are in memory at a time.
    - `labels`, `label_smoothing`, `z_loss`, `ignore_index`: as in `cross_entropy`.

    **Raises** as `cross_entropy` does, and `ValueError` if `chunk_size` is less than 1.
    """
    row = jax.ShapeDtypeStruct((1, 1, hidden_states.shape[-1]), hidden_states.dtype)
    num_classes = eqx.filter_eval_shape(head, row).shape[-1]

    def loss(head: Callable[[Array], Array], hidden: Array, labels: Array) -> LossSum:
        return cross_entropy(
            head(hidden),
            labels,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            ignore_index=ignore_index,
        )

    labels = _checked_labels(labels, num_classes, ignore_index)
    return sum_of_chunks(
        loss, head, hidden_states, labels, chunk_size=chunk_size, ignore_index=ignore_index
    )


def sum_of_chunks(
    loss: Callable[..., LossSum],
    head: Callable[..., Any],
    hidden_states: Float[Array, "*batch d_model"],
    labels: Integer[Array, "*batch"],
    *others: Float[Array, "*batch _"],
    chunk_size: int,
    ignore_index: int = IGNORE_INDEX,
) -> LossSum:
    """`loss(head, hidden_states, labels, *others)`, `chunk_size` rows at a time; see
    `chunked_cross_entropy`. Only `head` and `hidden_states` are differentiated.

    **Raises** `ValueError` if `chunk_size` is less than 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more; it is {chunk_size}.")
    # Chunks of each device's own rows, side by side.
    parts = row_parts(hidden_states)
    length = labels.size // parts
    size = max(1, chunk_size // parts)
    num_chunks = max(1, -(-length // size))

    def chunked(x: Array, fill: int = 0) -> Array:
        x = x.reshape(parts, length, *x.shape[labels.ndim :])
        unpadded = [(0, 0)] * (x.ndim - 2)
        padding = [(0, 0), (0, num_chunks * size - length), *unpadded]
        x = jnp.pad(x, padding, constant_values=fill)
        return jnp.moveaxis(x.reshape(parts, num_chunks, size, *x.shape[2:]), 1, 0)

    parameters, rest = eqx.partition(head, eqx.is_inexact_array)

    def of_chunk(parameters: Any, *chunk: Array) -> tuple[Array, Array]:
        summed = loss(eqx.combine(parameters, rest), *chunk)
        return summed.total, summed.count

    fixed = (chunked(labels, ignore_index), *map(chunked, others))
    return LossSum(*_sum_of_chunks(of_chunk, parameters, chunked(hidden_states), fixed))


def _sum_of_chunks(
    loss: Callable[..., tuple[Array, Array]],
    parameters: Any,
    hidden: Array,
    fixed: tuple[Array, ...],
) -> tuple[Array, Array]:
    """The sums of `loss` over chunks, which are differentiated one at a time."""

    @jax.custom_vjp
    def summed(parameters: Any, hidden: Array) -> tuple[Array, Array]:
        sums = jax.lax.map(lambda chunk: loss(parameters, *chunk), (hidden, *fixed))
        return jax.tree.map(lambda x: jnp.sum(x, dtype=x.dtype), sums)

    def forward(parameters: Any, hidden: Array) -> Any:
        value_and_grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

        def step(sums: Any, chunk: Any) -> Any:
            (total, count), (grads, hidden_grad) = value_and_grad(parameters, *chunk)
            return jax.tree.map(jnp.add, sums, (total, count, grads)), hidden_grad

        first = jax.tree.map(jnp.zeros_like, parameters)
        shapes = jax.eval_shape(loss, parameters, hidden[0], *(x[0] for x in fixed))
        zeros = (jnp.zeros(x.shape, x.dtype) for x in shapes)
        (total, count, grads), hidden_grad = jax.lax.scan(
            step, (*zeros, first), (hidden, *fixed)
        )
        return (total, count), (grads, hidden_grad)

    def backward(grads: Any, cotangents: tuple[Array, Any]) -> Any:
        total, _ = cotangents  # a count has none
        return jax.tree.map(lambda grad: grad * total.astype(grad.dtype), grads)

    summed.defvjp(forward, backward)
    return summed(parameters, hidden)


@explained
@on_any_mesh
def seq2seq_loss(
    model: BartForConditionalGeneration,
    input_ids: Integer[ArrayLike, "batch source"] | None,
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    labels: Integer[ArrayLike, "batch target"],
    *,
    decoder_input_ids: Integer[ArrayLike, "batch target"] | None = None,
    decoder_attention_mask: Mask[ArrayLike, "batch target"] | None = None,
    segment_ids: Integer[ArrayLike, "batch source"] | None = None,
    decoder_segment_ids: Integer[ArrayLike, "batch target"] | None = None,
    encoder_outputs: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    key: PRNGKeyArray | None = None,
) -> LossSum:
    """The cross-entropy of `labels` under `model`, each given those before it.

    **Arguments:**

    - `input_ids`, `attention_mask`, `encoder_outputs`, `decoder_attention_mask`,
        `segment_ids`, `decoder_segment_ids`: as in a call of the model. Rows of more than
        one example have the loss of as many rows; see `pack`.
    - `labels`: the tokens to predict, -100 where there are none.
    - `decoder_input_ids`: by default `labels`, each example's shifted to the right.
    - `chunk_size`: how many tokens' logits are in memory at a time; all by default. See
        `chunked_cross_entropy`.
    - `label_smoothing`, `z_loss`: see `cross_entropy`.
    - `key`: for dropout; needed in training mode.

    **Raises** as the model and `cross_entropy` do; `TypeError` if there is a `chunk_size`
    and the model's logits depend on more than its last hidden states.

    Source: HF's `BartForConditionalGeneration.forward` with `labels`.
    """
    if decoder_input_ids is None:
        labels, decoder_input_ids = shifted(model, labels, decoder_segment_ids)
    inputs = (input_ids, attention_mask, decoder_input_ids, decoder_attention_mask)
    others: Any = {
        "segment_ids": segment_ids,
        "decoder_segment_ids": decoder_segment_ids,
        "encoder_outputs": encoder_outputs,
    }
    options: Any = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    if chunk_size is None:
        outputs = model(*inputs, **others, key=key)
        return cross_entropy(outputs.logits, labels, **options)
    outputs = without_head(model)(*inputs, **others, key=key)
    states = outputs.last_hidden_state
    return chunked_cross_entropy(
        model.projection,
        states,
        labels,
        chunk_size=chunk_size,
        **options,
    )


def shifted(
    model: BartForConditionalGeneration,
    labels: Integer[ArrayLike, "batch target"],
    segment_ids: Integer[ArrayLike, "batch target"] | None,
) -> tuple[Integer[Array, "batch target"], Integer[Array, "batch target"]]:
    """The labels, checked, and the decoder's inputs for them."""
    labels = _checked_labels(labels, model.vocab_size, IGNORE_INDEX)
    config = model.config
    return labels, shift_tokens_right(
        labels, config.pad_token_id, config.decoder_start_token_id, segment_ids
    )


def without_head(model: BartForConditionalGeneration) -> BartModel:
    """What makes the hidden states that `model.projection` reads.

    **Raises** `TypeError` if the logits depend on more than these.
    """
    refuse_overrides(model, "chunk_size", "__call__")
    if model.head is not None:
        raise TypeError(
            f"chunk_size needs a head of the hidden states alone, and the model's is a "
            f"{type(model.head).__name__}: pass chunk_size=None."
        )
    return model.model


@explained
@on_any_mesh
def classification_loss(
    model: BartForSequenceClassification,
    input_ids: Integer[ArrayLike, "batch source"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    labels: Integer[ArrayLike, "batch"]
    | Float[ArrayLike, "batch"]
    | Float[ArrayLike, "batch labels"],
    *,
    key: PRNGKeyArray | None = None,
) -> LossSum:
    """The loss of `labels` under `model`, by its `config.problem_type`.

    `"regression"` is the squared error; `"single_label_classification"` the cross-entropy
    of class ids; `"multi_label_classification"` the binary cross-entropy of each label.
    Without a problem type, it is a regression if the config has one label, multi-label if
    `labels` are floats, and single-label otherwise.

    **Arguments:**

    - `input_ids`, `attention_mask`: as in a call of the model.
    - `labels`: class ids, -100 for rows that do not count; or floats, one for each logit,
        or one for each row if there is one label.
    - `key`: for dropout; needed in training mode.

    **Raises** as the model does, and `ValueError` if the labels do not fit the problem
    type.

    Source: HF's `BartForSequenceClassification.forward` with `labels`.
    """
    model.config.check("problem_type")
    logits = model(input_ids, attention_mask, key=key).logits
    return _classification_loss(logits, labels, model.config.problem_type)


def _classification_loss(
    logits: Float[Array, "batch labels"], labels: ArrayLike, problem_type: str | None
) -> LossSum:
    problem_type = problem_type or _problem_type(labels, logits.shape[-1])
    if problem_type == "single_label_classification":
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(_labels_message(problem_type, "class ids [batch]", labels))
        return cross_entropy(logits, labels)
    logits = logits.astype(at_least_float32(logits))
    expected = jnp.asarray(labels, logits.dtype)
    if problem_type == "regression" and logits.shape[-1] == 1 and expected.ndim == 1:
        expected = expected[:, None]
    if expected.shape != logits.shape:
        raise ValueError(_labels_message(problem_type, f"{list(logits.shape)}", labels))
    if problem_type == "regression":
        losses = jnp.square(logits - expected)
    else:
        losses = jax.nn.softplus(logits) - expected * logits
    return LossSum(jnp.sum(losses), jnp.asarray(losses.size, jnp.int32))


@explained
@on_any_mesh
def question_answering_loss(
    model: BartForQuestionAnswering,
    input_ids: Integer[ArrayLike, "batch source"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    start_positions: Integer[ArrayLike, "batch"],
    end_positions: Integer[ArrayLike, "batch"],
    *,
    key: PRNGKeyArray | None = None,
) -> LossSum:
    """The loss of answers under `model`: two terms, one of the start, one of the end.

    **Arguments:**

    - `input_ids`, `attention_mask`: as in a call of the model.
    - `start_positions`, `end_positions`: the places of an answer's first and last token. A
        position past the end of the sequence does not count; one below 0 is taken as 0.
    - `key`: for dropout; needed in training mode.

    **Raises** as the model does.

    Source: HF's `BartForQuestionAnswering.forward` with `start_positions` and
    `end_positions`.
    """
    outputs = model(input_ids, attention_mask, key=key)
    return jax.tree.map(
        lambda *terms: jnp.stack(terms),
        _position_loss(outputs.start_logits, start_positions),
        _position_loss(outputs.end_logits, end_positions),
    )


def _position_loss(
    logits: Float[Array, "batch length"], positions: Integer[ArrayLike, "batch"]
) -> LossSum:
    length = logits.shape[-1]
    positions = jnp.clip(as_indices(positions), 0, length)
    return cross_entropy(logits, positions, ignore_index=length)


def _problem_type(labels: ArrayLike, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    is_single = jnp.issubdtype(labels.dtype, jnp.integer)
    return f"{'single' if is_single else 'multi'}_label_classification"


def _labels_message(problem_type: str, expected: str, labels: ArrayLike) -> str:
    return (
        f"{problem_type} needs labels {expected}; they are {labels.dtype} "
        f"{list(labels.shape)}."
    )


def _checked_labels(
    labels: Integer[ArrayLike, "*batch"], num_classes: int, ignore_index: int
) -> Integer[Array, "*batch"]:
    """The labels, as `error_if` has them if one that counts is no class."""
    _, wrong = _classes(labels, num_classes, ignore_index)
    return error_if(as_indices(labels), *wrong)


def _classes(
    labels: Integer[ArrayLike, "*batch"], num_classes: int, ignore_index: int
) -> tuple[Integer[ArrayLike, "*batch"], tuple[Bool[ArrayLike, "*batch"], str]]:
    """The labels, 0 for those that do not count; and, as `outside`, which are no class."""
    classes = labels * (labels != ignore_index).astype(labels.dtype)
    return classes, outside(classes, num_classes, "labels", "the classes")
