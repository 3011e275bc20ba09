"""Several examples to a row have the losses and gradients of separate rows."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import with_slow
from oracle import (
    assert_close,
    assert_same_leaves,
    convert,
    convert_grads,
    random_config,
    random_model,
)

import eqx_bart as eb


CONFIG = eb.BartConfig(vocab_size=50)
OPTIONS = ({}, {"chunk_size": 7}, {"label_smoothing": 0.1, "z_loss": 0.01})


def random_examples(rng, num, longest=(9, 6), vocab_size=50):
    """Pairs of random lengths. Some labels do not count."""
    sizes = rng.integers(1, [x + 1 for x in longest], (num, 2))
    pairs = [[rng.integers(vocab_size, size=n) for n in size] for size in sizes]
    for _, labels in pairs:
        labels[1:][rng.random(len(labels) - 1) < 0.1] = -100
    return [tuple(pair) for pair in pairs]


def tokens_of(array, segment_ids, number):
    """An example in a packed array, and its row."""
    row, columns = np.nonzero(segment_ids == number)
    assert len({*row}) == 1
    assert np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
    return array[row, columns], row[0]


@pytest.mark.parametrize("seed", range(3))
def test_every_example_is_in_one_row(seed):
    rng = np.random.default_rng(seed)
    examples = random_examples(rng, 200, (30, 12))
    options = {"source_length": 40, "target_length": 16, "batch_size": 8}
    batch = eb.pack(examples, CONFIG, **options)
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.segment_ids.shape
    assert batch.labels.shape == batch.decoder_segment_ids.shape
    assert batch.input_ids.shape[1] == 40
    assert batch.labels.shape[1] == 16
    assert len(batch.labels) % 8 == 0
    for i, (source, target) in enumerate(examples):
        ids, row = tokens_of(batch.input_ids, batch.segment_ids, i + 1)
        labels, same = tokens_of(batch.labels, batch.decoder_segment_ids, i + 1)
        assert row == same
        assert np.array_equal(ids, source)
        assert np.array_equal(labels, target)
    assert np.array_equal(batch.attention_mask, batch.segment_ids != 0)
    assert np.all(batch.input_ids[~batch.attention_mask] == CONFIG.pad_token_id)
    assert np.all(batch.labels[batch.decoder_segment_ids == 0] == -100)
    sizes = np.array([[len(x) for x in pair] for pair in examples])
    least = np.ceil(max(sizes.sum(0) / [40, 16]))
    used = np.sum(batch.segment_ids.any(1))
    assert least <= used <= 1.15 * least


def test_no_example_would_fit_into_a_row_before_its_own():
    rng = np.random.default_rng(3)
    examples = random_examples(rng, 60, (30, 12))
    batch = eb.pack(examples, CONFIG, source_length=40, target_length=16)
    sizes = np.array([[len(x) for x in pair] for pair in examples])
    rows = [tokens_of(batch.labels, batch.decoder_segment_ids, i + 1)[1] for i in range(60)]
    share = np.sum(sizes / [40, 16], axis=1)
    for i, row in enumerate(rows):
        for earlier in range(row):
            # What was there when it came: what is larger, or as large and before it.
            came = [(-share[j], j) < (-share[i], i) for j in range(60)]
            there = [j for j in range(60) if rows[j] == earlier and came[j]]
            assert np.any(sizes[there].sum(0) + sizes[i] > [40, 16])


def test_one_to_a_row():
    rng = np.random.default_rng(4)
    examples = random_examples(rng, 5, (9, 6))
    examples[2] = ([5] * 9, [6] * 6)
    lengths = {"source_lengths": (16, 8, 12), "target_lengths": (4, 8)}
    batch = eb.pad(examples, CONFIG, **lengths, batch_size=4)
    assert batch.input_ids.shape == (8, 12)
    assert batch.labels.shape == (8, 8)
    assert [*batch] == ["input_ids", "attention_mask", "labels"]
    for row, (source, target) in enumerate(examples):
        assert np.array_equal(batch.input_ids[row][batch.attention_mask[row]], source)
        assert np.array_equal(batch.labels[row, : len(target)], target)
        assert np.all(batch.labels[row, len(target) :] == -100)
    assert not batch.attention_mask[5:].any()


@pytest.mark.parametrize("function", [eb.pack, eb.pad])
@pytest.mark.parametrize(
    ("example", "message"),
    [
        (([5] * 9, [5]), r"Example 1 has 9 tokens and 1 labels; .* 1 to 8 and 1 to 4"),
        (([5], [5] * 5), r"Example 1 has 1 tokens and 5 labels"),
        (([], [5]), r"Example 1 has 0 tokens and 1 labels"),
        (([5], []), r"Example 1 has 1 tokens and 0 labels"),
        (([[5]], [5]), r"Example 1 must be a pair of lists of ids"),
        (([0.5], [5]), r"Example 1 must be a pair of lists of ids"),
    ],
)
def test_what_does_not_fit_is_named(function, example, message):
    lengths = {"source_length": 8, "target_length": 4}
    if function is eb.pad:
        lengths = {"source_lengths": (4, 8), "target_lengths": (4,)}
    with pytest.raises(ValueError, match=message):
        function([([5], [6]), example], CONFIG, **lengths)
    with pytest.raises(ValueError, match="batch_size must be 1 or more; it is 0"):
        function([([5], [6])], CONFIG, **lengths, batch_size=0)
    without = dataclasses.replace(CONFIG, pad_token_id=None)
    with pytest.raises(ValueError, match="no pad_token_id"):
        function([([5], [6])], without, **lengths)
    assert len(function([], CONFIG, **lengths).labels) == 0


def test_length_grouped():
    rng = np.random.default_rng(5)
    lengths = rng.lognormal(4, 0.6, 1003).astype(int)
    key = jax.random.key(0)
    batches = eb.length_grouped(lengths, 8, key=key, megabatch=25)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(1003))
    assert [len(x) for x in batches] == [8] * 125 + [3]
    again = eb.length_grouped(jnp.asarray(lengths), 8, key=key, megabatch=25)
    other = eb.length_grouped(lengths, 8, key=jax.random.fold_in(key, 1), megabatch=25)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert {tuple(x) for x in batches}.isdisjoint(tuple(x) for x in other)

    def share_of_tokens(batches):
        return lengths.sum() / sum(len(x) * lengths[x].max() for x in batches)

    shuffled = np.split(rng.permutation(1003)[:1000], 125)
    assert share_of_tokens(shuffled) < 0.6
    assert share_of_tokens(batches) > 0.9
    # In random order: neither the lengths of neighbours nor of halves go together.
    means = np.array([lengths[x].mean() for x in batches[:-1]])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.25
    assert eb.length_grouped(lengths[:0], 8, key=key) == []


def test_length_grouped_by_two_lengths():
    lengths = np.random.default_rng(6).integers(1, 5, (1000, 2))
    batches = eb.length_grouped(lengths, 10, key=jax.random.key(0), megabatch=100)
    firsts, seconds = (sum(np.ptp(lengths[x, i]) for x in batches) for i in range(2))
    # A batch differs in what lies on both sides of a border, and there are few of these.
    assert firsts <= 3
    assert seconds <= 4 * 3 + 3 * 3


class Distances(eb.nn.AbstractAttention):
    """BART's attention, with a bias for each distance: to the source too."""

    attention: eb.nn.Attention
    slope: jax.Array

    def init_cache(self, batch_size, num_slots, dtype):
        return self.attention.init_cache(batch_size, num_slots, dtype)

    def key_values(self, states, positions):
        return self.attention.key_values(states, positions)

    def __call__(self, hidden_states, positions, key_values, key_positions, mask, *, key):
        distance = key_positions[:, None, :] - positions[:, :, None]
        bias = self.slope * jnp.sin(distance.astype(self.slope.dtype))[:, None]
        queries = self.attention.queries(hidden_states)
        return self.attention.attend(queries, key_values, mask, bias=bias, key=key)


