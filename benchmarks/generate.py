"""Tokens per second of `generate`: eqx-bart, Hugging Face's PyTorch BART and CTranslate2.

pip install -e '.[test]' ctranslate2
python benchmarks/generate.py [--large] [--dtypes int8] [--rounds 5] [--json FILE]
python benchmarks/generate.py --flax DIRECTORY
python benchmarks/generate.py --growth
python benchmarks/generate.py --device cuda

All have the same random weights, the same random inputs and, on the CPU, as many threads.
`--dtypes float32 bfloat16 int8 int8_bfloat16` says in what the weights are, and beside 8
bits all else; PyTorch has no 8 bits, and CTranslate2 no bfloat16. With `--device cuda`,
ours and PyTorch run on the GPU instead, and CTranslate2 does not; float32 is what it says
there, not TF32. They run in turn, round after round, so that whatever else the machine does
falls on all of them. A run goes from an array of ids to an array of ids and always makes as
many tokens a row, since the end token is held back until then; that is checked. What is
counted is tokens of the result, however many the beams.

--flax DIRECTORY adds Hugging Face's Flax BART, which transformers 5 dropped, on the CPU and
in a process of its own; DIRECTORY is its virtual environment, made if it is not there.

The weights are made up in a temporary directory; --cache DIRECTORY keeps them for the next
run. --large adds BART-large, which takes minutes.
"""

import argparse
import dataclasses
import gc
import importlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import tokenizers
import transformers
from environments import environment, FLAX_PACKAGES
from processes import Process
from report import Comparison, machine, write
from rich import box
from rich.console import Console
from rich.table import Table
from sizes import SIZES

import eqx_bart as eb


BOS, PAD, EOS, UNK = range(4)
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, 50265))]
IDS = {token: i for i, token in enumerate(VOCABULARY)}
OURS, HF, COMPILED, CT2 = "ours", "HF PyTorch", "HF PyTorch, compiled", "CTranslate2"
FLAX = "HF Flax"
FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
#: What is in floats beside 8 bits.
FLOATS = {INT8: FLOAT32, "int8_bfloat16": BFLOAT16}
DTYPES = FLOAT32, BFLOAT16, *FLOATS
# How long threads that wait for their next task in a loop may take to fall asleep.
PAUSE = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """What is generated; one beam is greedy search."""

    size: str
    batch: int
    beams: int
    source: int
    new_tokens: int = 64

    def __str__(self) -> str:
        search = "greedy" if self.beams == 1 else f"{self.beams} beams"
        return f"{self.size}/{self.batch}/{search}/{self.source}/{self.new_tokens}"

    def inputs(self) -> np.ndarray:
        """Random ids of words, between `<s>` and `</s>`."""
        shape = self.batch, self.source
        ids = np.random.default_rng(0).integers(UNK + 1, len(VOCABULARY), shape)
        ids[:, 0], ids[:, -1] = BOS, EOS
        return ids

    def settings(self) -> dict[str, Any]:
        """HF's settings."""
        return {
            "num_beams": self.beams,
            "min_new_tokens": self.new_tokens,
            "max_new_tokens": self.new_tokens,
        }


#: What is measured: from ids [batch, source] to [batch, new_tokens].
Generate = Callable[[np.ndarray, Case], np.ndarray]

CASES = (
    Case("base", batch=1, beams=1, source=256),
    Case("base", batch=8, beams=1, source=256),
    Case("base", batch=4, beams=4, source=256),
    Case("base", batch=4, beams=4, source=512),
    Case("large", batch=4, beams=4, source=512),
)
GPU_CASES = (
    *CASES[:4],
    Case("large", batch=1, beams=1, source=512, new_tokens=128),
    Case("large", batch=32, beams=1, source=512, new_tokens=128),
    Case("large", batch=128, beams=1, source=512, new_tokens=128),
    Case("large", batch=8, beams=4, source=512, new_tokens=128),
)
MIDDLE = Case("base", batch=4, beams=1, source=128)
#: One thing grows at a time.
GROWTH = {
    "source": [dataclasses.replace(MIDDLE, source=n) for n in (64, 128, 256, 512, 1024)],
    "new_tokens": [dataclasses.replace(MIDDLE, new_tokens=n) for n in (16, 64, 128, 256)],
    "batch": [dataclasses.replace(MIDDLE, batch=n) for n in (1, 2, 4, 8, 16, 32)],
    "beams": [dataclasses.replace(MIDDLE, batch=1, beams=n) for n in (1, 2, 4, 8, 16)],
}


