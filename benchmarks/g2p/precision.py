"""What half precision and 8 bits cost the built-in model, on words that it has not seen.

python benchmarks/g2p/precision.py [--words 1500] [--num-beams 4]
"""

import argparse

from data import PAD, pad, split, Words
from evaluate import edit_distance, error_rates, predict

import eqx_bart as eb


def models() -> dict[str, eb.BartForConditionalGeneration]:
    """The model in each precision. SmoothQuant sees words of the validation set."""
    load = eb.BartForConditionalGeneration.from_pretrained
    model = load(eb.BUILTIN_MODEL)
    pairs = split()["validation"].pairs()[:512]
    source, target = (pad(list(rows), 32) for rows in zip(*pairs, strict=True))

    def calibrate(model: eb.BartForConditionalGeneration) -> None:
        model(source, source != PAD, decoder_input_ids=target)

    return {
        "float32": model,
        "bfloat16": load(eb.BUILTIN_MODEL, dtype="bfloat16"),
        "8 bits": eb.quantize(model),
        "8 bits, all else in bfloat16": load(
            eb.BUILTIN_MODEL, dtype="bfloat16", quantize="int8"
        ),
        "8 bits, the head in floats": eb.quantize(model, keep=("shared",)),
        "8 bits, smoothed": eb.quantize(model, calibrate=calibrate),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=1500)
    parser.add_argument("--num-beams", type=int, default=4)
    args = parser.parse_args()
    every = split()["test"].pronunciations
    step = max(1, len(every) // args.words)
    words = Words({word: every[word] for word in list(every)[::step][: args.words]})
    expected = dict[str, tuple[str, ...]]()
    for name, model in models().items():
        found = predict(
            model, list(words.pronunciations), num_beams=args.num_beams, batch_size=256
        )
        expected = expected or found
        same = sum(found[word] == expected[word] for word in found) / len(found)
        wrong = sum(edit_distance(found[word], expected[word]) for word in found)
        tokens = 1 - wrong / sum(map(len, expected.values()))
        rates = error_rates(model, words, num_beams=args.num_beams)
        print(f"{name}: {same:.1%} of answers, {tokens:.2%} of tokens as float32; {rates}")


if __name__ == "__main__":
    main()