def with_distances(model):
    """`model`, whose attention goes by distances, and without learned positions."""

    def changed(x):
        if isinstance(x, eb.nn.Attention):
            return Distances(x, jnp.asarray(0.7, jnp.float64))
        if isinstance(x, eb.nn.LearnedPositionalEmbedding):
            return eb.nn.NoPositionalEmbedding(x.max_positions)
        return x

    kinds = (eb.nn.Attention, eb.nn.LearnedPositionalEmbedding)
    return jax.tree.map(changed, model, is_leaf=lambda x: isinstance(x, kinds))


MODELS = {
    "learned positions": lambda model: model,
    "distances": with_distances,
    "adapted, checkpointed": lambda model: eb.gradient_checkpointing(
        eb.lora(model, 2, key=jax.random.key(9))
    ),
}
CASES = [*itertools.product(MODELS, OPTIONS)]


def loss_and_gradient(model, loss):
    trained, rest = eqx.partition(model, eb.trainable(model))

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def total(trained, rest):
        summed = loss(eqx.combine(trained, rest))
        return summed.total, summed.count

    (value, count), grads = total(trained, rest)
    return value, int(count), grads


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    "case",
    with_slow(("learned positions", OPTIONS[2]), ("distances", OPTIONS[1]), slow=CASES),
    ids=str,
)
def test_losses_and_gradients_are_those_of_separate_rows(case, double):
    """Padded ones, and Hugging Face's."""
    name, options = case
    seed = CASES.index(case)
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    config.encoder_layers, config.decoder_layers = 1, 2
    theirs = random_model("BartForConditionalGeneration", config, seed, torch.float64)
    bart = convert(theirs)
    model = MODELS[name](bart)
    examples = random_examples(rng, 11, vocab_size=config.vocab_size)
    # Rows are longer than the table of positions, and the last is empty.
    lengths = {"source_length": 23, "target_length": 14}
    packed = eb.pack(examples, model.config, **lengths, batch_size=5)
    assert packed.segment_ids.any(1).sum() < min(5, len(packed.labels))
    value, count, grads = loss_and_gradient(
        model, lambda model: eb.seq2seq_loss(model, **packed, **options)
    )

    padded = eb.pad(examples, model.config, source_lengths=(9,), target_lengths=(6,))
    expected, expected_count, expected_grads = loss_and_gradient(
        model, lambda model: eb.seq2seq_loss(model, **padded, **options)
    )
    assert count == expected_count
    assert np.allclose(value, expected, rtol=1e-11)
    assert_same_leaves(grads, expected_grads, 1e-9)
    if name == "learned positions" and not options:
        inputs = (torch.from_numpy(np.int64(x)) for x in padded.values())
        loss = theirs(**dict(zip(padded, inputs, strict=True))).loss * count
        loss.backward()
        assert np.allclose(value, loss.item(), rtol=1e-10)
        assert_same_leaves(grads, convert_grads(theirs), 1e-9)


