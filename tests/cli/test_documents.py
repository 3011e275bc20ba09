"""`generate --output`: many inputs, in an order of their own, by runs that are killed."""

import contextlib
import fcntl
import heapq
import itertools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from eqx_bart.cli import documents, generate, main
from eqx_bart.cli.answers import Answer, Row
from eqx_bart.cli.common import InputError


GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "many-documents.md"
WINDOW = 16


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr("eqx_bart.cli.inputs.WINDOW", WINDOW)


class Echo:
    """Answers each text with itself, and remembers its batches."""

    def __init__(self):
        self.batches = []

    def row(self, source, *, truncate):
        if "!" in source.text:
            raise InputError("has a !")
        return Row(tuple(source.text.encode()), (0, 0))

    def answers(self, rows):
        self.batches.append([bytes(row.ids).decode() for row in rows])
        return [[Answer(text.upper(), None)] for text in self.batches[-1]]


@pytest.fixture
def echo(monkeypatch):
    answerer = Echo()
    monkeypatch.setattr(generate, "_answerer", lambda *_: answerer)
    return answerer


@pytest.fixture
def texts():
    """50 texts of many lengths."""
    lengths = np.random.default_rng(0).integers(60, size=50)
    return [f"{i:02}" + "x" * length for i, length in enumerate(lengths)]


@pytest.fixture
def lines(texts, tmp_path):
    """A file of them, with blank lines between."""
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"{text}\n" + "\n" * (text[1] == "3") for text in texts))
    return file


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output.jsonl"


def run(*arguments):
    return main(["generate", "--batch-size=4", *map(str, arguments)])


def objects(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def words(count, longest):
    """Words of few letters, some of which come more than once."""
    draw = np.random.default_rng(0)
    return [
        "".join(draw.choice([*"abd"], draw.integers(1, longest + 1))) for _ in range(count)
    ]


def test_the_order_is_that_of_the_input_and_batches_are_made_by_length(
    echo, texts, lines, output
):
    assert run("--input", lines, "--output", output) == 0
    numbers = [n for n, line in enumerate(lines.read_text().split("\n"), 1) if line]
    assert objects(output) == [
        {"number": number, "output": text.upper()}
        for number, text in zip(numbers, texts, strict=True)
    ]
    assert sorted(itertools.chain(*echo.batches)) == texts
    assert len(echo.batches) <= len(texts) / 4 + 4
    padding = sum(len(max(x, key=len)) * len(x) - len("".join(x)) for x in echo.batches)
    assert padding < 0.2 * len("".join(texts))


@pytest.mark.parametrize(
    ("name", "arguments", "first"),
    [
        ("out.jsonl", [], '{"number": 1, "output": "A\\tB"}'),
        (
            "out.txt",
            ["--json"],
            '{"number": 1, "input": "a\\tb", "output": "A\\tB", "score": null}',
        ),
        ("out.txt", [], "a b\tA B"),
    ],
)
def test_what_a_line_is(name, arguments, first, echo, tmp_path):
    assert run("--output", tmp_path / name, *arguments, "a\tb", "c") == 0
    assert (tmp_path / name).read_text().splitlines()[0] == first


class Killed(BaseException):
    """What no code but a test's expects."""


def run_until(num_writes, how, monkeypatch, *arguments):
    """Runs until a write, and is killed `how`: "before" it, "after" it, or in the middle.
    Returns whether there was that write."""
    writes = itertools.count(1)

    def dying(write):
        def wrapped(path, data):
            if next(writes) < num_writes:
                write(path, data)
                return
            if how == "after":
                write(path, data)
            elif how == "torn" and write.__name__ == "append":
                write(path, data[: len(data) * (num_writes % 7) // 7])
            raise Killed

        return wrapped

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        for name in ("append", "write_at_once"):
            patch.setattr(documents, name, dying(getattr(documents, name)))
        assert run(*arguments) == 0
        return False
    return True


def expected_of(echo, output, *arguments):
    """What a run writes that is not killed, and in how many batches. Nothing stays."""
    assert run(*arguments) == 0
    result = output.read_bytes(), len(echo.batches)
    begin_anew(echo, output)
    return result


def begin_anew(echo, output):
    output.unlink()
    output.with_name(output.name + ".progress").unlink(missing_ok=True)
    echo.batches.clear()


@pytest.mark.parametrize("how", ["before", "torn", "after"])
def test_killed_at_every_write(how, echo, lines, output, monkeypatch):
    arguments = ("--input", lines, "--output", output)
    expected, batches = expected_of(echo, output, *arguments)
    for num_writes in itertools.count(1):
        was_killed = run_until(num_writes, how, monkeypatch, *arguments)
        assert run(*arguments) == 0
        assert output.read_bytes() == expected
        assert len(echo.batches) <= batches + was_killed
        if not was_killed:
            break
        begin_anew(echo, output)
    assert num_writes > batches + 2 * 4


@pytest.mark.parametrize("how", ["torn", "after"])
def test_killed_again_and_again(how, echo, lines, output, monkeypatch):
    arguments = ("--input", lines, "--output", output)
    expected, batches = expected_of(echo, output, *arguments)
    kills = 0
    while run_until(3, how, monkeypatch, *arguments):
        kills += 1
    assert kills > 4
    assert output.read_bytes() == expected
    assert len(echo.batches) <= batches + kills


def test_a_finished_output_stays(echo, lines, output, capsys):
    for count in (1, 0):
        echo.batches.clear()
        assert run("--input", lines, "--output", output) == 0
        assert bool(echo.batches) == bool(count)
        said = capsys.readouterr().out
    assert said == f"{output} is finished: there is nothing to do\n"


def test_no_input(echo, lines, output):
    lines.write_text("\n\n")
    assert run("--input", lines, "--output", output) == 0
    assert output.read_bytes() == b""


@pytest.fixture(params=["half", "finished"])
def begun(request, echo, texts, lines, output, monkeypatch):
    """An output that was killed half-way, or is finished."""
    answers = Echo.answers

    def dying(self, rows):
        if request.param == "half" and len(self.batches) == 6:
            raise Killed
        return answers(self, rows)

    monkeypatch.setattr(Echo, "answers", dying)
    try:
        run("--input", lines, "--output", output, "--seed=3")
    except Killed:
        monkeypatch.setattr(Echo, "answers", answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed=4"], "was begun with --seed 3, not with 4: give the same, or another"),
        ([], "with --seed 3, not with null"),
        (["--seed=3", "--json"], "with --json false, not with true"),
        (["--seed=3", "--field=text"], 'with --field null, not with "text"'),
        (["--seed=3", "--model=m"], 'with --model "the built-in one", not with "m"'),
        (["--seed=3", "--set=num_beams=2"], 'with --set {}, not with {"num_beams": 2}'),
        (
            ["--seed=3", "--process-index=0", "--process-count=2"],
            "with --process-index null, not with 0",
        ),
    ],
)
def test_other_options(arguments, message, begun, lines, output, capsys):
    before = output.read_bytes()
    assert run("--input", lines, "--output", output, *arguments) == 1
    out, err = capsys.readouterr()
    assert f"{output} was begun with" in err
    assert message in err
    assert out == ""
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda texts: [*texts[:3], "other", *texts[4:]],
        lambda texts: texts[1:],
        lambda texts: texts[:5],
        lambda _: [],
    ],
)
def test_another_input(change, begun, texts, lines, output, capsys):
    lines.write_text("".join(f"{text}\n" for text in change(texts)))
    before = output.read_bytes()
    assert run("--input", lines, "--output", output, "--seed=3") == 1
    assert (
        "was begun with another input, or this one has changed" in capsys.readouterr().err
    )
    assert output.read_bytes() == before


