"""Phoneme and word error rates of a model on CMUdict words that training did not see.

python benchmarks/g2p/evaluate.py [--model DIRECTORY] [--split test] [--num-beams 4]
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from data import BOS, EOS, IDS, PAD, pad, split, STRESSES, VOCABULARY, Words

import eqx_bart as eb


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """Errors per phoneme of the reference, and per word, with and without stress.

    Where a word has several pronunciations, the nearest counts, as is usual.
    """

    words: int
    per: float
    wer: float
    per_stressed: float
    wer_stressed: float

    def __str__(self) -> str:
        return (
            f"{self.words} words: PER {self.per:.2%}, WER {self.wer:.2%}; with stress "
            f"PER {self.per_stressed:.2%}, WER {self.wer_stressed:.2%}"
        )


def error_rates(
    model: eb.BartForConditionalGeneration,
    words: Words,
    *,
    num_beams: int = 4,
    batch_size: int = 256,
) -> ErrorRates:
    """The error rates of beam search, on `words`."""
    predictions = predict(
        model, list(words.pronunciations), num_beams=num_beams, batch_size=batch_size
    )
    return rates_of(predictions, words)


def rates_of(predictions: dict[str, tuple[str, ...]], words: Words) -> ErrorRates:
    """The error rates of what was made of `words`."""
    rates = []
    for strip in (True, False):
        errors = total = wrong = 0
        for word, references in words.pronunciations.items():
            predicted = _strip(predictions[word]) if strip else predictions[word]
            candidates = [_strip(r) if strip else r for r in references]
            distance, length = min(
                (edit_distance(predicted, r), len(r)) for r in candidates
            )
            errors, total, wrong = errors + distance, total + length, wrong + (distance > 0)
        rates += [errors / total, wrong / len(predictions)]
    return ErrorRates(len(predictions), *rates)


def predict(
    model: eb.BartForConditionalGeneration,
    words: Sequence[str],
    *,
    num_beams: int,
    batch_size: int,
) -> dict[str, tuple[str, ...]]:
    """What the model makes of each word."""
    predictions = {}
    for i in range(0, len(words), batch_size):
        batch = words[i : i + batch_size]
        rows = [[BOS, *(IDS[letter] for letter in word), EOS] for word in batch]
        rows += [[BOS, EOS]] * (batch_size - len(batch))
        input_ids = pad(rows, 32)
        sequences = model.generate(
            input_ids, input_ids != PAD, max_length=32, num_beams=num_beams
        ).sequences
        for word, sequence in zip(batch, np.asarray(sequences), strict=False):
            tokens = [VOCABULARY[i] for i in sequence if i > max(BOS, PAD, EOS)]
            predictions[word] = tuple(tokens)
    return predictions


def _strip(phonemes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(phoneme.rstrip(STRESSES) for phoneme in phonemes)


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """The Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, previous + (x != y)),
            )
    return row[-1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(eb.BUILTIN_MODEL))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--num-beams", type=int, default=4)
    args = parser.parse_args()
    model = eb.BartForConditionalGeneration.from_pretrained(args.model)
    print(error_rates(model, split()[args.split], num_beams=args.num_beams))


if __name__ == "__main__":
    main()