@pytest.fixture
def batches():
    """Examples, packed, and each with a row of its own."""
    examples = random_examples(np.random.default_rng(6), 7, vocab_size=41)
    packed = eb.pack(examples, CONFIG, source_length=15, target_length=10)
    return packed, eb.pad(examples, CONFIG, source_lengths=(9,), target_lengths=(6,))


def assert_same_tokens(packed, segment_ids, padded, is_token):
    for i, (row, is_own) in enumerate(zip(padded, is_token, strict=True)):
        assert_close(packed[segment_ids == i + 1], row[is_own], 1e-12)


def test_a_decoder_alone(config, batches, getkey, double):
    packed, padded = batches
    model = eqx.nn.inference_mode(eb.BartForCausalLM(config, key=getkey()))
    model = eqx.filter_jit(eb.cast(model, "float64"))
    states = jax.random.normal(getkey(), (*padded.input_ids.shape, 40), jnp.float64)
    packed_states = np.zeros((*packed.input_ids.shape, 40))
    for i, (row, is_token) in enumerate(zip(states, padded.attention_mask, strict=True)):
        packed_states[packed.segment_ids == i + 1] = row[is_token]
    ids, separate_ids = (np.where(x.labels == -100, 5, x.labels) for x in batches)
    segments, is_token = packed.decoder_segment_ids, np.zeros(padded.labels.shape, bool)
    for i, row in enumerate(is_token):
        row[: np.sum(segments == i + 1)] = True
    logits = model(ids, segment_ids=segments).logits
    separate = model(separate_ids).logits
    assert_same_tokens(logits, segments, separate, is_token)
    source = {"encoder_segment_ids": packed.segment_ids}
    with pytest.raises(ValueError, match="encoder_segment_ids, but no encoder_hidden_st"):
        model(ids, **source)
    logits = model(ids, None, packed_states, segment_ids=segments, **source).logits
    separate = model(separate_ids, None, states, padded.attention_mask).logits
    assert_same_tokens(logits, segments, separate, is_token)


