"""The README's code and commands do what it says."""

import pathlib
import re
import shlex

import pytest

from eqx_bart.cli import main


README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.docs
def test_python(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(blocks("python")) == 8
    scope = {}
    code = compile("\n".join(blocks("python")), "README.md", "exec")
    with pytest.warns(UserWarning, match="classification_head.* drawn at random"):
        exec(code, scope)  # noqa: S102
    answers = [line.split("\t")[1] for line in blocks("text")[0].splitlines()]
    assert capsys.readouterr().out == f"{answers}\n"
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert float(scope["loss"]) > 0


def test_the_first_command(capsys):
    command = blocks("sh")[0].split("&&")[-1]
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/eqx-bart"
    assert main(arguments) == 0
    assert capsys.readouterr().out == blocks("text")[0]


@pytest.mark.parametrize("name", re.findall(r"`benchmarks/[^`]*`", README))
def test_paths(name):
    assert (pathlib.Path(__file__).parents[1] / name.strip("`")).exists()
