"""The command line, with the built-in model."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch

import eqx_bart as eb
from eqx_bart.cli import main


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
    assert [row["input"] for row in rows] == words
    _, alone, _ = run(capsys, "--json", *words)
    assert alone == out


def test_standard_input_and_settings(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("phonology\n"))
    status, out, _ = run(capsys, "--set", "max_new_tokens=3", "--device", "cpu")
    assert status == 0
    assert len(out.split("\t")[1].split()) == 2
    free = ("--set", "max_new_tokens=3", "--set", "forced_eos_token_id=null")
    _, out, _ = run(capsys, *free, "phonology")
    assert len(out.split("\t")[1].split()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello", "naïve"], "input 2, 'naïve', has characters .* not know: 'ï'"),
        (["hello", " "], "input 2 is empty"),
        (["x" * 70], "input 1 has 72 tokens and the model reads at most 64"),
        (["--input", "nowhere.txt"], "nowhere.txt"),
        (["--model", "./nowhere", "hello"], "There is no file or directory './nowhere'"),
        (["--device", "abacus", "hello"], "there is no device 'abacus' here"),
        (["--set", "guidance_scale=2", "hello"], "does not support guidance_scale=2"),
        (["--set", "beams=4", "hello"], "generate has no setting beams"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert err.startswith("eqx-bart: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    "arguments", [["--batch-size", "0"], ["--set", "x"], ["--set", "x=y"]]
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["generate", *arguments, "hello"])
    assert exit_.value.code == 2


def test_a_model_without_a_tokenizer(capsys, config, getkey, tmp_path):
    eb.BartForConditionalGeneration(config, key=getkey()).save_pretrained(tmp_path)
    status, _, err = run(capsys, "--model", str(tmp_path), "hello")
    assert status == 1
    assert "has no tokenizer: no tokenizer.json" in err


def test_as_a_module_with_progress_on_a_terminal(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("cat\n" * 9)
    command = [sys.executable, "-m", "eqx_bart", "generate", "--input", str(file)]
    command += ["--batch-size", "4"]
    quiet = subprocess.run(command, capture_output=True, check=True, text=True)
    assert quiet.stderr == ""
    assert quiet.stdout == "cat\tK AE1 T\n" * 9

    terminal, end = pty.openpty()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=end, env={**os.environ, "TERM": "xterm"}
    )
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(terminal, 100_000):
            shown += chunk
    os.close(terminal)
    out, _ = process.communicate()
    assert out.decode() == quiet.stdout
    assert "generating" in shown.decode(errors="replace")


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
    state["model.encoder.layers.9.fc1.bias"] = torch.zeros(3)
    state["my_head"] = torch.zeros(3, dtype=torch.int64)
    torch.save(state, tmp_path / "pytorch_model.bin")
    shutil.copy(eb.BUILTIN_MODEL / "config.json", tmp_path)
    assert main(["info", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "pytorch_model.bin (PyTorch)" in out
    assert "problems: encoder.layers.0.fc1.bias: missing" in out
    assert "problems: encoder.layers.9.fc1.bias: unexpected" in out
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
