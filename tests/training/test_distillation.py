"""Students of some of a teacher's layers, and the loss that they learn by, against HF's
PyTorch BART."""

import itertools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
import transformers
from conftest import with_slow
from oracle import (
    assert_close,
    assert_same,
    assert_same_leaves,
    CLASSES,
    convert,
    convert_grads,
    random_config,
    random_ids,
    random_mask,
    random_model,
)
from torch.nn import functional

import eqx_bart as eb
from eqx_bart.training import distillation


ALL = {"alpha_data": 0.3, "alpha_logits": 0.7, "alpha_hid": 1.5, "temperature": 3.0}
OPTIONS = (
    ALL,
    ALL | {"chunk_size": 4, "normalize_hidden": True, "decoder_layers": (0, 1)},
    {},
    {"chunk_size": 100},
    ALL | {"normalize_hidden": True},
    {"alpha_data": 0.0, "alpha_logits": 1.0, "temperature": 0.5},
    {"alpha_data": 0.0, "alpha_logits": 0.0, "alpha_hid": 1.0},
)
CHUNKED = {"chunk_size": 3}
BATCH = np.array([[5, 6, 7, 2]]), None, np.array([[8, 9, 2]])


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def teacher(config, getkey):
    """A model of two encoder layers and three decoder layers."""
    config = config.updated(encoder_layers=2, decoder_layers=3, init_std=0.3)
    return new(config, getkey())


def new(config, key, name="BartForConditionalGeneration"):
    """A random model, in inference mode."""
    return eqx.nn.inference_mode(CLASSES[name](config, key=key))


@eqx.filter_jit
def jitted_loss(*args, **options):
    return eb.distillation_loss(*args, **options)


class Pair:
    """A random teacher and a random student of HF's, ours with their weights, and a batch
    with padding anywhere."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.config = random_config(rng)
        self.config.update({"encoder_layers": 2, "decoder_layers": 3})
        name = "BartForConditionalGeneration"
        self.their_teacher = random_model(name, self.config, seed, torch.float64)
        self.config.update({"encoder_layers": 1, "decoder_layers": 2})
        self.their_student = random_model(name, self.config, seed + 1, torch.float64)
        self.teacher, self.student = (
            convert(self.their_teacher),
            convert(self.their_student),
        )
        self.ids = random_ids(rng, self.config, 3, 6)
        self.mask = random_mask(rng, 3, 6)
        self.labels = random_ids(rng, self.config, 3, 5)
        self.labels[0, 3:] = self.labels[2, 0] = -100

    @property
    def batch(self):
        return self.ids, self.mask, self.labels


def their_difference(ours, theirs, normalize):
    """Mean squared, of each token."""
    if normalize:
        ours, theirs = (functional.layer_norm(x, x.shape[-1:]) for x in (ours, theirs))
    return functional.mse_loss(ours, theirs, reduction="none").mean(-1)


def their_loss(pair, options):
    """The sum of the loss over all labels, by PyTorch's own functions."""
    options = {"alpha_data": 0.2, "alpha_logits": 0.8, "alpha_hid": 0.0} | options
    temperature = options.get("temperature", 2.0)
    ids, mask, labels = map(torch.from_numpy, pair.batch)
    ours, theirs = (
        model(ids, mask, labels=labels, output_hidden_states=True)
        for model in (pair.their_student, pair.their_teacher)
    )
    counts = labels != -100
    data = functional.cross_entropy(ours.logits[counts], labels[counts], reduction="sum")
    divergence = functional.kl_div(
        functional.log_softmax(ours.logits[counts] / temperature, -1),
        functional.softmax(theirs.logits[counts].detach() / temperature, -1),
        reduction="sum",
    )
    hidden, normalize = 0, options.get("normalize_hidden", False)
    for layer, match in enumerate((0, 2) if "decoder_layers" in options else (1, 2)):
        states = ours.decoder_hidden_states[1 + layer][counts]
        taught = theirs.decoder_hidden_states[1 + match][counts].detach()
        hidden = hidden + their_difference(states, taught, normalize).sum()
    states, taught = ours.encoder_hidden_states[1], theirs.encoder_hidden_states[2]
    differences = their_difference(states, taught.detach(), normalize)
    for row in range(3):
        is_token = mask[row] == 1
        hidden = hidden + counts[row].sum() * differences[row][is_token].mean()
    return (
        options["alpha_data"] * data
        + options["alpha_logits"] * temperature**2 * divergence
        + options["alpha_hid"] * hidden
    )


