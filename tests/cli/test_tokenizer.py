"""What the command line reads without transformers is what transformers reads."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

import eqx_bart as eb
from eqx_bart.cli.tokenizer import load_tokenizer, PlainTokenizer


RNG = np.random.default_rng(0)
TEXTS = [
    "",
    " ",
    "cat",
    "Zwölf  Boxkämpfer",
    "don't </s> stop",
    "a" * 80,
    "naïve\tCAFÉ\n",
] + [
    "".join(RNG.choice([*"abc ÄßZ'.,<s>\n\u00e9e\u0301🙂"], RNG.integers(1, 40)))
    for _ in range(60)
]
TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def byte_level():
    """A tokenizer of byte pairs, of BART's kind."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"], vocab_size=120
    )
    made.train_from_iterator(TEXTS, trainer)
    ends = [(x, made.token_to_id(x)) for x in ("</s>", "<s>")]
    made.post_processor = processors.RobertaProcessing(*ends)
    return made


def words():
    """A tokenizer of words, with a normaliser, and no decoder."""
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    made.train_from_iterator(TEXTS[::2], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


@pytest.fixture(params=[byte_level, words, None], ids=["bytes", "words", "built-in"])
def directory(request, tmp_path):
    if request.param is None:
        return eb.BUILTIN_MODEL
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=request.param(), model_max_length=64, **TOKENS
    )
    saved.save_pretrained(tmp_path)
    shutil.copy(eb.BUILTIN_MODEL / "config.json", tmp_path)
    return tmp_path


def test_the_same_ids_and_texts(directory):
    ours = load_tokenizer(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert type(ours) is PlainTokenizer
    assert ours.unk_token_id == theirs.unk_token_id
    for cut in ({}, {"truncation": True, "max_length": 7}, {}):
        for text in TEXTS:
            ids = theirs(text, verbose=False, **cut)["input_ids"]
            assert ours(text, verbose=False, **cut)["input_ids"] == ids
    rows = RNG.integers(0, len(theirs), (50, 9), np.int32)
    for skip in (False, True):
        expected = theirs.batch_decode(rows, skip_special_tokens=skip)
        assert ours.batch_decode(rows, skip_special_tokens=skip) == expected
    for row in rows.tolist():
        assert ours.convert_ids_to_tokens(row) == theirs.convert_ids_to_tokens(row)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "BartTokenizer"}),
        ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("tokenizer_config.json", {"unk_token": "<new>"}),
        ("tokenizer_config.json", {"pad_token": {"content": "<pad>"}}),
        ("tokenizer.json", {"truncation": {"max_length": 3}}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"model": {}}),
        ("added_tokens.json", {}),
    ],
    ids=str,
)
def test_transformers_decides_in_doubt(file, changes, tmp_path, monkeypatch):
    place = tmp_path / "model"
    shutil.copytree(eb.BUILTIN_MODEL, place)
    known = json.loads((place / file).read_text()) if (place / file).exists() else {}
    (place / file).write_text(json.dumps(known | changes))
    asked = []

    def theirs(path, **_):
        asked.append(path)
        return transformers.PreTrainedTokenizerFast(tokenizer_object=words())

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", theirs)
    load_tokenizer(place)
    assert asked == [place]
