"""Distillation: a student of some of a teacher's layers, and a loss by which it learns.

Source: Shleifer & Rush 2020 (arXiv:2010.13002), section 3; HF's research project
`seq2seq-distillation`, of the same authors.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Num, PRNGKeyArray

from ..checkpoint.names import map_parts, named_parts
from ..checkpoint.pretrained import PretrainedModel
from ..explained import explained
from ..models.conditional_generation import BartForConditionalGeneration
from ..models.decoder import BartDecoder
from ..models.encoder import BartEncoder
from ..models.inputs import IGNORE_INDEX
from ..models.outputs import HiddenStates
from ..models.stack import BartStack
from ..nn.checks import ArrayLike, as_indices, Mask
from ..nn.matmul import at_least_float32
from ..nn.mesh import on_any_mesh
from ..nn.norm import layer_norm
from ..nn.segments import segment_mask
from .losses import cross_entropy, LossSum, shifted, sum_of_chunks, without_head


ModelT = TypeVar("ModelT", bound=PretrainedModel)
#: Which layers of a teacher a student has: so many, these, or all.
Kept = int | Sequence[int] | None


def shrink(
    teacher: ModelT, *, encoder_layers: Kept = None, decoder_layers: Kept = None
) -> ModelT:
    """A student: `teacher` with some of its layers, and a config that says how many.

    Until they are trained, its arrays are the teacher's own, not copies: do not donate
    them.

    **Arguments:**

    - `encoder_layers`, `decoder_layers`: how many layers to keep, or which, as indices from
        0 on; all by default. A number keeps the first and the last, and others evenly
        between them; 1 keeps the first.

    **Raises** `ValueError` if the teacher has no such layers, if the indices do not
    increase, or if the layers are no tuple.

    Source: Shleifer & Rush 2020 (arXiv:2010.13002), section 3. Of 12 layers, 3 are 0, 6 and
    11, and 6 are 0, 2, 4, 7, 9 and 11, as there. HF's `LAYERS_TO_COPY` was chosen by hand,
    and differs for some numbers.
    """
    wanted = {
        BartEncoder: ("encoder_layers", encoder_layers),
        BartDecoder: ("decoder_layers", decoder_layers),
    }
    model, config = teacher, teacher.config
    for kind, (what, layers) in wanted.items():
        if layers is None:
            continue
        if not named_parts(teacher, kind):
            raise ValueError(f"{what}: the teacher has no {kind.__name__}.")

        def shrunk(
            name: str, stack: BartStack, what: str = what, kept: Kept = layers
        ) -> Any:
            if not isinstance(stack.layers, tuple):
                raise ValueError(
                    f"{name}.layers is a {type(stack.layers).__name__}, which makes its "
                    "layers: only a tuple of layers can be shrunk."
                )
            chosen = tuple(stack.layers[i] for i in _indices(kept, len(stack.layers), what))
            return eqx.tree_at(lambda stack: stack.layers, stack, chosen)

        model = map_parts(shrunk, model, kind)
        stack = next(iter(named_parts(model, kind).values()))
        config = dataclasses.replace(config, **{what: len(stack.layers)})
    return model.with_config(config)


@explained
@on_any_mesh
def distillation_loss(
    student: BartForConditionalGeneration,
    teacher: BartForConditionalGeneration,
    input_ids: Integer[ArrayLike, "batch source"],
    attention_mask: Mask[ArrayLike, "batch source"] | None,
    labels: Integer[ArrayLike, "batch target"],
    *,
    segment_ids: Integer[ArrayLike, "batch source"] | None = None,
    decoder_segment_ids: Integer[ArrayLike, "batch target"] | None = None,
    alpha_data: float = 0.2,
    alpha_logits: float = 0.8,
    alpha_hid: float = 0.0,
    temperature: float = 2.0,
    normalize_hidden: bool = False,
    encoder_layers: Kept = None,
    decoder_layers: Kept = None,
    chunk_size: int | None = None,
    key: PRNGKeyArray | None = None,
) -> LossSum:
    """What `student` has still to learn: the labels, the teacher's logits, and its hidden
    states.

    It is a sum over labels, with three terms for each: the cross-entropy; the
    Kullback-Leibler divergence from the teacher's distribution, both at a `temperature`,
    times its square; and the mean squared differences of hidden states, summed over the
    student's layers. The hidden states of a label are the decoder's where it is predicted,
    and the mean over those of the encoder in its example.

    The teacher is in inference mode, and gets no gradient.

    **Arguments:**

    - `input_ids`, `attention_mask`, `labels`, `segment_ids`, `decoder_segment_ids`,
        `chunk_size`: as in `seq2seq_loss`.
    - `alpha_data`, `alpha_logits`, `alpha_hid`: the weights of the three terms.
    - `temperature`: what both logits are divided by, above 0.
    - `normalize_hidden`: whether hidden states are normalised first, those of each token by
        themselves.
    - `encoder_layers`, `decoder_layers`: which of the teacher's layers the student has, as
        in `shrink`; by default as many as it has, chosen as there. Each learns the states
        of the teacher's last layer before the next one that was kept: to do the work of
        those that were left out after it.
    - `key`: for the student's dropout; needed in training mode.

    **Raises** as `seq2seq_loss` does, and `ValueError` if the temperature is not above 0,
    or if the student has not as many layers as `encoder_layers` or `decoder_layers` say.

    Source: Shleifer & Rush 2020 (arXiv:2010.13002), section 3; HF's
    `SummarizationDistiller`, whose weights and temperature are the defaults. Its hidden
    loss is a mean over all tokens of a batch, and normalises that as a whole; it takes the
    states before each layer, not after it.
    """
    if temperature <= 0:
        raise ValueError(f"The temperature must be above 0; it is {temperature}.")
    teacher = jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x,
        eqx.nn.inference_mode(teacher),
    )
    labels, decoder_input_ids = shifted(student, labels, decoder_segment_ids)
    inputs = (input_ids, attention_mask, decoder_input_ids)
    options: Any = {
        "segment_ids": segment_ids,
        "decoder_segment_ids": decoder_segment_ids,
        "output_hidden_states": alpha_hid != 0,
    }
    logits_loss = functools.partial(
        _logits_loss,
        alpha_data=alpha_data,
        alpha_logits=alpha_logits,
        temperature=temperature,
    )
    if chunk_size is None:
        ours, theirs = student(*inputs, **options, key=key), teacher(*inputs, **options)
        loss = logits_loss(ours.logits, labels, theirs.logits)
    else:
        ours = without_head(student)(*inputs, **options, key=key)
        theirs = without_head(teacher)(*inputs, **options)
        loss = sum_of_chunks(
            lambda head, states, labels, taught: logits_loss(
                head(states), labels, teacher.projection(taught)
            ),
            student.projection,
            ours.last_hidden_state,
            labels,
            theirs.last_hidden_state,
            chunk_size=chunk_size,
        )
    if alpha_hid == 0:
        return loss
    source = _examples(input_ids, attention_mask, segment_ids)
    target = _examples(labels, labels != IGNORE_INDEX, decoder_segment_ids)
    stacks = (
        ("encoder", encoder_layers, _labels_of_token(source, target)),
        ("decoder", decoder_layers, (target != 0).astype(jnp.int32)),
    )
    for stack, layers, weights in stacks:
        states, taught = (x[f"{stack}_hidden_states"] for x in (ours, theirs))
        matches = _matches(states, taught, layers, f"{stack}_layers")
        for pair in zip(states[1:], matches, strict=True):
            hidden = _hidden_loss(*pair, weights, normalize=normalize_hidden)
            total = loss.total + alpha_hid * hidden.astype(loss.total.dtype)
            loss = LossSum(total, loss.count)
    return loss


def _logits_loss(
    logits: Float[Array, "*batch vocab"],
    labels: Integer[ArrayLike, "*batch"],
    taught: Float[Array, "*batch vocab"],
    *,
    alpha_data: float,
    alpha_logits: float,
    temperature: float,
) -> LossSum:
    """The terms of the labels and of the teacher's logits."""
    data = cross_entropy(logits, labels)
    dtype = data.total.dtype
    ours, theirs = (
        jax.nn.log_softmax(x.astype(dtype) / temperature) for x in (logits, taught)
    )
    divergences = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
    divergence = jnp.sum(jnp.where(labels != IGNORE_INDEX, divergences, 0))
    total = alpha_data * data.total + alpha_logits * temperature**2 * divergence
    return LossSum(total, data.count)