@pytest.mark.parametrize("options", with_slow(OPTIONS[1], slow=OPTIONS), ids=str)
def test_the_loss_and_its_gradient_are_pytorch_s(options, double):
    pair = Pair(3)
    expected = their_loss(pair, options)
    expected.backward()

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(student, teacher):
        found = eb.distillation_loss(student, teacher, *pair.batch, **options)
        return found.total, found.count

    (total, count), grads = loss(pair.student, pair.teacher)
    assert count == np.sum(pair.labels != -100)
    assert np.isclose(total, expected.item(), rtol=1e-10)
    assert_same_leaves(grads, convert_grads(pair.their_student), 1e-9)


@pytest.mark.slow
def test_a_mean_over_full_rows_is_hf_s_hidden_loss(double):
    """Where all rows are full, HF's mean over all tokens of a batch is the same."""
    pair = Pair(4)
    pair.mask[:], pair.labels[pair.labels == -100] = 1, 7
    options = {"alpha_data": 0.0, "alpha_logits": 0.0, "alpha_hid": 1.0}
    found = eb.distillation_loss(pair.student, pair.teacher, *pair.batch, **options).mean
    ids, mask, labels = map(torch.from_numpy, pair.batch)
    with torch.no_grad():
        ours, theirs = (
            model(ids, mask, labels=labels, output_hidden_states=True)
            for model in (pair.their_student, pair.their_teacher)
        )
    expected = sum(
        functional.mse_loss(ours[name][1 + i], theirs[name][1 + j])
        for name, matches in (
            ("encoder_hidden_states", (1,)),
            ("decoder_hidden_states", (1, 2)),
        )
        for i, j in enumerate(matches)
    )
    assert np.isclose(found, expected.item(), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, CHUNKED], ids=str)
def test_a_student_of_all_layers_has_nothing_to_learn_from_its_teacher(
    options, teacher, double
):
    teacher = eb.cast(teacher, "float64")
    student = eb.shrink(teacher, encoder_layers=2, decoder_layers=range(3))
    assert_same(student, teacher)
    assert student.config == teacher.config

    weights = {"alpha_data": 0.0, "alpha_hid": 1.0}

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(student, teacher):
        return eb.distillation_loss(student, teacher, *BATCH, **weights, **options).total

    total, grads = loss(student, teacher)
    assert abs(total) < 1e-12
    assert all(np.max(np.abs(grad)) < 1e-12 for grad in jax.tree.leaves(grads))
    shorter = eb.shrink(teacher, decoder_layers=2)
    assert jitted_loss(shorter, teacher, *BATCH, **weights, **options).total > 0.1


@pytest.mark.parametrize("options", with_slow(CHUNKED, slow=[{}, CHUNKED]), ids=str)
def test_packed_rows_have_the_loss_of_micro_batches(options, double):
    pair = Pair(5)
    rng = np.random.default_rng(0)
    size = pair.config.vocab_size
    examples = [
        (rng.integers(size, size=n), rng.integers(size, size=m))
        for n, m in rng.integers(1, 5, (7, 2))
    ]
    examples[2][1][0] = -100
    examples[3] = (examples[3][0], np.full(3, -100))
    config = pair.student.config
    packed = eb.pack(examples, config, source_length=9, target_length=9)
    rows = [
        eb.pad(some, config, source_lengths=(6,), target_lengths=(5,), batch_size=4)
        for some in (examples[:4], examples[4:])
    ]
    assert len(packed.labels) < 5

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(student, teacher, batch):
        found = eb.distillation_loss(student, teacher, **batch, **ALL, **options)
        return found.total, found.count

    (total, count), grads = loss(pair.student, pair.teacher, packed)
    parts = [loss(pair.student, pair.teacher, batch) for batch in rows]
    expected, expected_grads = jax.tree.map(operator.add, *parts)
    assert np.isclose(total, expected[0], rtol=1e-12)
    assert count == expected[1]
    assert_same_leaves(grads, expected_grads, 1e-10)


def test_the_teacher_is_in_inference_mode(teacher, getkey):
    student = eb.shrink(teacher, decoder_layers=2)
    expected = jitted_loss(student, teacher, *BATCH, **ALL).total
    training = eqx.nn.inference_mode(teacher, value=False)
    assert jitted_loss(student, training, *BATCH, **ALL).total == expected
    in_training = eqx.nn.inference_mode(student, value=False)
    with pytest.raises(RuntimeError, match="key"):
        eb.distillation_loss(in_training, teacher, *BATCH)
    drawn = jitted_loss(in_training, teacher, *BATCH, **ALL, key=getkey()).total
    assert not np.isclose(drawn, expected)