@dataclasses.dataclass
class Timing:
    """The times of an engine on a case, with weights of a dtype: of the first call, and of
    those that count."""

    case: Case
    engine: str
    dtype: str
    first: float
    rows_as_hf: int
    seconds: list[float] = dataclasses.field(default_factory=list[float])

    def rates(self) -> list[float]:
        """Tokens per second, by round."""
        return [
            self.case.batch * self.case.new_tokens / seconds for seconds in self.seconds
        ]

    def rate(self) -> float:
        """The median of tokens per second."""
        return statistics.median(self.rates())

    def compile_seconds(self) -> float | None:
        """What the first call took longer than others, where it had to compile."""
        if self.engine != OURS:
            return None
        return self.first - statistics.median(self.seconds)


def require(name: str, requirement: str) -> Any:
    """The module of this name, or an exit that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"This benchmark needs {name}, which is not installed: pip install "
            f"{requirement}"
        ) from error


def build(size: str, directory: Path, *, with_ct2: bool) -> tuple[Path, Path]:
    """Makes up a model, and returns its checkpoints for HF and ours, and for CTranslate2.

    Those in `directory` are used again. One that is only half there is never taken for a
    whole one.
    """
    done, partial = directory / size, directory / f"{size}.partial"
    if not done.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        save_random_model(size, partial / "hf")
        if with_ct2:
            convert(partial / "hf", partial / "ct2")
        partial.rename(done)
    gc.collect()
    return done / "hf", done / "ct2"


def save_random_model(size: str, directory: Path) -> None:
    """Writes a BART with random weights, neutral settings, and a tokenizer.

    As HF draws the weights, a token predicts itself, and each row is one token over and
    over. Random signs and sizes in the last layer norm give rows that differ from each
    other and within, so that beams change places and equal rows mean something.
    """
    require("torch", "-e '.[test]'").manual_seed(0)
    config = transformers.BartConfig(**SIZES[size], vocab_size=len(VOCABULARY))
    model = transformers.BartForConditionalGeneration(config)
    last_norm: Any = model.model.decoder.layers[-1].final_layer_norm
    last_norm.weight.data.normal_()
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        early_stopping=False,
    )
    model.save_pretrained(directory)
    words = tokenizers.models.WordLevel(IDS, unk_token=VOCABULARY[UNK])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words),
        bos_token=VOCABULARY[BOS],
        pad_token=VOCABULARY[PAD],
        eos_token=VOCABULARY[EOS],
        unk_token=VOCABULARY[UNK],
    ).save_pretrained(directory)


def convert(checkpoint: Path, directory: Path) -> None:
    """Converts a checkpoint of HF's to CTranslate2, whose converter wants a setting that
    HF's config no longer has."""
    converters = require("ctranslate2", "ctranslate2").converters
    with mock.patch.object(
        transformers.BartConfig, "normalize_before", new=False, create=True
    ):
        converters.TransformersConverter(str(checkpoint)).convert(str(directory))


def load(checkpoint: Path, dtype: str) -> eb.BartForConditionalGeneration:
    """Our model, with its weights in this dtype."""
    return eb.BartForConditionalGeneration.from_pretrained(
        checkpoint,
        dtype=FLOATS.get(dtype, dtype),
        quantize=INT8 if dtype in FLOATS else None,
    )


def ours(checkpoint: Path, dtype: str) -> Generate:
    """This library."""
    model = load(checkpoint, dtype)

    def generate(ids: np.ndarray, case: Case) -> np.ndarray:
        generated = model.generate(ids, np.ones_like(ids), **case.settings())
        return np.asarray(jax.block_until_ready(generated.sequences))[:, 1:]

    return generate


def hf(
    checkpoint: Path, args: argparse.Namespace, dtype: str, *, is_compiled: bool = False
) -> Generate:
    """Hugging Face's PyTorch BART; compiled, with a cache whose size does not change."""
    torch = require("torch", "-e '.[test]'")
    torch.set_num_threads(args.threads)
    model: Any = transformers.BartForConditionalGeneration.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype)
    )
    model = model.eval().to(args.device)
    how = {"cache_implementation": "static"} if is_compiled else {}
    if is_compiled:
        model.forward = torch.compile(model.forward)

    def generate(ids: np.ndarray, case: Case) -> np.ndarray:
        input_ids = torch.from_numpy(ids).to(args.device)
        mask = torch.ones_like(input_ids)
        asked = case.settings() | how
        generated = model.generate(input_ids, attention_mask=mask, **asked)
        return generated.cpu().numpy()[:, 1:]

    return generate


