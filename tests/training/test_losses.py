"""The losses, their gradients and the steps they lead to, against HF's PyTorch BART."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import with_slow
from oracle import (
    assert_same_leaves,
    convert,
    convert_grads,
    leaves,
    random_config,
    random_ids,
    random_mask,
    random_model,
)

import eqx_bart as eb
from eqx_bart.training import losses


PROBLEM_TYPES = (
    None,
    "regression",
    "single_label_classification",
    "multi_label_classification",
)
CLASSIFIERS = [*itertools.product([3, 1], PROBLEM_TYPES)]
CLASSIFIERS.remove((1, "single_label_classification"))  # which HF refuses
OPTIONS = ({}, {"chunk_size": 4}, {"chunk_size": 100})


@dataclasses.dataclass(frozen=True)
class Setting:
    """How gradients are taken, and to which precision they are HF's."""

    double: bool = True
    tied: bool = True
    checkpointed: bool = True
    jit: bool = True

    @property
    def rtol(self):
        return 1e-9 if self.double else 1e-4


SETTINGS = with_slow(
    Setting(),
    slow=[Setting(*flags) for flags in itertools.product([True, False], repeat=4)],
)


class Batch:
    """A random model of HF's, ours with its weights, and a random batch."""

    def __init__(self, name, seed, setting, **changes):
        rng = np.random.default_rng(seed)
        self.setting = setting
        self.config = random_config(rng)
        self.config.tie_word_embeddings = setting.tied
        self.config.encoder_layers = self.config.decoder_layers = 2
        self.config.update(changes)
        dtype = torch.float64 if setting.double else torch.float32
        self.theirs = random_model(name, self.config, seed, dtype)
        if not setting.double:
            # Of larger weights, HF's gradients in float32 are off by more than 1e-4.
            _halve(self.theirs)
        self.ours = convert(self.theirs)
        self.ids = random_ids(rng, self.config, 3, 6)
        self.mask = random_mask(rng, 3, 6)
        self.labels = random_ids(rng, self.config, 3, 5)
        self.labels[0, 3:] = self.labels[2, 0] = -100
        self.rng = rng

    def their_outputs(self, **kwargs):
        kwargs = {k: torch.from_numpy(np.asarray(v)) for k, v in kwargs.items()}
        return self.theirs(
            torch.from_numpy(self.ids), torch.from_numpy(self.mask), **kwargs
        )

    def compare(self, our_loss, their_loss):
        """That a loss, and its gradient by every parameter, are the same."""
        setting, rtol = self.setting, self.setting.rtol
        model = eb.gradient_checkpointing(self.ours, setting.checkpointed)
        grad = eqx.filter_value_and_grad(our_loss)
        loss, grads = (eqx.filter_jit(grad) if setting.jit else grad)(model)
        their_loss.backward()
        assert np.allclose(loss, their_loss.item(), rtol=rtol)
        assert_same_leaves(grads, convert_grads(self.theirs), rtol)


def _halve(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)


@pytest.fixture(params=SETTINGS, ids=str)
def setting(request):
    """A `Setting`, and JAX's precision for it."""
    with jax.enable_x64(request.param.double):
        yield request.param


def test_bare_model(setting):
    batch = Batch("BartModel", 2, setting)
    theirs = batch.their_outputs()

    def loss(model):
        outputs = model(batch.ids, batch.mask)
        states = outputs.last_hidden_state, outputs.encoder_last_hidden_state
        return sum(jnp.mean(x**3) for x in states)

    states = theirs.last_hidden_state, theirs.encoder_last_hidden_state
    batch.compare(loss, sum((x**3).mean() for x in states))


@pytest.mark.parametrize("options", with_slow(OPTIONS[1], slow=OPTIONS), ids=str)
def test_seq2seq(options, setting):
    batch = Batch("BartForConditionalGeneration", 3, setting)
    batch.compare(
        lambda model: (
            eb.seq2seq_loss(model, batch.ids, batch.mask, batch.labels, **options).mean
        ),
        batch.their_outputs(labels=batch.labels).loss,
    )


@pytest.mark.parametrize("chunk_size", with_slow(4, slow=[None]))
def test_label_smoothing_and_z_loss(chunk_size, setting):
    batch = Batch("BartForConditionalGeneration", 5, setting)
    logits = batch.their_outputs(labels=batch.labels).logits
    labels = torch.from_numpy(batch.labels)
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1
    )
    theirs = theirs + 0.01 * logits.logsumexp(-1)[labels != -100].square().mean()
    batch.compare(
        lambda model: (
            eb.seq2seq_loss(
                model,
                batch.ids,
                batch.mask,
                batch.labels,
                label_smoothing=0.1,
                z_loss=0.01,
                chunk_size=chunk_size,
            ).mean
        ),
        theirs,
    )