@pytest.mark.parametrize("options", with_slow(CHUNKED, slow=[{}, CHUNKED]), ids=str)
def test_the_teacher_gets_no_gradient(options, teacher):
    @eqx.filter_jit
    @eqx.filter_grad
    def loss(pair):
        return eb.distillation_loss(*pair, *BATCH, **ALL, **options).total

    of_student, of_teacher = loss((eb.shrink(teacher, decoder_layers=2), teacher))
    assert all(not np.any(grad) for grad in jax.tree.leaves(of_teacher))
    assert max(np.max(np.abs(grad)) for grad in jax.tree.leaves(of_student)) > 1e-2


@pytest.mark.parametrize("options", with_slow(CHUNKED, slow=[{}, CHUNKED]), ids=str)
def test_a_teacher_in_8_bits_and_a_student_in_bfloat16(options, teacher):
    """In JAX's strict modes."""
    student = eb.shrink(teacher, decoder_layers=2)
    expected = jitted_loss(student, teacher, *BATCH, **ALL).total
    pair = eb.cast(student, "bfloat16"), eb.quantize(teacher)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = jitted_loss(*pair, *BATCH, **ALL, **options).total
    assert found.dtype == jnp.float32
    assert np.isclose(found, expected, rtol=0.05)


@pytest.mark.parametrize(
    "name", with_slow("BartForConditionalGeneration", "BartForCausalLM", slow=CLASSES)
)
def test_hf_reads_a_student(name, config, getkey, tmp_path):
    """Of which the layers are the teacher's, with the same outputs as in HF's model that
    has the teacher's layers too."""
    config = config.updated(encoder_layers=3, decoder_layers=3, init_std=0.3)
    teacher = new(config, getkey(), name)
    has_encoder = name != "BartForCausalLM"
    encoder_layers = {"encoder_layers": (0, 2)} if has_encoder else {}
    student = eb.shrink(teacher, **encoder_layers, decoder_layers=2)
    assert student.config.decoder_layers == 2
    assert student.config.encoder_layers == (2 if has_encoder else 3)
    teacher.save_pretrained(tmp_path / "teacher")
    student.save_pretrained(tmp_path / "student")
    assert_same(CLASSES[name].from_pretrained(tmp_path / "student"), student)

    read = getattr(transformers, name).from_pretrained
    theirs, whole = read(tmp_path / "student"), read(tmp_path / "teacher")
    stack = whole if name == "BartModel" else whole.model
    kept = torch.nn.ModuleList([stack.decoder.layers[i] for i in (0, 2)])
    stack.decoder.layers = kept
    if has_encoder:
        layers = stack.encoder.layers
        stack.encoder.layers = torch.nn.ModuleList([layers[0], layers[2]])
    ids = np.array([[5, 6, 7, 2], [9, 8, 2, 1]])
    mask = (ids != 1).astype(np.int64)
    ours = eqx.filter_jit(student)(ids, mask).to_tuple()[0]
    for model in (theirs, whole):
        with torch.no_grad():
            expected = model(torch.from_numpy(ids), torch.from_numpy(mask), use_cache=False)
        assert_close(ours, expected[0], 1e-5)


@pytest.mark.slow
def test_a_student_decodes_with_a_cache(teacher):
    student = eb.shrink(teacher, encoder_layers=1, decoder_layers=(0, 2))
    eb.testing.check_decoding(student, np.array([[5, 6, 7, 2]]))


# HF's `LAYERS_TO_COPY`, as far as it is even.
SPREAD = {
    (12, 1): [0],
    (12, 3): [0, 6, 11],
    (12, 6): [0, 2, 4, 7, 9, 11],
    (12, 12): [*range(12)],
    (16, 1): [0],
    (16, 2): [0, 15],
    (16, 3): [0, 8, 15],
    (16, 4): [0, 5, 10, 15],
    (16, 6): [0, 3, 6, 9, 12, 15],
    (6, 2): [0, 5],
}


@pytest.mark.parametrize("sizes", SPREAD, ids=str)
def test_layers_are_spread_as_in_the_paper(sizes):
    num_layers, number = sizes
    found = distillation._indices(number, num_layers, "decoder_layers")
    assert [*found] == SPREAD[sizes]


