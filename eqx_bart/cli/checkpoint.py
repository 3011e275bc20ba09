"""`eqx-bart info` and `eqx-bart convert`: say what is in a checkpoint, and convert it."""

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ..checkpoint.matching import match
from ..checkpoint.names import canonical
from ..checkpoint.pretrained import check_layers, read_config
from ..checkpoint.quantization import quantized_as
from ..config import BartConfig, DTYPES
from ..files.formats import find_weights
from ..files.hub import locate
from ..models.bart import BartModel
from ..models.causal_lm import BartForCausalLM
from ..models.conditional_generation import BartForConditionalGeneration
from ..models.question_answering import BartForQuestionAnswering
from ..models.sequence_classification import BartForSequenceClassification
from .common import InputError, report
from .progress import progress_bar
from .tokenizer import load_tokenizer


_MODELS = {
    cls.__name__: cls
    for cls in (
        BartModel,
        BartForConditionalGeneration,
        BartForSequenceClassification,
        BartForQuestionAnswering,
        BartForCausalLM,
    )
}
# What of a checkpoint's directory is not kept when it is converted: weights of any
# framework, the state of a training run, and what is written anew. The rest is small: the
# tokenizer, whatever its files are called, and the model's card.
_NOT_KEPT = re.compile(
    r"\..*|(generation_)?config\.json|.+\.index\.json|"
    r".+\.(safetensors|bin|pt|pth|ckpt|msgpack|h5|ot|onnx|gguf|tflite|npz)"
)
_CHECKPOINT_HELP = "a directory, a file of weights, or a name on the Hugging Face hub"


def add_info(commands: Any) -> None:
    """Adds `info` to the parser."""
    info = commands.add_parser(
        "info",
        help="say what is in a checkpoint",
        description="Says what is in a checkpoint of any format: its parameters by part, "
        "their dtypes, its config, and what a model lacks in it. Exits with 1 if the model "
        "that the config names cannot be loaded from it.",
    )
    info.set_defaults(run=_info)
    info.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT_HELP)
    info.add_argument("--json", action="store_true", help="write an object, not a table")


def add_convert(commands: Any) -> None:
    """Adds `convert` to the parser."""
    convert = commands.add_parser(
        "convert",
        help="write a checkpoint of any format as safetensors",
        description="Writes a checkpoint of any format as safetensors, with its config and "
        "its tokenizer and what else lies beside it, and reads it back to compare.",
    )
    convert.set_defaults(run=_convert)
    add = convert.add_argument
    add("source", metavar="SOURCE", help=_CHECKPOINT_HELP)
    add("destination", type=Path, metavar="DESTINATION", help="a directory")
    add("--dtype", choices=DTYPES, help="of the floats; by default as they would be loaded")
    add("--quantize", choices=("int8",), help="weights in 8 bits, which HF does not read")
    add("--max-shard-size", default="50GB", metavar="SIZE", help="50GB by default")
    add("--overwrite", action="store_true", help="replace safetensors that are there")


def _info(args: argparse.Namespace) -> int:
    about = _about(args.checkpoint)
    if args.json:
        print(json.dumps(about, indent=2))
    else:
        _print_about(about)
    if about["problems"]:
        raise InputError(f"{about['model']} cannot be loaded from {args.checkpoint}")
    return 0


def _about(checkpoint: str) -> dict[str, Any]:
    """What `info` says, in JSON's types."""
    weights = find_weights(locate(checkpoint, weights=True))
    config, tensors = read_config(weights, {})
    cls = _model_class(config)
    check_layers(config, tensors)
    names = {canonical(name) for name in tensors}
    template = eqx.filter_eval_shape(
        lambda key: quantized_as(cls(config, key=key), names), jax.random.key(0)
    )
    found = match(template, tensors)
    parts: dict[tuple[str, str], list[Any]] = {}
    for name, tensor in tensors.items():
        part = _part(canonical(name.removeprefix(found.prefix)))
        parts.setdefault((part, str(tensor.dtype)), []).append(tensor)
    return {
        "checkpoint": str(weights.file),
        "format": weights.format.title,
        "model": cls.__name__,
        "parts": [
            {
                "part": part,
                "dtype": dtype,
                "tensors": len(stored),
                "parameters": sum(math.prod(tensor.shape) for tensor in stored),
                "bytes": sum(tensor.nbytes for tensor in stored),
            }
            for (part, dtype), stored in sorted(parts.items())
        ],
        "config": config.to_dict(),
        "problems": found.problems,
        "new weights": found.lacking,
        "unused": found.unused,
    }


