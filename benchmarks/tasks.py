"""Texts per second of the tasks, beside the same done by hand with Hugging Face's PyTorch
BART.

pip install -e '.[test]'
python benchmarks/tasks.py [--size base] [--texts 64] [--rounds 3] [--json FILE]

The weights are random, and so are the words of the texts; lengths are log-normal, 96 words
in the middle. By hand means what people write: batches in the order of the texts, padded to
the longest. Both go from strings to scores, which are compared first; they take turns.
"""

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from report import Comparison, write
from rich import box
from rich.console import Console
from rich.table import Table
from sizes import SIZES
from timing import seconds
from tokenizers import models, pre_tokenizers, processors, Tokenizer

import eqx_bart as eb


NUM_WORDS, BATCH, LABELS = 20_000, 16, ("politics", "sport", "science")
CANDIDATES = 8
SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}

#: From texts to a number for each of them.
Scores = Callable[[Sequence[str]], list[float]]


def tokenizer_of_words() -> Any:
    """A tokenizer whose tokens are words, with the special tokens of BART's."""
    words = [*SPECIAL.values(), *(f"w{i}" for i in range(NUM_WORDS))]
    words += ["This", "example", "is", ".", "?", *LABELS]
    ids = {word: i for i, word in enumerate(words)}
    of_words = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk"]))
    of_words.pre_tokenizer = pre_tokenizers.Whitespace()
    of_words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=of_words, **names)


def texts_of(count: int, middle: int, seed: int) -> list[str]:
    """Random words, each once in a text: what stands twice is one answer to a question."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(middle), 0.7, count).astype(int), 4, 500)
    words = [rng.choice(NUM_WORDS, n, replace=False) for n in lengths]
    return [" ".join(f"w{i}" for i in row) for row in words]


def both(kind: str, size: str) -> tuple[Any, Any, Any]:
    """A tokenizer, HF's model and ours, with the same weights."""
    tokenizer = tokenizer_of_words()
    torch.manual_seed(0)
    theirs_of = getattr(transformers, kind)
    config = transformers.BartConfig(
        **SIZES[size], vocab_size=len(tokenizer), init_std=0.05
    )
    config.id2label = dict(enumerate(("contradiction", "neutral", "entailment")))
    theirs = theirs_of(config).eval()
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return tokenizer, theirs, getattr(eb, kind).from_pretrained(directory)


def by_hand(
    tokenizer: Any, model: Any, rows: Sequence[Any], scored: Callable[..., torch.Tensor]
) -> list[float]:
    """A number for each row: batches in order, padded to the longest."""
    found = list[float]()
    for first in range(0, len(rows), BATCH):
        texts = list(rows[first : first + BATCH])
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            found += scored(model, **inputs).tolist()
    return found


def checksum(tokens: Sequence[int] | str) -> float:
    """A number that another token makes another, by more than rounding."""
    return float(hash(tuple(tokens)) % 2**20)