def test_encode_decode_and_other_heads(config, batches, getkey, double):
    """Step by step; and an answer for each token, where there is a default for what the
    decoder reads."""
    packed, padded = batches
    qa = eqx.nn.inference_mode(eb.BartForQuestionAnswering(config, key=getkey()))
    qa = eb.cast(qa, "float64")

    @eqx.filter_jit
    def states(model, ids, mask, segments):
        encoded = model.encode(ids, mask, segment_ids=segments)
        decoded = model.decode(
            ids,
            encoder_outputs=encoded,
            encoder_attention_mask=mask,
            encoder_segment_ids=segments,
            decoder_segment_ids=segments,
        )
        starts = model(ids, mask, segment_ids=segments).start_logits
        return encoded.last_hidden_state, decoded.last_hidden_state, starts

    found = states(qa, packed.input_ids, None, packed.segment_ids)
    expected = states(qa, padded.input_ids, padded.attention_mask, None)
    for x, y in zip(found, expected, strict=True):
        assert_same_tokens(x, packed.segment_ids, y, padded.attention_mask)


class Probe(eb.nn.AbstractLayer):
    """Shows what it may attend to."""

    layer: eb.nn.AbstractLayer

    def init_cache(self, batch_size, num_slots, source, dtype):
        return None

    def __call__(self, hidden_states, context, cache=None, *, key):
        (source,) = context.source
        context = dataclasses.replace(context, source=source)
        hidden_states, _, _ = self.layer(hidden_states, context, key=key)
        sees = {"mask": context.mask, "source_mask": source.mask}
        positions = {"positions": context.positions, "source": source.positions}
        return hidden_states, None, {**sees, **positions, "tokens": context.attention_mask}


def test_layers_of_ones_own_need_no_edit(config, batches, getkey):
    """Whatever they attend to: every `Source` in it has masks and positions to go by."""
    batch, _ = batches
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    layers = tuple(Probe(layer) for layer in model.decoder.layers)
    model = eqx.tree_at(lambda m: m.model.decoder.layers, model, layers)
    segments, queries = batch.segment_ids, batch.decoder_segment_ids
    states = jnp.ones((*segments.shape, 40))
    source = (eb.nn.Source(states, segment_ids=jnp.asarray(segments)),)
    ids = np.where(batch.labels == -100, 5, batch.labels)
    calls = {"encoder_outputs": source, "decoder_segment_ids": queries}
    shown = eqx.filter_jit(model.decode)(ids, **calls).shown
    for mask, name in ((segments, "source_mask"), (queries, "mask")):
        expected = queries[:, :, None] == mask[:, None, :]
        if name == "mask":
            expected = np.tril(expected)
        assert np.array_equal(shown[name][1][:, 0], expected)
    assert np.array_equal(shown["tokens"][0], queries != 0)
    for number in range(1, 8):
        for ids_of, name in ((segments, "source"), (queries, "positions")):
            found = shown[name][0][ids_of == number]
            assert np.array_equal(found, np.arange(len(found)))
    for wrong in (
        {"encoder_outputs": source},
        calls | {"encoder_outputs": (eb.nn.Source(states),)},
    ):
        with pytest.raises(ValueError, match="they go together"):
            model.decode(ids, **wrong)
    with pytest.raises(TypeError, match="have to be parts"):
        model.decode(ids, **calls, encoder_segment_ids=segments)
    with pytest.raises(ValueError, match="A cache holds rows of one example each"):
        _ = source[0].mask


def test_what_cannot_be_packed(config, batches, getkey):
    batch, _ = batches
    ids, segments = batch.input_ids, batch.segment_ids
    model = eqx.nn.inference_mode(eb.BartForConditionalGeneration(config, key=getkey()))
    with pytest.raises(ValueError, match="of the source, but no decoder_segment_ids"):
        model(ids, decoder_input_ids=ids, segment_ids=segments)
    with pytest.raises(ValueError, match="decoder_segment_ids, but no segment_ids of the"):
        model(ids[:, :9], decoder_input_ids=ids, decoder_segment_ids=segments)
    cache = model.init_cache(model.encode(ids[:, :9]), 12)
    with pytest.raises(ValueError, match="rows of a cache have one example each"):
        model.decode(ids[:, :3], cache, decoder_segment_ids=segments[:, :3])
    with pytest.raises(ValueError, match="Its rows have one example each"):
        model.decode(ids[:, :3], cache, encoder_segment_ids=segments)
    longer = np.ones((1, 13), np.int32)  # than the table of positions
    with pytest.raises(
        ValueError, match=r"positions must lie in \[0, 12\).*\[0, 12\] is 12"
    ):
        model.encode(longer, segment_ids=longer)
    classifier = eb.BartForSequenceClassification(config, key=getkey())
    with pytest.raises(ValueError, match="give each a row of its own"):
        eqx.nn.inference_mode(classifier)(ids, segment_ids=segments)