def _model_class(config: BartConfig) -> Any:
    """The model that the config names; if it names none, one that generates."""
    names = config.extra.get("architectures")
    if not isinstance(names, list) or not names:
        names = ["BartForConditionalGeneration"]
    for name in names:
        if cls := _MODELS.get(str(name).removeprefix("Flax")):
            return cls
    raise InputError(
        f"the config is that of {', '.join(map(str, names))}, which is none of "
        f"{', '.join(_MODELS)}"
    )


def _part(name: str) -> str:
    if re.fullmatch(r"(shared|(encoder|decoder)\.embed_tokens)\.\w+", name):
        return "token embeddings"
    first = name.split(".", maxsplit=1)[0]
    return first if first in ("encoder", "decoder") else "head"


def _print_about(about: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{about['checkpoint']} ({about['format']})")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part")
    for column in ("tensors", "parameters", "dtype", "bytes"):
        table.add_column(column, justify="right")
    parts = about["parts"]
    for part in parts:
        table.add_row(*_cells(part))
    table.add_section()
    numbers = ("tensors", "parameters", "bytes")
    total = {name: sum(part[name] for part in parts) for name in numbers}
    table.add_row(*_cells({"part": "all", "dtype": "", **total}))
    console.print(table)
    console.print(f"{about['model']}: {_summary(about['config'])}")
    for title in ("problems", "new weights", "unused"):
        for line in about[title]:
            console.print(f"{title}: {line}")


def _cells(part: dict[str, Any]) -> list[str]:
    tensors, parameters, nbytes = (
        f"{part[name]:,}" for name in ("tensors", "parameters", "bytes")
    )
    return [part["part"], tensors, parameters, part["dtype"], nbytes]


def _summary(config: dict[str, Any]) -> str:
    def both(name: str) -> str:
        return f"{config[f'encoder_{name}']}+{config[f'decoder_{name}']}"

    return (
        f"d_model {config['d_model']}, layers {both('layers')}, "
        f"heads {both('attention_heads')}, ffn {both('ffn_dim')}, "
        f"vocabulary {config['vocab_size']:,}, "
        f"positions {config['max_position_embeddings']:,}, "
        f"embeddings {'tied' if config['tie_word_embeddings'] else 'not tied'}"
    )


def _convert(args: argparse.Namespace) -> int:
    if not args.overwrite and any(args.destination.glob("model*.safetensors*")):
        raise InputError(
            f"{args.destination} holds safetensors already: pass --overwrite to replace "
            "them"
        )
    source = locate(args.source, weights=True)
    if not Path(args.source).exists():  # what is on the hub is not yet beside the weights
        try:
            load_tokenizer(args.source)
        except InputError as error:
            report(f"no tokenizer is kept: {error}")
    cls = _model_class(BartConfig.from_pretrained(find_weights(source).file.parent))
    with jax.enable_x64(True), progress_bar() as progress:  # noqa: FBT003
        task = progress.add_task("reading", total=3)
        model = cls.from_pretrained(source, dtype=args.dtype, quantize=args.quantize)
        progress.update(task, advance=1, description="writing")
        model.save_pretrained(args.destination, max_shard_size=args.max_shard_size)
        _keep_others(source, args.destination)
        progress.update(task, advance=1, description="comparing")
        if not _is_same(cls.from_pretrained(args.destination), model):
            raise InputError(f"{args.destination} reads back differently from {source}")
        progress.update(task, advance=1)
    print(f"{args.destination}: {cls.__name__}, read back and the same")
    return 0


def _keep_others(source: Path, destination: Path) -> None:
    """Copies what lies beside the weights to where there is no such file."""
    directory = source if source.is_dir() else source.parent
    for file in directory.iterdir():
        is_kept = file.is_file() and not _NOT_KEPT.fullmatch(file.name)
        if is_kept and not (destination / file.name).exists():
            shutil.copyfile(file, destination / file.name)


def _is_same(a: Any, b: Any) -> bool:
    """Whether two models have the same arrays, bit for bit."""
    pairs = zip(
        *(jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (a, b)), strict=True
    )
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in pairs
    )