def ct2(directory: Path, threads: int, dtype: str) -> Generate:
    """CTranslate2, whose tokens are strings."""
    translator = require("ctranslate2", "ctranslate2").Translator(
        str(directory),
        device="cpu",
        compute_type=dtype,
        inter_threads=1,
        intra_threads=threads,
    )

    def generate(ids: np.ndarray, case: Case) -> np.ndarray:
        results = translator.translate_batch(
            [[VOCABULARY[i] for i in row] for row in ids.tolist()],
            beam_size=case.beams,
            min_decoding_length=case.new_tokens,
            max_decoding_length=case.new_tokens,
        )
        rows = [[IDS[token] for token in result.hypotheses[0]] for result in results]
        if {len(row) for row in rows} != {case.new_tokens}:
            raise RuntimeError(f"{CT2} made rows of {[len(row) for row in rows]} tokens.")
        return np.asarray(rows)

    return generate


def flax(checkpoint: Path, args: argparse.Namespace, dtype: str) -> Generate:
    """Hugging Face's Flax BART, in a process of its own."""
    python = environment(args.flax, sys.executable, FLAX_PACKAGES)
    script = Path(__file__).with_name("flax_process.py")
    process = Process(FLAX, [python, str(script), str(checkpoint), dtype])

    def generate(ids: np.ndarray, case: Case) -> np.ndarray:
        length = case.new_tokens + 1  # with the start token
        settings = {"num_beams": case.beams, "min_length": length, "max_length": length}
        return np.asarray(process.ask({"input_ids": ids.tolist()} | settings))[:, 1:]

    return generate


#: An engine, and the dtype of its weights.
Engine = tuple[str, str]


def load_engines(
    size: str, directory: Path, args: argparse.Namespace
) -> dict[Engine, Generate]:
    """All engines with the weights of this size, in each dtype that they have. PyTorch in
    float32, which says which tokens are right, is always there."""
    is_cpu = args.device == "cpu"
    checkpoint, converted = build(size, directory, with_ct2=is_cpu)
    engines = {(HF, FLOAT32): hf(checkpoint, args, FLOAT32)}
    for dtype in args.dtypes:
        engines[OURS, dtype] = ours(checkpoint, dtype)
        if dtype == BFLOAT16:
            engines[HF, dtype] = hf(checkpoint, args, dtype)
        if dtype not in FLOATS and args.compiled:
            engines[COMPILED, dtype] = hf(checkpoint, args, dtype, is_compiled=True)
        if dtype not in FLOATS and is_cpu and args.flax:
            engines[FLAX, dtype] = flax(checkpoint, args, dtype)
        if dtype in (FLOAT32, INT8) and is_cpu:
            engines[CT2, dtype] = ct2(converted, args.threads, dtype)
    return engines


def timed(engine: Engine, generate: Generate, case: Case) -> tuple[float, np.ndarray]:
    """The seconds that a run takes, and its tokens, of which none may be missing."""
    ids = case.inputs()
    time.sleep(PAUSE)
    start = time.perf_counter()
    tokens = generate(ids, case)
    seconds = time.perf_counter() - start
    shape = case.batch, case.new_tokens
    if tokens.shape != shape or np.isin(tokens, (PAD, EOS)).any():
        raise RuntimeError(
            f"{' in '.join(engine)} should have made {case.new_tokens} tokens for each of "
            f"{case.batch} rows, none of them <pad> or </s>: {tokens}"
        )
    return seconds, tokens


def measure(case: Case, engines: dict[Engine, Generate], rounds: int) -> list[Timing]:
    """Runs every engine once to warm it up, then once in each round."""
    firsts = {name: timed(name, generate, case) for name, generate in engines.items()}
    right = firsts[HF, FLOAT32][1]
    timings = [
        Timing(case, *name, seconds, int(np.sum((tokens == right).all(axis=1))))
        for name, (seconds, tokens) in firsts.items()
    ]
    for _ in range(rounds):
        for timing in timings:
            name = timing.engine, timing.dtype
            seconds, _ = timed(name, engines[name], case)
            timing.seconds.append(seconds)
    return timings


def cases(args: argparse.Namespace) -> list[Case]:
    """What is measured: each once."""
    if args.growth:
        return list(dict.fromkeys(case for some in GROWTH.values() for case in some))
    chosen = GPU_CASES if args.device == "cuda" else CASES
    return [case for case in chosen if args.large or case.size != "large"]


def run(sizes: list[str], args: argparse.Namespace, cache: Path) -> Iterator[list[Timing]]:
    """The timings of each case, with the engines of one size in memory at a time."""
    for size in sizes:
        engines = load_engines(size, cache, args)
        for case in cases(args):
            if case.size == size:
                yield measure(case, engines, args.rounds)
        engines.clear()
        gc.collect()