def test_layers_are_spread_evenly():
    for num_layers in range(1, 30):
        for number in range(2, num_layers + 1):
            found = distillation._indices(number, num_layers, "decoder_layers")
            assert (found[0], found[-1], len(found)) == (0, num_layers - 1, number)
            gaps = [b - a for a, b in itertools.pairwise(found)]
            assert max(gaps) - min(gaps) <= 1


def test_a_layer_learns_what_comes_before_the_next_one():
    for num_layers, layers, number, matched in (
        (12, None, 3, [5, 10, 11]),
        (6, (2, 3), 2, [2, 5]),
        (6, None, 6, [*range(6)]),
    ):
        states = (jnp.zeros((1, 1, 1)),) * (1 + number)
        taught = tuple(jnp.full((1, 1, 1), i - 1.0) for i in range(1 + num_layers))
        found = distillation._matches(states, taught, layers, "decoder_layers")
        assert [int(x[0, 0, 0]) for x in found] == matched


def test_wrong_layers(teacher):
    for layers in (0, 4, -1):
        message = f"decoder_layers={layers}: a student has 1 to 3 of the teacher's 3"
        with pytest.raises(ValueError, match=message):
            eb.shrink(teacher, decoder_layers=layers)
    for layers in ([], [0, 3], [-1, 2], [2, 1], [1, 1]):
        with pytest.raises(
            ValueError, match=r"decoder_layers=\[.*\]: .* 0 to 2, each once"
        ):
            eb.shrink(teacher, decoder_layers=layers)
    layers = eb.nn.RepeatedLayer(teacher.model.encoder.layers[0], 3)
    repeated = eqx.tree_at(lambda m: m.model.encoder.layers, teacher, layers)
    with pytest.raises(ValueError, match=r"model.encoder.layers is a RepeatedLayer"):
        eb.shrink(repeated, encoder_layers=2)
    assert len(eb.shrink(repeated, decoder_layers=2).model.encoder.layers) == 3
    decoder = eb.BartForCausalLM(teacher.config, key=jax.random.key(0))
    with pytest.raises(ValueError, match="encoder_layers: the teacher has no BartEncoder"):
        eb.shrink(decoder, encoder_layers=2)


class Head(eb.models.AbstractLMHead):
    """One that does not go by the last hidden states alone, for all that the loss knows."""

    needs_attentions = False

    def __call__(self, decoded, source, projection):
        return projection(2 * decoded.last_hidden_state)


def test_wrong_settings_of_the_loss(teacher, getkey):
    def traced(student, teacher, *batch, **options):
        return eqx.filter_eval_shape(
            eb.distillation_loss, student, teacher, *batch, **options
        )

    student = eb.shrink(teacher, decoder_layers=2)
    for layers, number in (((0, 1, 2), 3), (1, 1)):
        with pytest.raises(ValueError, match=f"the student has 2 layers, not {number}"):
            traced(student, teacher, *BATCH, alpha_hid=1.0, decoder_layers=layers)
    with pytest.raises(ValueError, match="decoder_layers=3: a student has 1 to 2 of"):
        traced(teacher, student, *BATCH, alpha_hid=1.0)
    with pytest.raises(ValueError, match="temperature must be above 0; it is 0"):
        traced(student, teacher, *BATCH, temperature=0.0)
    with pytest.raises(ValueError, match=r"^labels must lie .*; labels\[0, 0\] is 41"):
        eb.distillation_loss(student, teacher, *BATCH[:2], np.array([[41, 2]]))
    other = new(student.config.updated(vocab_size=50), getkey())
    with pytest.raises(jaxtyping.TypeCheckError, match="vocab=50"):
        traced(other, teacher, *BATCH)
    other = new(student.config.updated(d_model=12), getkey())
    with pytest.raises(jaxtyping.TypeCheckError, match="d_model=12"):
        traced(other, teacher, *BATCH, alpha_hid=1.0)
    headed = eqx.tree_at(lambda m: m.head, teacher, Head(), is_leaf=lambda x: x is None)
    assert traced(headed, teacher, *BATCH).total.shape == ()
    for pair in ((headed, teacher), (teacher, headed)):
        with pytest.raises(TypeError, match="the model's is a Head: pass chunk_size=None"):
            traced(*pair, *BATCH, chunk_size=2)