def test_a_longer_input(echo, lines, output, capsys):
    run("--input", lines, "--output", output)
    lines.write_text(lines.read_text() + "\n" * WINDOW + "more\n")
    assert run("--input", lines, "--output", output) == 1
    assert "another input" in capsys.readouterr().err


def test_a_file_of_another_kind(echo, output, capsys):
    output.write_text("mine\n")
    assert run("--output", output, "cat") == 1
    assert "is not what" in capsys.readouterr().err
    assert output.read_text() == "mine\n"
    output.unlink()
    run("--output", output, "cat")
    for text in (output.read_text() + "mine\n", ""):
        output.write_text(text)
        assert run("--output", output, "cat") == 1
        assert "is not what" in capsys.readouterr().err
        assert output.read_text() == text
    output.with_name("output.jsonl.progress").write_text("{}\n")
    assert run("--output", output, "cat") == 1
    assert "is not the progress of an output" in capsys.readouterr().err


def test_two_runs_at_once(echo, output, capsys):
    with output.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run("--output", output, "cat") == 1
    assert f"another run is writing {output}" in capsys.readouterr().err


def test_processes_share_an_input(echo, lines, output, tmp_path):
    run("--input", lines, "--output", output)
    parts = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for i, part in enumerate(parts):
        share = ("--process-index", i, "--process-count", 3)
        assert run("--input", lines, "--output", part, *share) == 0
        assert run("--input", lines, "--output", part, *share) == 0
        assert part.read_bytes()
    merged = heapq.merge(*map(objects, parts), key=lambda x: x["number"])
    assert list(merged) == objects(output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--process-index=0"],
        ["--process-count=2"],
        ["--process-index=2", "--process-count=2"],
    ],
)
def test_processes_that_do_not_fit(arguments, echo, output, capsys):
    assert run("--output", output, *arguments, "cat") == 1
    assert "do not fit" in capsys.readouterr().err
    assert not output.exists()


