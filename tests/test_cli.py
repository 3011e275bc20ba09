"""The command line, with the built-in model."""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys

import pytest

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
        (["--model", "nowhere", "hello"], "There is no config.json at nowhere"),
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
