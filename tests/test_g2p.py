"""The built-in model: what its card promises, and that PyTorch reads it alike."""

import dataclasses
import pathlib
import re
import sys
import types

import equinox as eqx
import numpy as np
import pytest
import torch
import transformers
from oracle import leaves

import eqx_bart as eb


BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks" / "g2p"


@pytest.fixture(scope="module")
def model():
    return eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)


@pytest.fixture(scope="module")
def theirs():
    return transformers.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)


@pytest.fixture(scope="module")
def benchmark():
    """The modules of `benchmarks/g2p`."""
    sys.path.insert(0, str(BENCHMARKS))
    import data
    import evaluate
    import train

    yield data, evaluate, train
    sys.path.remove(str(BENCHMARKS))


def test_size_and_card():
    assert (eb.BUILTIN_MODEL / "model.safetensors").stat().st_size < 6_000_000
    card = (eb.BUILTIN_MODEL / "README.md").read_text()
    rows = re.findall(r"^\|.*stress.*\| ([\d.]+)% \| ([\d.]+)% \|$", card, re.MULTILINE)
    (per, wer), (per_stressed, wer_stressed) = [tuple(map(float, row)) for row in rows]
    assert per < per_stressed < wer < wer_stressed
    assert per <= 5.5
    assert wer <= 24


def test_error_rate_on_words_it_has_not_seen(model, benchmark):
    data, evaluate, _ = benchmark
    words = data.split()["test"].pronunciations
    assert len(words) == 6526
    sample = data.Words({word: words[word] for word in list(words)[::20]})
    rates = evaluate.error_rates(model, sample)
    assert rates.words == len(sample.pronunciations)
    assert rates.per < 0.08
    assert rates.per < rates.per_stressed < rates.wer < rates.wer_stressed


def test_error_rates_by_hand(benchmark):
    _, evaluate, _ = benchmark
    for a, b, distance in (("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3)):
        assert evaluate.edit_distance(a, b) == distance
        assert evaluate.edit_distance(b, a) == distance


def test_an_epoch_has_every_pair_in_full_batches(benchmark):
    data, *_ = benchmark
    pairs = data.split()["validation"].pairs()
    batches = list(data.epoch(data.bucketed(pairs), 64, np.random.default_rng(0)))
    assert len(batches) == data.epoch_steps(data.bucketed(pairs), 64)
    assert {len(inputs) for inputs, _ in batches} == {64}
    seen = {
        (tuple(i[i != data.PAD].tolist()), tuple(t[t != data.NO_LABEL].tolist()))
        for inputs, labels in batches
        for i, t in zip(inputs, labels, strict=True)
    }
    assert seen == {(tuple(source), tuple(target)) for source, target in pairs}


def test_splits_share_no_word(benchmark):
    data, *_ = benchmark
    parts = [set(words.pronunciations) for words in data.split().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 126_052


@pytest.mark.slow
def test_killed_and_resumed_training_ends_bit_equal(benchmark, monkeypatch, tmp_path):
    data, _, train = benchmark
    pronunciations = data.split()["validation"].pronunciations
    names = list(pronunciations)[:60]
    words = data.Words({name: pronunciations[name] for name in names})
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 8}
    config = dataclasses.replace(train.CONFIG, **sizes)
    monkeypatch.setattr(train, "CONFIG", config)
    recipe = train.Recipe(2, 16, 1e-2, 2, 0.1, 0.2, "bfloat16", 0)
    step, calls = train.train_step, []

    def killed(*args):
        calls.append(args)
        if len(calls) % 5 == 0:
            raise KeyboardInterrupt
        return step(*args)

    def run(file, recipe=recipe):
        parts = {"train": words, "validation": words}
        return train.train(parts, recipe, tmp_path / file, save_every=3)

    expected = run("whole")
    num_steps = recipe.epochs * data.epoch_steps(data.bucketed(words.pairs()), 16)
    assert num_steps > 8
    monkeypatch.setattr(train, "train_step", killed)
    interruptions, model = 0, None
    while model is None:
        try:
            model = run("killed")
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2
    assert len(calls) > num_steps
    assert eqx.tree_equal(model, expected)
    with pytest.raises(ValueError, match=r"was trained with .*'seed': 0"):
        run("killed", dataclasses.replace(recipe, seed=1))

    train.save(model, tmp_path / "saved")
    assert sum(f.stat().st_size for f in (tmp_path / "saved").iterdir()) < 6_000_000
    saved = eb.BartForConditionalGeneration.from_pretrained(tmp_path / "saved")
    halves = eb.cast(eb.cast(model, "float16"), "float32")
    assert eqx.tree_equal(leaves(saved), leaves(halves))


def test_pytorch_gives_the_same_words(model, theirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)
    words = ["Equinox", "don't", "x-ray", "a", "mr.", "antidisestablishmentarianism", "zzz"]
    inputs = tokenizer(words, padding=True, return_tensors="pt")
    expected = theirs.generate(**inputs).numpy()
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    sequences = model.generate(arrays["input_ids"], arrays["attention_mask"]).sequences
    assert np.array_equal(sequences[:, : expected.shape[1]], expected)
    assert np.all(sequences[:, expected.shape[1] :] == tokenizer.pad_token_id)


@pytest.mark.slow
def test_pytorch_makes_the_same_predictions_on_the_test_split(model, theirs, benchmark):
    data, evaluate, _ = benchmark

    def generate(input_ids, attention_mask, **settings):
        input_ids, attention_mask = map(torch.from_numpy, (input_ids, attention_mask))
        sequences = theirs.generate(input_ids, attention_mask=attention_mask, **settings)
        return types.SimpleNamespace(sequences=sequences.numpy())

    words = list(data.split()["test"].pronunciations)
    predictions, expected = (
        evaluate.predict(each, words, num_beams=4, batch_size=256)
        for each in (model, types.SimpleNamespace(generate=generate))
    )
    assert predictions == expected


def test_the_tokenizer_is_the_benchmarks(benchmark):
    data, *_ = benchmark
    tokenizer = transformers.AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)
    assert tokenizer.get_vocab() == data.IDS
    ids = tokenizer("Cat's")["input_ids"]
    assert ids == [data.BOS, *(data.IDS[c] for c in "cat's"), data.EOS]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "c a t ' s"