def test_json_lines_and_wrong_ones(output, tmp_path, capsys):
    """With the model itself. What is wrong is reported, and stands in the output."""
    file = tmp_path / "documents.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"id": 7, "text": "cat"}\n'
        b'{"text": "cat"\n'
        b"\n"
        b'["cat"]\n'
        b'{"id": 7, "title": "cat"}\n'
        b'{"text": 7}\n'
        b'{"text": " "}\n'
        b'{"text": "\\ud800"}\n'
        b'{"text": "d\xff"}\n'
        b'{"text": "na\\u00efve"}\r\n'
        b'{"text": "dog"}'
    )
    assert run("--input", file, "--output", output) == 1
    errors = {
        2: "is not JSON: Expecting ',' delimiter",
        4: "is not a JSON object, but a list",
        5: "has no field 'text': name one of its fields, 'id', 'title', by --field",
        6: "has no text in its field 'text', but 7",
        7: "is empty",
        8: "is not Unicode: it has the lone surrogate 0xd800",
        9: "is not UTF-8: byte 12 of it is 0xff",
        10: "has characters that the model does not know: 'ï'",
    }
    assert capsys.readouterr().err.splitlines() == [
        f"eqx-bart: error: line {n} {error}" for n, error in errors.items()
    ]
    answers = {1: "K AE1 T", 11: "D AO1 G"}
    assert objects(output) == [
        {"number": n, "output": answers[n]}
        if n in answers
        else {"number": n, "error": errors[n]}
        for n in (1, 2, *range(4, 12))
    ]
    assert run("--input", file, "--output", output) == 1  # still

    assert run("--input", file, "--output", tmp_path / "title", "--field=title") == 1
    assert (tmp_path / "title").read_text() == "cat\tK AE1 T\n"
    assert run("--field=title", "cat") == 1
    assert "words have no field 'title'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_seed_decides_what_is_drawn(output, tmp_path, capsys):
    """Whatever the batches, the processes, and where it is written."""
    file = tmp_path / "words.txt"
    file.write_text("".join(f"{word}\n" for word in [*words(18, 5), *words(8, 5)]))
    settings = ["--input", file, "--set=do_sample=true", "--set=temperature=3.0"]
    settings += ["--set=max_new_tokens=8", "--seed=7", "--batch-size=2"]
    run(*settings)
    drawn = capsys.readouterr().out
    outputs = [tmp_path / f"{i}.txt" for i in range(4)]
    run(*settings, "--output", outputs[0])
    run(*settings, "--output", outputs[1], "--batch-size=3")
    for i in (0, 1):
        share = ("--process-index", i, "--process-count", 2)
        run(*settings, "--output", outputs[2 + i], *share)
    assert outputs[0].read_text() == outputs[1].read_text() == drawn
    first, second = (file.read_text().splitlines() for file in outputs[2:])
    assert [*first[:WINDOW], *second, *first[WINDOW:]] == drawn.splitlines()


def test_the_guide(tmp_path, monkeypatch):
    """Its commands and its code, one after the other."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    blocks = re.findall(
        r"^```(sh|python)\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL
    )
    for language, block in blocks:
        if language == "python" and "--8<--" not in block:
            exec(block, scope)  # noqa: S102
        elif language == "sh":
            for line in block.splitlines():
                assert main(shlex.split(line)[1:]) == 1  # a line cannot be read
    rows = objects(tmp_path / "out.jsonl")
    assert objects(tmp_path / "merged.jsonl") == rows
    assert rows[0] == {"number": 1, "output": "T R AE0 N S F AO1 R M ER0"}
    assert rows[2]["error"].startswith("has characters")
    assert len(rows) == 100


LOGGED = f"""
import sys
from eqx_bart.cli import answers, inputs, main

inputs.WINDOW = {WINDOW * 4}
answer = answers.Answerer.answers

def logged(self, rows):
    with open(sys.argv[1], "a") as log:
        log.write(f"{{len(rows)}}\\n")
    return answer(self, rows)

answers.Answerer.answers = logged
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_ten_times(tmp_path, output):
    """Processes of the command line, by SIGKILL at random moments while they answer."""
    file = tmp_path / "words.txt"
    file.write_text("".join(f"{word}\n" for word in words(2000, 12)))

    kept = {  # programs, so that most of the time is that of answers
        "EQX_ON_ERROR": "off",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(name, log):
        arguments = ["generate", "--input", file, "--output", tmp_path / name]
        arguments += ["--set=do_sample=true", "--seed=3", "--batch-size=4", "--json"]
        command = [sys.executable, "-c", LOGGED, tmp_path / log, *arguments]
        return subprocess.Popen(command, env=os.environ | kept)

    def num_batches(log):
        return len((tmp_path / log).read_text().splitlines())

    assert start("unkilled.jsonl", "unkilled").wait() == 0
    draw = np.random.default_rng()
    (tmp_path / "log").touch()
    for _ in range(10):
        process = start("output.jsonl", "log")
        enough = num_batches("log") + draw.integers(1, 40)
        while num_batches("log") < enough:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert output.stat().st_size > 0
    assert start("output.jsonl", "log").wait() == 0
    assert output.read_bytes() == (tmp_path / "unkilled.jsonl").read_bytes()
    assert num_batches("log") <= num_batches("unkilled") + 10