def _matches(
    states: HiddenStates, taught: HiddenStates, layers: Kept, what: str
) -> list[Float[Array, "batch length d_model"]]:
    """The teacher's states that each layer of the student learns. The first states of both
    are the embeddings."""
    size, num_layers = len(states) - 1, len(taught) - 1
    kept = _indices(size if layers is None else layers, num_layers, what)
    if len(kept) != size:
        raise ValueError(
            f"{what}={layers}: the student has {size} layers, not {len(kept)}. Pass what "
            "shrink was given."
        )
    return [taught[i] for i in (*kept[1:], num_layers)]


def _hidden_loss(
    states: Float[Array, "batch length d_model"],
    taught: Float[Array, "batch length d_model"],
    weights: Num[Array, "batch length"],
    *,
    normalize: bool,
) -> Float[Array, ""]:
    """The weighted sum, over tokens, of the mean squared differences."""
    dtype = at_least_float32(states, taught)
    states, taught = states.astype(dtype), taught.astype(dtype)
    if normalize:
        d_model = states.shape[-1]
        weight, bias = jnp.ones(d_model, dtype), jnp.zeros(d_model, dtype)
        states, taught = (layer_norm(x, weight, bias) for x in (states, taught))
    differences = jnp.mean(jnp.square(states - taught), axis=-1)
    return jnp.sum(jnp.where(weights != 0, weights.astype(dtype) * differences, 0))