def of_peers(dtype: str) -> str:
    """What ours in this dtype is compared with."""
    return INT8 if dtype in FLOATS else dtype


def report(timings: list[Timing]) -> list[dict[str, Any]]:
    """The figures of a case, one record for each engine."""
    rates = {(timing.engine, timing.dtype): timing.rate() for timing in timings}

    def ratio(timing: Timing, peer: str) -> float | None:
        """To the peer in the same dtype, or in float32 if it has none such."""
        other = rates.get((peer, of_peers(timing.dtype)), rates.get((peer, FLOAT32)))
        return None if other is None else timing.rate() / other

    return [
        {
            "case": str(timing.case),
            **dataclasses.asdict(timing.case),
            "engine": timing.engine,
            "jax": jax.__version__ if timing.engine == OURS else None,
            "dtype": timing.dtype,
            "seconds": timing.seconds,
            "tokens_per_second_median": timing.rate(),
            "tokens_per_second_min": min(timing.rates()),
            "compile_seconds": timing.compile_seconds(),
            "rows_as_hf": timing.rows_as_hf,
            "ratio_to_hf": ratio(timing, HF),
            "ratio_to_ctranslate2": ratio(timing, CT2),
        }
        for timing in timings
    ]


def comparisons(records: list[dict[str, Any]]) -> list[Comparison]:
    """Ours beside all others in the same dtype, and beside our float32."""
    found = list[Comparison]()
    for ours in [record for record in records if record["engine"] == OURS]:
        work = f"{ours['case']}, {ours['dtype']}"
        for other in records:
            is_other = other["engine"] != OURS or ours["dtype"] != FLOAT32 == other["dtype"]
            is_alike = of_peers(ours["dtype"]) == other["dtype"] or other["engine"] == OURS
            if ours["case"] == other["case"] and is_other and is_alike:
                against = f"{other['engine']}, {other['dtype']}"
                ratio = ours["tokens_per_second_median"] / other["tokens_per_second_median"]
                found.append(Comparison(work, against, ratio))
    return found


def add_rows(table: Table, case: Case, records: list[dict[str, Any]]) -> None:
    """Adds a case to the table; the ratios are those of this library."""

    def ratio(record: dict[str, Any], name: str) -> str:
        is_ours = record["engine"] == OURS
        return f"{record[name]:.2f}" if is_ours and record[name] is not None else ""

    table.add_row(str(case))
    for record in records:
        compile_seconds = record["compile_seconds"]
        table.add_row(
            f"  {record['engine']}, {record['dtype']}",
            record["jax"] or "",
            f"{record['tokens_per_second_median']:.1f}",
            f"{record['tokens_per_second_min']:.1f}",
            ratio(record, "ratio_to_hf"),
            ratio(record, "ratio_to_ctranslate2"),
            "" if compile_seconds is None else f"{compile_seconds:.1f} s",
            f"{record['rows_as_hf']}/{case.batch}",
        )
    table.add_section()


def new_table(rounds: int) -> Table:
    """The table without its rows."""
    table = Table(
        title=f"Tokens per second of generate, rounds: {rounds}",
        caption="size/batch/search/source/new tokens; as HF: rows that equal HF's",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("case", no_wrap=True)
    for name in ("jax", "median", "min", "ours/HF", "ours/CT2", "compile", "as HF"):
        table.add_column(name, justify="right")
    return table


def set_up(args: argparse.Namespace) -> None:
    """Sets JAX to the device and its threads, and checks that the others are there."""
    os.environ["PJRT_NPROC"] = str(args.threads)  # read when JAX first runs something
    jax.config.update("jax_platforms", args.device)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    require("torch", "-e '.[test]'")
    if args.device == "cpu":
        require("ctranslate2", "ctranslate2")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="BART-large as well")
    parser.add_argument("--growth", action="store_true", help="what grows, one by one")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--flax", type=Path, metavar="DIRECTORY")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=[FLOAT32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, help="where to keep the random weights")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser.parse_args()


def main() -> None:
    """Measures, and prints a table."""
    args = parse_args()
    set_up(args)
    about = machine() | {"threads": args.threads, "device": jax.devices()[0].device_kind}
    sizes = list(dict.fromkeys(case.size for case in cases(args)))
    console, table = Console(width=100), new_table(args.rounds)
    records = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as temporary, console.status("measuring") as status:
        for timings in run(sizes, args, args.cache or Path(temporary)):
            case = timings[0].case
            status.update(f"measured {case}")
            add_rows(table, case, report(timings))
            records += report(timings)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()))
    write(args.json, records, comparisons(records))


if __name__ == "__main__":
    main()
