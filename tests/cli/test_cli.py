"""The command line, with the built-in model."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading

import equinox as eqx
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

import eqx_bart as eb
from eqx_bart.cli import main
from eqx_bart.cli.tokenizer import PlainTokenizer


def run(capsys, *arguments):
    """Runs the command line; returns its status, its output and its errors."""
    status = main(["generate", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_words(capsys):
    status, out, err = run(capsys, "hello", "cat's")
    assert (status, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [word for word, _ in lines] == ["hello", "cat's"]
    assert lines[1][1] == "K AE1 T S"


def test_json_from_a_file_in_batches(capsys, tmp_path):
    words = ["hello", "cat", "phonological", "dog", "a"]
    file = tmp_path / "words.txt"
    file.write_text("\n\n".join(words) + "\n")
    status, out, _ = run(capsys, "--json", "--input", str(file), "--batch-size", "2")
    assert status == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["number"], row["input"]) for row in rows] == [
        (2 * i + 1, word) for i, word in enumerate(words)
    ]
    _, alone, _ = run(capsys, *words)
    assert alone == "".join(f"{row['input']}\t{row['output']}\n" for row in rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5},
        {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "length_penalty": 0},
        {},
    ],
    ids=["beams", "samples", "greedy"],
)
def test_every_answer_and_its_score(settings, capsys):
    given = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    words = ["cats", "hats"]
    _, out, _ = run(capsys, "--json", "--seed=3", *given, *words)
    rows = [json.loads(line) for line in out.splitlines()]
    count = settings.get("num_return_sequences", 1)
    assert [row["input"] for row in rows] == [word for word in words for _ in range(count)]
    assert [row["number"] for row in rows] == [i for i in (1, 2) for _ in range(count)]

    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)
    loss = eqx.filter_jit(eb.seq2seq_loss)
    for row in rows:
        source = np.asarray([tokenizer(row["input"])["input_ids"]])
        answer = tokenizer.convert_tokens_to_ids([*row["output"].split(), "</s>"])
        labels = np.pad([answer], ((0, 0), (0, 24 - len(answer))), constant_values=-100)
        total = -float(loss(model, source, None, labels).total)
        score = total / len(answer) ** settings.get("length_penalty", 1)
        assert row["score"] == pytest.approx(score, rel=1e-4)


def test_a_seed_decides_what_is_drawn(capsys, tmp_path):
    """Whatever the batches; each time that an input comes up, something else is drawn."""
    file = tmp_path / "words.txt"
    file.write_text("hello\ncat\nhello\nequinox\nhello\nhello\n")
    settings = ["--input", str(file), "--set=do_sample=true", "--set=temperature=3.0"]
    settings += ["--set=num_return_sequences=2", "--set=max_new_tokens=8"]
    drawn = [
        run(capsys, *settings, "--seed", seed, "--batch-size", size)[1]
        for seed, size in [("7", "32"), ("7", "4"), ("7", "1"), ("8", "32")]
    ]
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    assert len(set(drawn[0].splitlines())) == 12
    unseeded = [run(capsys, *settings)[1] for _ in range(2)]
    assert unseeded[0] != unseeded[1]


LINES = {
    1: b"\xef\xbb\xbfcat\r\n",
    2: b"\n",
    3: b"d\xffg\n",
    4: b" \t\n",
    5: "naïve\n".encode(),
    6: b"x" * 70 + b"\n",
    7: b"dog",
}
REPORTS = {
    3: "is not UTF-8: byte 2 of it is 0xff",
    5: "has characters that the model does not know: 'ï'",
    6: "has 72 tokens and the model reads at most 64: shorten it, or pass --truncate",
}


@pytest.mark.parametrize(
    ("batch_size", "is_piped", "truncate"),
    [("1", False, False), ("3", True, False), ("32", False, True), ("2", True, True)],
)
def test_wrong_lines_are_reported_and_the_others_answered(
    batch_size, is_piped, truncate, capsys, monkeypatch, tmp_path
):
    file = tmp_path / "lines.txt"
    file.write_bytes(b"".join(LINES.values()))
    arguments = ["--json", "--batch-size", batch_size, *["--truncate"] * truncate]
    if is_piped:
        with file.open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            status, out, err = run(capsys, *arguments)
    else:
        status, out, err = run(capsys, *arguments, "--input", str(file))
    assert status == 1
    assert err.splitlines() == [
        f"eqx-bart: error: line {number} {message}"
        for number, message in REPORTS.items()
        if not (truncate and number == 6)
    ]
    rows = [json.loads(line) for line in out.splitlines()]
    numbers = [1, 6, 7] if truncate else [1, 7]
    assert [row["number"] for row in rows] == numbers
    inputs = {1: "cat", 6: "x" * 70, 7: "dog"}
    assert [row["input"] for row in rows] == [inputs[number] for number in numbers]


def test_truncated_inputs_are_read_up_to_the_models_length(capsys):
    long, longest = "phonology" * 20, ("phonology" * 20)[:62]
    _, out, _ = run(capsys, "--truncate", long, longest)
    assert out.splitlines()[0].split("\t")[1] == out.splitlines()[1].split("\t")[1]


def test_an_answer_is_one_line(capsys, monkeypatch):
    """Whatever the model writes. JSON has it as it is."""
    decode = PlainTokenizer.batch_decode
    monkeypatch.setattr(
        PlainTokenizer,
        "batch_decode",
        lambda *args, **kwargs: [x + "\n\tZ" for x in decode(*args, **kwargs)],
    )
    _, out, _ = run(capsys, "cat")
    assert out == "cat\tK AE1 T  Z\n"
    _, out, _ = run(capsys, "--json", "cat")
    assert json.loads(out)["output"] == "K AE1 T\n\tZ"


def test_tokens_that_the_model_does_not_have(capsys, tmp_path):
    """A tokenizer of another model: no line can be answered, and each says why."""
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    shutil.copytree(eb.BUILTIN_MODEL, tmp_path, dirs_exist_ok=True)
    model.resize_token_embeddings(20).save_pretrained(tmp_path)
    status, out, err = run(capsys, "--model", str(tmp_path), "cat", "abc")
    assert status == 1
    assert out.startswith("abc\t")
    assert "input 1 has the token 23 and the model's vocabulary 20 tokens" in err


def test_standard_input_and_settings(capsys, monkeypatch, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("phonology\n")
    with file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        status, out, _ = run(capsys, "--set", "max_new_tokens=3", "--device", "cpu")
    assert status == 0
    assert len(out.split("\t")[1].split()) == 2
    free = ("--set", "max_new_tokens=3", "--set", "forced_eos_token_id=null")
    _, out, _ = run(capsys, *free, "phonology")
    assert len(out.split("\t")[1].split()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["naïve"], "input 1 has characters .* not know: 'ï'"),
        ([" "], "input 1 is empty"),
        (["\udcff"], "input 1 is not UTF-8: byte 1 of it is 0xff"),
        (["--input", "nowhere.txt"], "nowhere.txt"),
        (["--input", "words.txt", "hello"], "there are words and --input words.txt"),
        (["--model", "./nowhere", "hello"], "There is no file or directory './nowhere'"),
        (["--device", "abacus", "hello"], "there is no device 'abacus' here"),
        (["--set", "guidance_scale=2", "hello"], "does not support guidance_scale=2"),
        (["--picture", "x.png", "cat", "dog"], "of one input, and there are 2 or more"),
        (["--picture", "x.png", "--output", "x", "cat"], "--output for many: give one"),
        (["--picture", "x.y", "cat"], "x.y is no picture: its name .* png, .* svg"),
        (["--picture", "nowhere/x.png", "cat"], "nowhere/x.png"),
        (["--set", "beams=4", "hello"], "generate has no argument or setting 'beams'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("eqx-bart: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--batch-size=0", "must be an integer, 1 or more, not '0'"),
        ("--seed=-1", "must be an integer, 0 to 4294967295, not '-1'"),
        ("--seed=4294967296", "must be an integer, 0 to 4294967295"),  # JAX's key of 0
        ("--seed=x", "must be an integer, 0 to 4294967295, not 'x'"),
        ("--set=x", "must be NAME=VALUE"),
        ("--set=x=y", "the value of x is not JSON"),
    ],
)
def test_bad_usage(argument, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["generate", argument, "hello"])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("settings", [[], ["--set=num_beams=3"]])
def test_a_picture_of_an_answer(settings, capsys, monkeypatch, tmp_path):
    """Besides the answer. An SVG has its texts in comments."""
    file = tmp_path / "transformer.svg"
    arguments = ["--picture", str(file), *settings, "transformer"]
    answered = (0, "transformer\tT R AE0 N S F AO1 R M ER0\n", "")
    assert run(capsys, *arguments) == answered
    texts = re.findall("<!-- (.*) -->", file.read_text())
    letters, phonemes = [*"transformer"], answered[1].split()[1:]
    shown = ["source", "&lt;s&gt;", *letters, "target", *phonemes]
    assert sorted(shown) == sorted(x for x in texts if x in shown)
    file.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert "pip install 'eqx-bart[plot]'" in err
    assert not file.exists()


def test_a_reader_that_ends_is_no_error():
    """`eqx-bart info … | head -0`: a status, and not a word."""
    process = subprocess.Popen(
        [sys.executable, "-m", "eqx_bart", "info", "--json", str(eb.BUILTIN_MODEL)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process:
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_model_without_a_tokenizer(capsys, config, getkey, tmp_path):
    eb.BartForConditionalGeneration(config, key=getkey()).save_pretrained(tmp_path)
    status, _, err = run(capsys, "--model", str(tmp_path), "hello")
    assert status == 1
    assert "has no tokenizer: a RobertaTokenizer has its words in merges.txt or" in err


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


@pytest.fixture
def with_words(getkey, tmp_path):
    """A checkpoint with a tokenizer that BART's own have no file in common with."""
    config = eb.BartConfig(
        **dict.fromkeys(["vocab_size", "max_position_embeddings"], len(WORDS)),
        **dict.fromkeys(["encoder_layers", "decoder_layers"], 1),
        **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
        **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim", "d_model"], 8),
        **dict.fromkeys(["eos_token_id", "decoder_start_token_id"], 3),
        pad_token_id=0,
        bos_token_id=2,
        forced_eos_token_id=None,
    )
    source = tmp_path / "words"
    eb.BartForConditionalGeneration(config, key=getkey()).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    settings = {"tokenizer_class": "BertTokenizer"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    return source


def test_a_tokenizer_of_other_files(capsys, with_words):
    for checkpoint in (with_words, with_words / "model.safetensors"):
        status, out, err = run(
            capsys, "--model", str(checkpoint), "--set", "max_new_tokens=3", "a b"
        )
        assert (status, err) == (0, "")
        assert out.startswith("a b\t")
    (with_words / "vocab.txt").rename(with_words / "vocab.json")
    status, _, err = run(capsys, "--model", str(with_words), "a b")
    assert status == 1
    assert "a BertTokenizer has its words in tokenizer.json or vocab.txt" in err
    (with_words / "tokenizer.json").write_text("{}")
    status, _, err = run(capsys, "--model", str(with_words), "a b")
    assert status == 1
    assert re.search(r"the tokenizer of .* cannot be read: \w+: ", err)


def test_convert_keeps_what_lies_beside_the_weights(with_words, tmp_path):
    kept = {
        "spiece.model",
        "sentencepiece.bpe.model",
        "dict.txt",
        "source.spm",
        "README.md",
    }
    left = {"optimizer.pt", "training_args.bin", "tf_model.h5", "flax_model.msgpack"}
    for name in kept | left:
        (with_words / name).write_bytes(b"x")
    (with_words / "runs").mkdir()
    assert main(["convert", str(with_words), str(tmp_path / "to")]) == 0
    ours = {"config.json", "generation_config.json", "model.safetensors"}
    tokenizer = {"vocab.txt", "tokenizer_config.json"}
    assert {x.name for x in (tmp_path / "to").iterdir()} == kept | ours | tokenizer


@pytest.mark.slow
def test_convert_keeps_the_tokenizer_of_a_model_on_the_hub(with_words, tmp_path):
    snapshot = tmp_path / "hub" / "models--org--words" / "snapshots" / ("0" * 40)
    shutil.copytree(with_words, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    command = [sys.executable, "-m", "eqx_bart"]
    place = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    for arguments in (
        ["convert", "org/words", str(tmp_path / "to")],
        ["generate", "--model", "org/words", "--set", "max_new_tokens=3", "a b"],
    ):
        done = subprocess.run(
            command + arguments,
            capture_output=True,
            check=False,
            text=True,
            env=os.environ | place,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "to" / "vocab.txt").is_file()
    (snapshot / "vocab.txt").unlink()
    done = subprocess.run(
        command + arguments,
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | place,
    )
    assert done.returncode == 1
    assert "org/words has no tokenizer: a BertTokenizer has" in done.stderr


def test_as_a_module(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("cat\n" + "x" * 70 + "\n" + "cat\n" * 2)
    done = subprocess.run(
        [sys.executable, "-m", "eqx_bart", "generate", "--batch-size=2", "--input", file],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == "cat\tK AE1 T\n" * 3
    assert done.stderr.startswith("eqx-bart: error: line 2 has 72 tokens")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def on_a_terminal(monkeypatch):
    """What a terminal of 80 columns shows while the command line runs, when standard error
    is on it, or other streams as well."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def read(terminal, chunks):
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(terminal, 100_000):
                chunks.append(chunk)

    def show(arguments, *streams):
        terminal, end = pty.openpty()
        chunks = []
        reader = threading.Thread(target=read, args=(terminal, chunks))
        reader.start()
        with (
            monkeypatch.context() as patch,
            os.fdopen(end, "w", encoding="utf-8") as stream,
        ):
            for name in ("stderr", *streams):
                patch.setattr(sys, name, stream)
            status = main(["generate", *arguments])
        reader.join()
        os.close(terminal)
        return status, b"".join(chunks).decode()

    return show


def test_progress_on_a_terminal(on_a_terminal, capsys):
    status, shown = on_a_terminal(["cat", "x" * 70])
    assert (status, capsys.readouterr().out) == (1, "cat\tK AE1 T\n")
    assert "generating" in shown
    assert "100%" in shown
    assert re.search(r"0:00:00 [.0-9]+ inputs/s", re.sub(r"\x1b\[[0-9;]*m", "", shown))
    assert "error: input 2 has 72 tokens" in shown

    status, shown = on_a_terminal(["--truncate", "--json", "x" * 70], "stdout")
    assert status == 0
    assert "generating" in shown
    assert re.search(f'"{"x" * 70}", "output": "[A-Z0-9 ]+", "score": [-.0-9]+}}', shown)


def test_info(capsys, tmp_path):
    assert main(["info", str(eb.BUILTIN_MODEL)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"token embeddings +1 +19,584 +float16 +39,168", out)
    assert re.search(r"all +150 +2,915,750 +5,831,704", out)
    assert "layers 4+3, heads 4+4" in out
    assert main(["info", "--json", str(eb.BUILTIN_MODEL)]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["format"] == "safetensors"
    assert about["config"]["d_model"] == 192
    assert [about[key] for key in ("problems", "new weights", "unused")] == [[], [], []]

    state = safetensors.torch.load_file(eb.BUILTIN_MODEL / "model.safetensors")
    del state["model.encoder.layers.0.fc1.bias"]
    shorter = state["model.decoder.embed_positions.weight"][:9]
    state["model.decoder.embed_positions.weight"] = shorter
    state["model.encoder.layers.9.fc1.bias"] = torch.zeros(3)
    state["my_head"] = torch.zeros(3, dtype=torch.int64)
    torch.save(state, tmp_path / "pytorch_model.bin")
    shutil.copy(eb.BUILTIN_MODEL / "config.json", tmp_path)
    assert main(["info", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "pytorch_model.bin (PyTorch)" in out
    assert "problems: model.encoder.layers.0.fc1.bias: missing" in out
    assert "problems: model.encoder.layers.9.fc1.bias: unexpected" in out
    assert re.search(r"problems: model.decoder.embed_positions.*shape \[9, 192\]", out)
    assert re.search(r"head +1 +3 +int64 +24", out)
    assert "unused: my_head" in out
    assert "BartForConditionalGeneration cannot be loaded from" in err


def test_info_of_a_model_that_is_not_ours(capsys, config, tmp_path):
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"architectures": ["BartForFun"]}))
    shutil.copy(eb.BUILTIN_MODEL / "model.safetensors", tmp_path)
    assert main(["info", str(tmp_path)]) == 1
    assert "that of BartForFun, which is none of BartModel, " in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float64"])
def test_convert(dtype, capsys, tmp_path):
    state = safetensors.torch.load_file(eb.BUILTIN_MODEL / "model.safetensors")
    source, destination = tmp_path / "source", tmp_path / "destination"
    shutil.copytree(eb.BUILTIN_MODEL, source)
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    arguments = ["convert", str(source), str(destination), "--max-shard-size", "2MB"]
    arguments += [] if dtype is None else ["--dtype", dtype]
    assert main(arguments) == 0
    assert "read back and the same" in capsys.readouterr().out
    converted = {}
    for file in destination.glob("model-*.safetensors"):
        converted |= safetensors.torch.load_file(file)
    assert len(list(destination.glob("model-*.safetensors"))) > 1
    assert converted.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(converted[name], tensor.to(getattr(torch, dtype or "float32")))
    assert (destination / "tokenizer.json").is_file()

    assert main(arguments) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    arguments[arguments.index("2MB")] = "three"
    assert main([*arguments, "--overwrite"]) == 1
    assert "max_shard_size must be" in capsys.readouterr().err


def test_convert_to_8_bits(capsys, tmp_path):
    arguments = ["convert", str(eb.BUILTIN_MODEL), str(tmp_path), "--quantize", "int8"]
    assert main(arguments) == 0
    assert "read back and the same" in capsys.readouterr().out
    assert main(["info", "--json", str(tmp_path)]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["problems"] == about["new weights"] == about["unused"] == []
    parts = {(part["part"], part["dtype"]): part["bytes"] for part in about["parts"]}
    assert parts["token embeddings", "int8"] == 19_584
    assert main(["generate", "--model", str(tmp_path), "transformer"]) == 0
    assert capsys.readouterr().out == "transformer\tT R AE0 N S F AO1 R M ER0\n"