def test_causal_lm(setting):
    batch = Batch("BartForCausalLM", 6, setting)
    # What attends to nothing has another gradient in HF's model than in ours.
    labels = np.where(np.cumsum(batch.mask, axis=1) > 0, batch.ids, -100)
    batch.compare(
        lambda model: eb.cross_entropy(model(batch.ids, batch.mask).logits, labels).mean,
        batch.their_outputs(labels=labels).loss,
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 6, 100])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.02), (1.0, 0.0)])
def test_cross_entropy_of_logits(smoothing, z_loss, chunk_size):
    """The sum, the count, and the gradients of a multiple of the sum."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=size).astype(np.float32) for size in ((2, 3, 4), (4, 5))]
    labels = np.array([[0, -100, 4], [2, 2, -100]])
    hidden, weight = theirs = [torch.tensor(x, requires_grad=True) for x in arrays]
    logits, targets = (hidden @ weight).flatten(0, 1), torch.from_numpy(labels).flatten()
    expected = torch.nn.functional.cross_entropy(
        logits, targets, label_smoothing=smoothing, reduction="sum"
    )
    expected = expected + z_loss * logits.logsumexp(-1)[targets >= 0].square().sum()
    (2 * expected).backward()

    def loss(arrays):
        hidden, weight = arrays
        head = eqx.Partial(lambda weight, x: x @ weight, weight)
        options = {"label_smoothing": smoothing} if smoothing else {}
        options |= {"z_loss": z_loss} if z_loss else {}
        if chunk_size is None:
            found = eb.cross_entropy(head(hidden), labels, **options)
        else:
            options["chunk_size"] = chunk_size
            found = eb.chunked_cross_entropy(head, hidden, labels, **options)
        return 2 * found.total, found

    (_, found), grads = jax.value_and_grad(loss, has_aux=True)(arrays)
    assert found.count == 4
    assert np.isclose(found.total, expected.item(), rtol=1e-5)
    for grad, tensor in zip(grads, theirs, strict=True):
        assert np.allclose(grad, tensor.grad, rtol=1e-4, atol=1e-5)


BINARY = "binary_cross_entropy_with_logits"
IDS, FLOATS = np.array([2, 0]), np.array([[0, 1, 1], [1, 0, 1]], np.float32)
ONE = np.array([0.3, -1.2], np.float32)


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels", "name"),
    [
        (3, None, IDS, "cross_entropy"),
        (3, "single_label_classification", IDS, "cross_entropy"),
        (3, None, FLOATS, BINARY),
        (3, "multi_label_classification", FLOATS, BINARY),
        (3, "regression", FLOATS, "mse_loss"),
        (1, None, ONE, "mse_loss"),
        (1, None, ONE[:, None], "mse_loss"),
        (1, "regression", ONE, "mse_loss"),
        (1, "multi_label_classification", FLOATS[:, :1], BINARY),
    ],
)
def test_classification_of_logits(num_labels, problem_type, labels, name):
    logits = np.random.default_rng(1).normal(size=(2, num_labels)).astype(np.float32)
    targets = torch.from_numpy(labels)
    if targets.dtype.is_floating_point:
        targets = targets.reshape(2, num_labels)
    theirs = getattr(torch.nn.functional, name)
    expected = theirs(torch.from_numpy(logits), targets, reduction="sum")
    found = losses._classification_loss(jnp.asarray(logits), labels, problem_type)
    assert np.isclose(found.total, expected.item(), rtol=1e-5)
    assert found.count == (2 if name == "cross_entropy" else logits.size)


def test_terms_are_averaged_by_themselves():
    rng = np.random.default_rng(2)
    starts, ends = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2))
    found = jax.tree.map(
        lambda *terms: jnp.stack(terms),
        losses._position_loss(jnp.asarray(starts), np.array([0, 3, 4])),
        losses._position_loss(jnp.asarray(ends), np.array([7, -2, 5])),
    )
    assert found.count.tolist() == [2, 1]
    expected = [
        torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(labels))
        for logits, labels in ((starts[:2], [0, 3]), (ends[1:2], [0]))
    ]
    assert np.isclose(found.mean, sum(expected) / 2, rtol=1e-5)


@pytest.mark.parametrize("classifier", with_slow(CLASSIFIERS[2], slow=CLASSIFIERS), ids=str)
def test_classification(classifier, setting):
    num_labels, problem_type = classifier
    changes = {"num_labels": num_labels, "problem_type": problem_type}
    batch = Batch("BartForSequenceClassification", 7, setting, **changes)
    is_single = problem_type == "single_label_classification"
    if is_single or (problem_type is None and num_labels > 1):
        labels = batch.rng.integers(0, num_labels, 3)
    elif problem_type == "multi_label_classification":
        labels = batch.rng.integers(0, 2, (3, num_labels)).astype(float)
    else:
        labels = batch.rng.normal(size=(3, num_labels)).squeeze(
            -1 if num_labels == 1 else ()
        )
    if labels.dtype == float:
        labels = labels.astype(np.float64 if setting.double else np.float32)
    batch.compare(
        lambda model: eb.classification_loss(model, batch.ids, batch.mask, labels).mean,
        batch.their_outputs(labels=labels).loss,
    )


def test_question_answering(setting):
    batch = Batch("BartForQuestionAnswering", 8, setting)
    # HF clamps what lies outside, and ignores what lies past the end.
    starts, ends = np.array([0, 5, 9]), np.array([2, -3, 5])

    def loss(model):
        return eb.question_answering_loss(model, batch.ids, batch.mask, starts, ends).mean

    outputs = batch.their_outputs(start_positions=starts, end_positions=ends)
    batch.compare(loss, outputs.loss)


def test_twenty_steps_of_adamw():
    batch = Batch("BartForConditionalGeneration", 9, Setting(double=False))
    settings = {"eps": 1e-8, "weight_decay": 0.01}
    theirs = torch.optim.AdamW(batch.theirs.parameters(), lr=1e-3, **settings)
    expected = []
    for _ in range(20):
        theirs.zero_grad()
        loss = batch.their_outputs(labels=batch.labels).loss
        loss.backward()
        theirs.step()
        expected.append(loss.item())

    optim = optax.adamw(1e-3, **settings)
    model = batch.ours
    state = optim.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        loss, grads = eqx.filter_value_and_grad(
            lambda model: eb.seq2seq_loss(model, batch.ids, batch.mask, batch.labels).mean
        )(model)
        updates, state = optim.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(20):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    assert np.allclose(losses, expected, rtol=1e-4)


def test_sums_add_up_over_batches(getkey):
    logits = jax.random.normal(getkey(), (7, 5))
    labels = np.array([0, 4, -100, 2, -100, 1, 3])
    whole = eb.cross_entropy(logits, labels, label_smoothing=0)
    parts = eb.cross_entropy(logits[:3], labels[:3]) + eb.cross_entropy(
        logits[3:], labels[3:]
    )
    assert (whole.count, parts.count) == (5, 5)
    assert np.allclose(parts.mean, whole.mean)


def test_sums_add_up_over_devices(getkey):
    logits = jax.random.normal(getkey(), (2, 3, 5))
    labels = np.array([[0, 4, -100], [-100, -100, 3]])
    whole = eb.cross_entropy(logits, labels)

    def mean(logits, labels):
        return jax.lax.psum(eb.cross_entropy(logits, labels), "device").mean

    means = jax.vmap(mean, axis_name="device")(logits, labels)
    assert np.allclose(means, whole.mean)


def test_chunks_hold_few_logits():
    labels = np.zeros(512, np.int32)
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((16, 4096), (512, 16))]

    def needed(loss):
        program = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
        return program.memory_analysis().temp_size_in_bytes

    def chunked(weight, hidden):
        head = eqx.Partial(lambda weight, x: x @ weight, weight)
        return eb.chunked_cross_entropy(head, hidden, labels, chunk_size=32).mean

    whole = needed(lambda weight, hidden: eb.cross_entropy(hidden @ weight, labels).mean)
    assert whole > 512 * 4096 * 4
    assert needed(chunked) < 0.2 * whole


def test_losses_of_nothing(getkey):
    logits = jax.random.normal(getkey(), (2, 5))
    ignored = np.full(2, -100)
    assert eb.cross_entropy(logits, ignored).mean == 0
    grad = jax.grad(lambda x: eb.cross_entropy(x, ignored).mean)(logits)
    assert not np.any(grad)
    assert eb.cross_entropy(logits[:0], ignored[:0]).mean == 0
    head = eqx.nn.Identity()
    chunked = eb.chunked_cross_entropy(head, logits[:0], ignored[:0], chunk_size=4)
    assert (chunked.mean, chunked.count) == (0, 0)


def test_losses_of_empty_batches(config, getkey):
    ids = np.zeros((0, 4), np.int32)
    model = eb.BartForConditionalGeneration(config, key=getkey())

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def value_and_grad(model, size):
        return eb.seq2seq_loss(model, ids, None, ids, chunk_size=size, key=getkey()).mean

    for chunk_size in (None, 4):
        loss, grads = value_and_grad(model, chunk_size)
        assert loss == 0
        assert not any(np.any(grad) for grad in leaves(grads))
    model = eqx.nn.inference_mode(eb.BartForSequenceClassification(config, key=getkey()))
    none = np.zeros(0, np.int32)
    assert eqx.filter_jit(eb.classification_loss)(model, ids, None, none).mean == 0
    model = eqx.nn.inference_mode(eb.BartForQuestionAnswering(config, key=getkey()))
    loss = eqx.filter_jit(eb.question_answering_loss)(model, ids, None, none, none)
    assert loss.mean == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_in_a_batch_stays_in_its_row(value, config, getkey):
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    embeds = jax.random.normal(getkey(), (2, 4, config.d_model))
    labels = np.array([[5, 6, 2], [7, 8, 2]])
    call = eqx.filter_jit(model)
    logits = call(inputs_embeds=embeds, decoder_input_ids=labels).logits
    broken = embeds.at[1, 2, 0].set(value)
    others = call(inputs_embeds=broken, decoder_input_ids=labels).logits
    assert np.array_equal(others[0], logits[0])
    assert not np.any(np.isfinite(others[1]))
    assert not np.isfinite(eb.cross_entropy(others, labels).mean)
    assert np.isfinite(eb.cross_entropy(others[:1], labels[:1]).mean)


def test_what_is_not_finite_shows(getkey):
    logits = jnp.array([[0.0, jnp.nan], [0.0, 1.0], [jnp.inf, 0.0]])
    labels = np.array([-100, 1, -100])
    assert np.isfinite(eb.cross_entropy(logits, labels).mean)
    for row in (0, 2):
        labels = np.full(3, -100)
        labels[row] = 1
        assert not np.isfinite(eb.cross_entropy(logits, labels).mean)


def test_wrong_labels(config, getkey):
    logits = jax.random.normal(getkey(), (2, 5))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\).*labels\[1\] is 5"):
        eb.cross_entropy(logits, np.array([0, 5]))
    with pytest.raises(ValueError, match=r"labels\[0\] is -1"):
        eb.cross_entropy(logits, np.array([-1, 0]))
    with pytest.raises(Exception, match=r"labels must lie in \[0, 5\)"):
        jax.block_until_ready(jax.jit(eb.cross_entropy)(logits, jnp.array([0, 5])).total)
    for share in (-0.1, 1.5):
        with pytest.raises(
            ValueError, match=rf"label_smoothing .* \[0, 1\]; it is {share}"
        ):
            eb.cross_entropy(logits, np.asarray([0, 1]), label_smoothing=share)
    with pytest.raises(ValueError, match="chunk_size must be 1 or more; it is 0"):
        eb.chunked_cross_entropy(eqx.nn.Identity(), logits, np.array([0, 1]), chunk_size=0)
    ids = np.array([[5, 6, 2], [7, 8, 2]])
    for problem_type, message in (
        ("single_label_classification", r"needs labels class ids \[batch\]"),
        (None, r"multi_label.* needs labels \[2, 3\]"),
    ):
        changed = config.updated(problem_type=problem_type)
        model = eb.BartForSequenceClassification(changed, key=getkey())
        with pytest.raises(ValueError, match=message):
            eb.classification_loss(
                eqx.nn.inference_mode(model), ids, None, np.zeros(2, np.float32)
            )


def test_a_wrong_label_is_called_a_label(config, getkey):
    """Not the decoder input that is made of it, which nobody has passed."""
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    ids, labels = np.array([[5, 6, 2]]), np.array([[5, -100, 41]])
    for options in ({}, {"chunk_size": 2}, {"decoder_input_ids": ids}):
        with pytest.raises(ValueError, match=r"^labels must lie .*; labels\[0, 2\] is 41"):
            eb.seq2seq_loss(model, ids, None, labels, **options)
    jitted = eqx.filter_jit(eb.seq2seq_loss)
    with pytest.raises(RuntimeError, match=r"labels must lie in \[0, 41\)"):
        jax.block_until_ready(jitted(model, ids, None, jnp.asarray(labels)))
    head = eqx.nn.Identity()
    with pytest.raises(ValueError, match=r"labels\[1\] is 5"):
        eb.chunked_cross_entropy(head, jnp.ones((2, 5)), np.array([0, 5]), chunk_size=1)