def classification(size: str) -> dict[str, tuple[Scores, Scores]]:
    """`classify` and `zero_shot`."""
    tokenizer, theirs, ours = both("BartForSequenceClassification", size)
    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": BATCH}

    def probability(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
        return model(**inputs).logits.softmax(-1)[:, 2]

    def entailment(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
        return model(**inputs).logits[:, 2]

    def one_label(texts: Sequence[str]) -> list[float]:
        found = eb.tasks.classify(ours, texts, **options)
        return [x.scores[x.labels.index("entailment")] for x in found]

    def of_labels(texts: Sequence[str]) -> list[float]:
        found = eb.tasks.zero_shot(ours, texts, LABELS, **options)
        return [x.scores[x.labels.index(LABELS[0])] for x in found]

    def of_labels_by_hand(texts: Sequence[str]) -> list[float]:
        pairs = [(text, f"This example is {x}.") for text in texts for x in LABELS]
        logits = by_hand(tokenizer, theirs, pairs, entailment)
        shares = torch.tensor(logits).reshape(-1, len(LABELS)).softmax(-1)
        return shares[:, 0].tolist()

    return {
        "classify": (one_label, lambda x: by_hand(tokenizer, theirs, x, probability)),
        "zero_shot, 3 labels": (of_labels, of_labels_by_hand),
    }


def likelihoods(size: str) -> dict[str, tuple[Scores, Scores]]:
    """`score` and `rank`, of targets a quarter as long, and `fill_mask`."""
    tokenizer, theirs, ours = both("BartForConditionalGeneration", size)
    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": BATCH}

    def scores(texts: Sequence[str]) -> list[float]:
        targets = texts_of(len(texts), 24, 1)
        return [x.mean for x in eb.tasks.score(ours, texts, targets, **options)]

    def scores_by_hand(texts: Sequence[str]) -> list[float]:
        return means_by_hand(tokenizer, theirs, texts, texts_of(len(texts), 24, 1))

    def candidates(texts: Sequence[str]) -> list[list[str]]:
        return [texts_of(CANDIDATES, 24, 2 + i) for i in range(len(texts))]

    def ranks(texts: Sequence[str]) -> list[float]:
        found = eb.tasks.rank(ours, texts, candidates(texts), **options)
        return [x[0].score.mean for x in found]

    def ranks_by_hand(texts: Sequence[str]) -> list[float]:
        targets = [target for some in candidates(texts) for target in some]
        sources = [text for text in texts for _ in range(CANDIDATES)]
        means = means_by_hand(tokenizer, theirs, sources, targets)
        return np.max(np.reshape(means, (-1, CANDIDATES)), axis=1).tolist()

    def fill(texts: Sequence[str]) -> list[float]:
        found = eb.tasks.fill_mask(ours, masked(texts), **options)
        return [mask[0].score for (mask,) in found]

    def best(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
        is_mask = inputs["input_ids"] == tokenizer.mask_token_id
        return model(**inputs).logits[is_mask].softmax(-1).topk(5).values[:, 0]

    return {
        "score": (scores, scores_by_hand),
        f"rank, {CANDIDATES} candidates": (ranks, ranks_by_hand),
        "fill_mask": (fill, lambda x: by_hand(tokenizer, theirs, masked(x), best)),
    }


def means_by_hand(
    tokenizer: Any, model: Any, sources: Sequence[str], targets: Sequence[str]
) -> list[float]:
    """The mean log-likelihood of the tokens of each target."""
    found = list[float]()
    for first in range(0, len(sources), BATCH):
        part = slice(first, first + BATCH)
        inputs = tokenizer(sources[part], padding=True, return_tensors="pt")
        labels = tokenizer(targets[part], padding=True, return_tensors="pt")
        ids = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits = model(**inputs, labels=ids).logits
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids, reduction="none"
        )
        found += (-losses.sum(1) / (ids != -100).sum(1)).tolist()
    return found


def masked(texts: Sequence[str]) -> list[str]:
    """Each with a mask near its end."""
    return [f"{text} <mask> w1" for text in texts]


def generation(size: str) -> dict[str, tuple[Scores, Scores]]:
    """`infill` and `summarise`, of which every token is compared."""
    tokenizer, theirs, ours = both("BartForConditionalGeneration", size)
    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": BATCH}
    of_text: dict[str, Any] = {"num_beams": 1, "min_new_tokens": 16, "max_new_tokens": 16}

    def infilled(texts: Sequence[str]) -> list[float]:
        found = eb.tasks.infill(ours, masked(texts), **options, **of_text)
        return [checksum(x.sequence) for (x,) in found]

    def infilled_by_hand(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
        rows = model.generate(**inputs, **of_text)
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        return torch.tensor([checksum(text) for text in texts])

    # Both count the start token, and as many tokens are made of each text.
    settings: dict[str, Any] = {"num_beams": 4, "min_length": 17, "max_length": 17}

    def summaries(texts: Sequence[str]) -> list[float]:
        found = eb.tasks.summarise(ours, texts, **options, **settings)
        return [checksum(x.summary_token_ids) for x in found]

    def generated(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
        rows = model.generate(**inputs, **settings).tolist()
        return torch.tensor([checksum(row) for row in rows])

    return {
        "infill, 16 tokens": (
            infilled,
            lambda x: by_hand(tokenizer, theirs, masked(x), infilled_by_hand),
        ),
        "summarise, 16 tokens": (
            summaries,
            lambda x: by_hand(tokenizer, theirs, x, generated),
        ),
    }


def question_answering(size: str) -> dict[str, tuple[Scores, Scores]]:
    """`answer`, of contexts that are one window each."""
    tokenizer, theirs, ours = both("BartForQuestionAnswering", size)
    longest, question = 15, "w1 w2 w3 ?"
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "batch_size": BATCH,
        "max_answer_len": longest,
        "max_seq_len": 512,
        "align_to_words": False,
    }

    def answers(texts: Sequence[str]) -> list[float]:
        found = eb.tasks.answer(ours, [question] * len(texts), texts, **options)
        return [x.score for (x,) in found]

    def best_span(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
        output = model(**inputs)
        # After <s>, the question, </s> and </s>, up to the last </s>.
        place = torch.arange(inputs["input_ids"].shape[1])
        last = inputs["attention_mask"].sum(-1, keepdim=True) - 1
        is_context = (place >= len(question.split()) + 3) & (place < last)
        # As in HF's pipeline, <s> has a share of the probability, for no answer.
        start, end = (
            logits.masked_fill(~is_context & (place > 0), -torch.inf).softmax(-1)
            * is_context
            for logits in (output.start_logits, output.end_logits)
        )
        spans = (start[:, :, None] * end[:, None]).triu().tril(longest - 1)
        return spans.flatten(1).amax(-1)

    def answers_by_hand(texts: Sequence[str]) -> list[float]:
        pairs = [(question, text) for text in texts]
        return by_hand(tokenizer, theirs, pairs, best_span)

    return {"answer": (answers, answers_by_hand)}


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    torch.set_num_threads(2)
    texts = texts_of(args.texts, 96, 0)
    table = Table(title=f"texts/s, jax {jax.__version__}", box=box.SIMPLE_HEAD)
    for name in ("task", "ours", "HF by hand", "ours/HF", "ours at first"):
        table.add_column(name, justify="left" if name == "task" else "right")
    found, compared = dict[str, Any](), list[Comparison]()
    for cases in (classification, likelihoods, generation, question_answering):
        for task, ways in cases(args.size).items():
            first = seconds(lambda ways=ways: ways[0](texts))
            np.testing.assert_allclose(ways[0](texts), ways[1](texts), rtol=1e-3)
            times = [
                [seconds(lambda way=way: way(texts)) for way in ways]
                for _ in range(args.rounds)
            ]
            rates = [len(texts) / statistics.median(x) for x in zip(*times, strict=True)]
            found[task] = times
            compared.append(Comparison(task, "HF PyTorch by hand", rates[0] / rates[1]))
            numbers = [*rates, rates[0] / rates[1], len(texts) / first]
            table.add_row(task, *(f"{x:.2f}" for x in numbers))
        gc.collect()
    Console(width=100).print(table)
    write(args.json, found, compared)


if __name__ == "__main__":
    main()