def _examples(
    tokens: Integer[ArrayLike, "batch length"],
    mask: Mask[ArrayLike, "batch length"] | None,
    segment_ids: Integer[ArrayLike, "batch length"] | None,
) -> Integer[Array, "batch length"]:
    """Which example each token is of; 0 for what does not count."""
    examples = jnp.ones(tokens.shape, jnp.int32)
    if segment_ids is not None:
        examples = as_indices(segment_ids)
    return examples if mask is None else jnp.where(jnp.asarray(mask, bool), examples, 0)


def _labels_of_token(
    source: Integer[Array, "batch source"], target: Integer[Array, "batch target"]
) -> Float[Array, "batch source"]:
    """The labels of each example, shared out among the tokens of its source."""
    labels, tokens = (
        jnp.sum(segment_mask(source, x)[:, 0], axis=-1).astype(float)
        for x in (target, source)
    )
    return jnp.where(source != 0, labels / tokens, 0)


def _indices(layers: Kept, num_layers: int, what: str) -> tuple[int, ...]:
    """Which of a teacher's layers a student has.

    **Raises** `ValueError` if there are no such layers, or if they do not increase; `what`
    is what the message calls them.
    """
    if layers is None:
        return tuple(range(num_layers))
    if isinstance(layers, int):
        if not 1 <= layers <= num_layers:
            raise ValueError(
                f"{what}={layers}: a student has 1 to {num_layers} of the teacher's "
                f"{num_layers} layers."
            )
        gaps = max(1, layers - 1)
        return tuple((2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(layers))
    kept = tuple(layers)
    increases = all(a < b for a, b in itertools.pairwise(kept))
    if not kept or kept[0] < 0 or kept[-1] >= num_layers or not increases:
        raise ValueError(
            f"{what}={list(kept)}: a student has one or more of the teacher's layers, 0 to "
            f"{num_layers - 1}, each once and in their order."
        )
    return kept
