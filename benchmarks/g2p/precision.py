"""What half precision and 8 bits cost the built-in model, or another that reads letters, on
words that the built-in one has not seen.

python benchmarks/g2p/precision.py [--words 1500] [--num-beams 4] [--checkpoint DIRECTORY]

The built-in model's answers are also compared with CMUdict's. A checkpoint of another model
has the characters of its ids in its config, as `grapheme_chars`; words with others are left
out.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from data import BOS, EOS, IDS, LETTERS, pad, split, VOCABULARY, Words
from evaluate import edit_distance, rates_of

import eqx_bart as eb


Model = eb.BartForConditionalGeneration
#: The ids that a model reads for a word.
Spell = Callable[[str], list[int]]


def spelling(checkpoint: Path | None) -> tuple[Spell, set[str]]:
    """How words are spelled, and the characters that are known."""
    if checkpoint is None:
        return lambda word: [BOS, *(IDS[x] for x in word), EOS], set(LETTERS)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    characters = config["grapheme_chars"]
    bos, eos = config["bos_token_id"], config["eos_token_id"]
    return lambda word: [bos, *map(characters.index, word), eos], set(characters)


def forms(path: Path, typical: list[list[int]]) -> dict[str, Model]:
    """The model in each precision. SmoothQuant sees typical inputs."""
    load = Model.from_pretrained
    model = load(path)
    ids = pad(typical, max(map(len, typical)), -1)
    mask = ids >= 0
    return {
        "float32": model,
        "bfloat16": load(path, dtype="bfloat16"),
        "8 bits": eb.quantize(model),
        "8 bits, all else in bfloat16": load(path, dtype="bfloat16", quantize="int8"),
        "8 bits, the head in floats": eb.quantize(model, keep=("shared",)),
        "8 bits, smoothed": eb.quantize(
            model, calibrate=lambda model: model(np.where(mask, ids, 0), mask)
        ),
    }


def answers(model: Model, rows: list[list[int]], num_beams: int) -> list[list[int]]:
    """The ids of the answers, without the special ones."""
    found = model.generate_many(
        rows, batch_size=256, num_beams=num_beams, max_length=model.max_positions
    )
    config = model.config
    special = {config.bos_token_id, config.pad_token_id, *config.eos_token_ids}
    sequences = (np.asarray(output.sequences)[0].tolist() for _, output in found)
    return [[i for i in sequence if i not in special] for sequence in sequences]


def agreement(found: list[list[int]], expected: list[list[int]]) -> str:
    """How many answers, and how many of their tokens, are as expected."""
    pairs = list(zip(found, expected, strict=True))
    same = sum(x == y for x, y in pairs) / len(pairs)
    wrong = sum(edit_distance(x, y) for x, y in pairs) / sum(map(len, expected))
    return f"{same:.1%} of answers, {1 - wrong:.2%} of tokens as float32"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=1500)
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    spell, known = spelling(args.checkpoint)
    parts = split()
    typical, unseen = (
        {w: x for w, x in parts[name].pronunciations.items() if known.issuperset(w)}
        for name in ("validation", "test")
    )
    words = list(unseen)[:: max(1, len(unseen) // args.words)][: args.words]
    references = Words({word: unseen[word] for word in words})
    path = args.checkpoint or Path(eb.BUILTIN_MODEL)
    expected = list[list[int]]()
    for name, model in forms(path, [spell(word) for word in list(typical)[:512]]).items():
        found = answers(model, [spell(word) for word in words], args.num_beams)
        expected = expected or found
        line = f"{name}: {agreement(found, expected)}"
        if args.checkpoint is None:
            phonemes = (tuple(VOCABULARY[i] for i in ids) for ids in found)
            line += f"; {rates_of(dict(zip(words, phonemes, strict=True)), references)}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
