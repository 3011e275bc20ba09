"""The code on the pages of the documentation does what they say."""

import inspect
import pathlib
import re

import pytest
from conftest import on_devices

import eqx_bart as eb


DOCS = pathlib.Path(__file__).parents[1] / "docs"
MANY_DEVICES = DOCS / "guides" / "many-devices.md"
GUIDES = {*(DOCS / "guides").glob("*.md")} - {MANY_DEVICES}
PAGES = [DOCS / "take-bart-apart.md", *sorted(GUIDES)]


def python(page):
    """The blocks of code on a page."""
    text = page.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "--8<--" not in block]


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python(page, monkeypatch, tmp_path, recwarn):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(python(page))
    assert code
    exec(compile(code, page.name, "exec"), {})  # noqa: S102
    messages = [str(warning.message) for warning in recwarn]
    assert all("drawn at random from key" in message for message in messages), messages


def test_the_images_are_those_of_the_page():
    """Each that the page writes is there, small and shown."""
    page, images = DOCS / "guides" / "pictures.md", DOCS / "guides" / "pictures"
    written = set(re.findall(r'"([\w]+\.(?:png|html))"', "\n".join(python(page))))
    assert written == {file.name for file in images.iterdir()}
    shown = set(re.findall(r"pictures/([\w.]+)[)\"]", page.read_text()))
    assert shown == written
    assert all(file.stat().st_size < 60_000 for file in images.iterdir())


@pytest.mark.devices
def test_many_devices(tmp_path):
    """The page for many devices on many devices, where its loss is that of one."""
    script = tmp_path / "page.py"
    script.write_text("\n".join([*python(MANY_DEVICES), "print(float(loss))"]))
    losses = list[float]()
    for count in (1, 8):
        directory = tmp_path / str(count)
        directory.mkdir()
        losses.append(float(on_devices(count, script, cwd=directory)))
    assert losses[1] == pytest.approx(losses[0], rel=2**-8)  # the precision of bfloat16


def test_every_experiment_is_shown():
    page = (DOCS / "take-bart-apart.md").read_text()
    files = (pathlib.Path(__file__).parent / "experiments").glob("test_*.py")
    for file in files:
        assert f"tests/experiments/{file.name}:model" in page


def test_the_settings_are_those_of_the_class():
    page = (DOCS / "reference" / "generation.md").read_text()
    settings = inspect.getdoc(eb.GenerationConfig).partition("**Length:**")
    assert "".join(settings[1:]) in page
