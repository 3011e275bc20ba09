"""The tasks on the command line, with small random models and a tokenizer of bytes."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import shtab
from tokenizers import decoders, models, pre_tokenizers, processors, Tokenizer
from transformers import PreTrainedTokenizerFast

import eqx_bart as eb
from eqx_bart import tasks
from eqx_bart.cli import main, parser
from eqx_bart.cli.answers import Answerer, Row
from eqx_bart.cli.completion import SHELLS
from eqx_bart.cli.tasks import COMMANDS


SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
TOKENS = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
HEADS = {
    "generation": eb.BartForConditionalGeneration,
    "labels": eb.BartForSequenceClassification,
    "spans": eb.BartForQuestionAnswering,
}


@pytest.fixture(scope="module")
def tokenizer():
    of_bytes = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, []))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    of_bytes.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=of_bytes, **names)


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    """The directory of a checkpoint with each head."""
    config = eb.BartConfig(
        vocab_size=len(TOKENS),
        max_position_embeddings=64,
        d_model=16,
        init_std=0.5,
        id2label=["contradiction", "neutral", "entailment"],
        **dict.fromkeys(["encoder_layers", "decoder_layers"], 1),
        **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
        **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 16),
    )
    directories = {}
    for name, cls in HEADS.items():
        directories[name] = tmp_path_factory.mktemp(name)
        cls(config, key=jax.random.key(0)).save_pretrained(directories[name])
        tokenizer.save_pretrained(directories[name])
    return directories


#: For each task: its head, options, inputs, and what the library answers to them.
CASES = {
    "summarise": (
        "generation",
        ["--set=num_beams=2", "--set=max_new_tokens=6"],
        [("It rained.",), ("naïve",)],
        {"num_beams": 2, "max_new_tokens": 6},
    ),
    "classify": ("labels", ["--truncate"], [("I liked it.",), ("naïve",)], {}),
    "zero-shot": (
        "labels",
        ["--labels", "sport", "art", "--multi-label", "--template", "It is {}."],
        [("It ended in a draw.",), ("😀",)],
        {
            "labels": ["sport", "art"],
            "multi_label": True,
            "hypothesis_template": "It is {}.",
        },
    ),
    "score": ("generation", [], [("one", "two"), ("three", "four")], {}),
    "fill-mask": (
        "generation",
        ["--top-k", "2"],
        [("a <mask> b <mask>",), ("c<mask>",)],
        {"top_k": 2},
    ),
    "infill": (
        "generation",
        ["--set=num_beams=2", "--set=num_return_sequences=2", "--set=max_new_tokens=9"],
        [("a <mask> b",), ("c<mask>",)],
        {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 9},
    ),
    "answer": (
        "spans",
        [
            *["--top-k=3", "--no-answer", "--max-answer-len=4"],
            *["--max-seq-len=20", "--doc-stride=0"],
        ],
        [("Who?", "Anna did."), ("Where?", "In Zürich, in 1907.")],
        {
            "top_k": 3,
            "handle_impossible_answer": True,
            "max_answer_len": 4,
            "max_seq_len": 20,
            "doc_stride": 0,
        },
    ),
}


def expected(name, texts, found):
    """The objects of an answer, without the number."""
    if name in ("classify", "zero-shot"):
        return [{"input": texts[0], "labels": found.labels, "scores": found.scores}]
    if name == "summarise":
        windows = [{"start": 0, "end": len(texts[0]), "summary_text": found.summary_text}]
        summary = {"summary_text": found.summary_text, "windows": windows}
        return [{"input": texts[0]} | summary]
    if name == "score":
        values = {x: getattr(found, x) for x in ("sum", "mean", "token_log_probs")}
        return [{"source": texts[0], "target": texts[1]} | values]
    if name == "fill-mask":
        names = ("score", "token", "token_str", "sequence")
        return [
            {"input": texts[0], "mask": i} | {x: getattr(one, x) for x in names}
            for i, fillings in enumerate(found, 1)
            for one in fillings
        ]
    names = ("start", "end", "score", "answer")
    places = {"question": texts[0], "context": texts[-1]}
    if name == "infill":
        names = ("sequence", "fillings", "score", "log_prob")
        places = {"input": texts[0]}
    return [places | {x: getattr(one, x) for x in names} for one in found]


def case(name, checkpoints):
    head, options, inputs, settings = CASES[name]
    return checkpoints[head], options, inputs, settings


@pytest.mark.parametrize("name", CASES)
def test_words_and_objects(name, checkpoints, tokenizer, capsys):
    """The objects have what the library answers."""
    checkpoint, options, inputs, settings = case(name, checkpoints)
    words = [word for texts in inputs for word in texts]
    status = main([name, *words, "--json", "--model", str(checkpoint), *options])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    function = getattr(tasks, name.replace("-", "_"))
    parts = map(list, zip(*inputs, strict=True))
    found = function(checkpoint, *parts, tokenizer=tokenizer, **settings)
    objects = [json.loads(line) for line in out.splitlines()]
    wanted = [
        {"number": number, **one}
        for number, (texts, answer) in enumerate(zip(inputs, found, strict=True), 1)
        for one in expected(name, texts, answer)
    ]
    assert len(objects) == len(wanted)
    for one, other in zip(objects, wanted, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            if (
                isinstance(value, str)
                or value is None
                or key in {"labels", "fillings", "windows"}
            ):
                assert one[key] == (list(value) if isinstance(value, tuple) else value)
            else:
                assert one[key] == pytest.approx(value, rel=1e-5)


def columns(one):
    """The line of an object."""
    if "labels" in one:
        pairs = zip(one["labels"], one["scores"], strict=True)
        return [one["input"], *(x for pair in pairs for x in pair)]
    for names in (
        ("source", "target", "sum", "mean"),
        ("question", "answer", "score"),
        ("input", "token_str", "score", "sequence"),
        ("input", "sequence", "score"),
        ("input", "summary_text"),
    ):
        if one.keys() >= {*names}:
            return [one[name] for name in names]
    raise AssertionError(one)


@pytest.mark.parametrize("is_piped", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("name", CASES)
def test_wrong_lines_among_right_ones(
    name, is_piped, checkpoints, capsys, monkeypatch, tmp_path
):
    """They are reported with their numbers; the others are answered, as words are."""
    checkpoint, options, inputs, _ = case(name, checkpoints)
    first, second = ("\t".join(texts).encode() for texts in inputs)
    mask = b"<mask>" if b"<mask>" in first else b""
    more = b"\tx" * (len(inputs[0]) - 1)
    long = b"<pad>" if name == "summarise" else mask + b"x" * 99 + more
    lines = [first, b"d\xffg" + more, b"", long, second, b"</s>" + more]
    file = tmp_path / "lines.txt"
    file.write_bytes(b"\n".join(lines) + b"\n")
    options = [x for x in options if x != "--truncate"]
    arguments = [name, "--model", str(checkpoint), *options]
    if is_piped:
        with file.open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            status = main(arguments)
    else:
        status = main([*arguments, "--input", str(file)])
    out, err = capsys.readouterr()
    assert status == 1
    errors = err.splitlines()
    assert [re.search(r"line (\d)", error)[1] for error in errors] == ["2", "4", "6"]
    assert "is not UTF-8" in errors[0]
    said = "has 1\\d\\d tokens|cannot be read in windows|nothing but special"
    assert re.search(said, errors[1])
    assert "nothing but special tokens" in errors[2]
    words = [word for texts in inputs for word in texts]
    assert main([name, *words, "--model", str(checkpoint), *options]) == 0
    assert capsys.readouterr().out == out
    assert main([name, *words, "--json", "--model", str(checkpoint), *options]) == 0
    objects = map(json.loads, capsys.readouterr().out.splitlines())
    for line, one in zip(out.split("\n")[:-1], objects, strict=True):
        for cell, value in zip(line.split("\t"), columns(one), strict=True):
            if isinstance(value, str):
                assert cell == re.sub("[\t\r\n]", " ", value)
            else:
                assert float(cell) == pytest.approx(value, rel=1e-5)


def test_a_long_text_is_read_in_windows(checkpoints, capsys, monkeypatch):
    command = ["summarise", "One sentence. " * 7, "--set=max_new_tokens=6", "--json"]
    command += ["--model", str(checkpoints["generation"])]
    ends = []
    for options in ([], ["--truncate"]):
        assert main([*command, *options]) == 0
        windows = json.loads(capsys.readouterr().out)["windows"]
        ends.append([window["end"] for window in windows])
    assert ends == [[55, 97], [62]]
    monkeypatch.setitem(sys.modules, "sentencex", None)
    assert main(command) == 1
    assert "pip install 'eqx-bart[tasks]'" in capsys.readouterr().err


def test_two_texts_of_an_input(checkpoints, capsys, tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("one\ttwo\none\none\ttwo\tthree\none\t \n")
    command = ["score", "--model", str(checkpoints["generation"])]
    assert main([*command, "--input", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("one\ttwo\t")
    assert [x.removeprefix("eqx-bart: error: ") for x in err.splitlines()] == [
        f"line {line} has {count} tabulators: it must be a source, a tabulator and a "
        "target; or a JSON object, with --fields"
        for line, count in ((2, 0), (3, 2))
    ] + ["line 4 has an empty target"]
    assert main([*command, "a\tb", "c", "d"]) == 1
    message = "the number of words is 3, and each input is 2 of them: source and target"
    assert message in capsys.readouterr().err
    assert main([*command, "a\tb", "c"]) == 0
    assert capsys.readouterr().out.startswith("a b\tc\t")
    assert main([*command, "one", "x" * 99]) == 1
    message = "error: the target of input 1 has 101 tokens, and the model reads at most 64."
    assert message in capsys.readouterr().err


def test_fields_of_objects(checkpoints, capsys, tmp_path):
    command = ["score", "--model", str(checkpoints["generation"]), "--input"]
    objects = [{"source": "one", "target": "two"}, {"source": "one", "to": "a\tb"}]
    text = "".join(json.dumps(one) + "\n" for one in objects)
    for name in ("pairs.jsonl", "pairs.txt"):
        (tmp_path / name).write_text(text)
    assert main([*command, str(tmp_path / "pairs.jsonl")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("one\ttwo\t")
    fields = "'source', 'to', by --fields"
    assert f"line 2 has no field 'target': name one of its fields, {fields}" in err
    assert main([*command, str(tmp_path / "pairs.txt"), "--fields", "source", "to"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("one\ta b\t")
    assert "line 1 has no field 'to'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zero-shot", "x"], "required: --model, --labels"),
        (["classify", "x"], "required: --model"),
        (["fill-mask", "a<mask>", "--top-k=0"], "must be an integer, 1 or more, not '0'"),
        (["classify", "--function-to-apply=relu"], "invalid choice: 'relu'"),
        (["--print-completion=sh"], "invalid choice: 'sh'"),
        (["guess"], "invalid choice: 'guess'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        ("generation", ["classify", "x"], "has not the head of a BartForSequenceClass"),
        ("labels", ["answer", "x", "y"], "has not the head of a BartForQuestionAnswering"),
        ("labels", ["zero-shot", "x", "--labels", "a", "a"], "is there twice: 'a'"),
        (
            "labels",
            ["zero-shot", "x", "--labels", "a", "--template", "a"],
            "hypothesis_template has no place",
        ),
        ("generation", ["fill-mask", "x"], "input 1 has no mask: write '<mask>' where"),
        ("generation", ["fill-mask", "a<mask>", "--targets", "ab"], "is 2 tokens"),
        ("generation", ["infill", "a<mask>", "--set=beams=4"], "no argument or setting 'b"),
        ("generation", ["infill", "a<mask>", "--input=x"], "there are words and --input x"),
        ("nowhere", ["classify", "x"], "There is no file or directory './nowhere'"),
    ],
)
def test_bad_input_is_one_line(head, arguments, message, checkpoints, capsys):
    place = str(checkpoints.get(head, f"./{head}"))
    assert main([*arguments[:1], "--model", place, *arguments[1:]]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("eqx-bart: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_seed_decides_what_is_infilled(checkpoints, capsys):
    command = ["infill", "a <mask> b", "--model", str(checkpoints["generation"])]
    command += ["--set=do_sample=true", "--set=max_new_tokens=9"]
    drawn = []
    for seed in (["--seed=1"], ["--seed=1"], ["--seed=2"], [], []):
        assert main([*command, *seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4


def test_numbers_that_json_does_not_have(checkpoints, capsys, monkeypatch):
    monkeypatch.setattr(tasks.Score, "sum", -np.inf)
    command = ["score", "one", "two", "--json", "--model", str(checkpoints["generation"])]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["sum"] is None


@pytest.mark.parametrize(
    "options",
    [
        ["--set=max_new_tokens=20"],
        ["--set=num_beams=3", "--set=max_new_tokens=20"],
        pytest.param(
            ["--set=do_sample=true", "--seed=5", "--set=max_new_tokens=20"],
            marks=pytest.mark.slow,
        ),
        None,
    ],
    ids=["greedy", "beams", "samples", "built-in"],
)
def test_what_is_streamed_is_the_answer(options, checkpoints, capsys):
    """Of inputs of which one is wrong, and one there twice; random bytes are seldom whole
    characters."""
    words = ["cat", "x" * 99, "dog", "cat"]
    command = ["generate", *words]
    if options is not None:
        command += ["--model", str(checkpoints["generation"]), *options]
    whole = main(command), capsys.readouterr()
    assert (main([*command, "--stream"]), capsys.readouterr()) == whole
    assert whole[0] == 1
    assert whole[1].out.count("\n") == 3


def test_a_character_is_shown_when_it_is_whole(tokenizer):
    """With no spaces around the text, as in an answer."""
    text = " é 😀\ufffd\tx! "
    ids = [2, *tokenizer(text)["input_ids"]]

    class Model:
        generation_config = eb.GenerationConfig()

        def stream(self, *args, **kwargs):
            yield [np.asarray([], np.int32)]
            for token in ids:
                yield [np.asarray([token], np.int32)]

    parts = [*Answerer(Model(), tokenizer, {}, 0).stream(Row((5,), (0, 0)))]
    assert [part for part in parts if part] == ["é", " 😀", "\ufffd", "\tx", "!"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json"], "--stream shows a text before it is whole, and --json needs"),
        (["--output=x"], "and --output needs the whole: give one of them"),
        (["--picture=x.png"], "and --picture needs the whole: give one of them"),
        (
            ["--set=num_beams=2", "--set=num_return_sequences=2"],
            "--stream shows one text for each input, and num_return_sequences=2",
        ),
    ],
)
def test_what_cannot_be_streamed(arguments, message, capsys):
    assert main(["generate", "--stream", *arguments, "cat"]) == 1
    out, err = capsys.readouterr()
    assert out in ("", "cat\t")
    assert message in err


def test_help_says_all(capsys):
    """`--help` names each command, and that of each works."""
    commands = ["generate", *(command.name for command in COMMANDS), "info", "convert"]
    for arguments in ([], *([command] for command in commands)):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, "--help"])
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        if not arguments:
            assert re.findall(r"^    ([a-z-]+) ", out, re.MULTILINE) == commands


@pytest.mark.parametrize("page", ["README.md", "docs/guides/command-line.md", "--help"])
def test_the_commands_of_a_page_are_commands(page, capsys):
    if page == "--help":
        with pytest.raises(SystemExit):
            main(["--help"])
        text = capsys.readouterr().out
    else:
        text = (pathlib.Path(__file__).parents[2] / page).read_text()
    commands = re.findall(
        r"^ {0,2}(?:.*bin/)?eqx-bart ((?:.*\\\n)*.*)$", text, re.MULTILINE
    )
    commands = [one for one in commands if not one.startswith("COMMAND")]
    assert commands
    for command in commands:
        words = shlex.split(re.split(" [<>] ", command.replace("\\\n", " "))[0])
        if words[0] != "info":
            assert callable(parser().parse_args(words).run)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_of_completion(shell, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--print-completion", shell])
    assert exit_.value.code == 0
    assert "zero-shot" in capsys.readouterr().out
    assert set(SHELLS) == set(shtab.SUPPORTED_SHELLS)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["zer"], ["zero-shot"]),
        (["answer", "--no"], ["--no-answer"]),
        (["classify", "--input", "pai"], ["pairs.tsv"]),
        (["convert", "mod"], ["model"]),
    ],
)
def test_completion_in_bash(words, completed, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    (tmp_path / "pairs.tsv").touch()
    (tmp_path / "model").mkdir()
    script = f"""{capsys.readouterr().out}
COMP_WORDS=(eqx-bart {" ".join(words)})
COMP_CWORD={len(words)}
_shtab_eqx_bart
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [shutil.which("bash"), "-c", script],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        text=True,
    )
    assert [x.strip() for x in done.stdout.split()] == completed
