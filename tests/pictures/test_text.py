"""The log-probabilities of a text's tokens, as colours."""

import sys
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from drawn import is_whole, tokens
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb

import eqx_bart as eb
from eqx_bart.pictures.drawing import colours, readable


WORDS = ["<s>", "The", "Ġ<b>", "Ġ&", "Ġ$x", '"', "</s>"]
READ = ["<s>", "The", " <b>", " &", " $x", '"', "</s>"]
LOG_PROBS = np.array([0, -0.5, -3, -5.9, -6, -100, -np.inf])


def looks(log_probs):
    return [to_hex(x) for x in colormaps["magma"](np.clip(1 + log_probs / 6, 0, 1))]


def test_what_is_drawn():
    figure = eb.plot_token_log_probs(WORDS, jnp.asarray(LOG_PROBS))
    found = sorted(tokens(figure).items())
    assert [text for _, (text, _) in found] == READ
    assert [look for _, (_, look) in found] == looks(LOG_PROBS)
    assert is_whole(figure)
    assert figure.axes[1].get_xlabel() == "log-probability"
    assert figure.axes[1].get_xlim() == (-6, 0)


def test_lines_are_broken():
    """Before a token that does not fit; one that is longer than a line makes all longer."""
    words = ["Ġword"] * 40 + ["x" * 100]
    figure = eb.plot_token_log_probs(words, -np.ones(41))
    places = [*tokens(figure)]
    assert len(places) == 41
    lines = sorted({line for _, line in places})
    assert lines == [*range(len(lines))]
    for line in lines:
        columns = sorted(column for column, at in places if at == line)
        texts = [tokens(figure)[column, line][0] for column in columns]
        ends = [x + len(text) for x, text in zip(columns, texts, strict=True)]
        assert columns[0] == 0
        assert all(x > end for x, end in zip(columns[1:], ends, strict=False))
        assert ends[-1] <= figure.axes[0].get_xlim()[1] == 100
    assert is_whole(figure)


@pytest.mark.parametrize("words", [["a"], ["a"] * 500, ["$", "$x$", "\\frac", "😀é"]])
def test_nothing_is_cut_off(words):
    assert is_whole(eb.plot_token_log_probs(words, np.zeros(len(words))))


def test_what_the_font_does_not_have():
    figure = eb.plot_token_log_probs(["日", "x"], np.zeros(2))
    assert [column for column, _ in tokens(figure)] == [0, 2.5]  # a character is wide
    with pytest.warns(UserWarning, match="Glyph 26085"):
        is_whole(figure)


class Spans(HTMLParser):
    """The texts, titles and styles of what has a title; and all tags."""

    def __init__(self, text):
        super().__init__()
        self.found, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._attrs = dict(attrs)

    def handle_data(self, data):
        if "title" in self._attrs:
            self.found.append((data, self._attrs["title"], self._attrs["style"]))
            self._attrs = {}


def test_html():
    shown = eb.html_token_log_probs([*WORDS, "<script>"], [*LOG_PROBS, -1.0])
    spans = Spans(shown)
    assert [text for text, _, _ in spans.found] == [*READ, "<script>"]
    assert spans.found[1][1] == "-0.500"
    assert spans.tags == {"div", "span", "small", "wbr"}
    styles = [style for _, _, style in spans.found]
    for style, look in zip(styles, looks(LOG_PROBS), strict=False):
        assert f"background:{look};" in style
    assert shown._repr_html_() == shown == str(shown)
    assert "http" not in shown


def test_texts_are_legible():
    """Black or white, whichever differs enough from what is below: 4.5 in WCAG's terms."""

    def luminance(colour):
        x = np.array(to_rgb(colour))
        x = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        return x @ [0.2126, 0.7152, 0.0722]

    for look in colours(np.linspace(-6, 0, 200)):
        pair = sorted([luminance(look.text), luminance(look.background)])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4.5


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("Ġthe", " the"),
        ("Ã©", "é"),
        ("é", "é"),
        ("日本", "日本"),
        ("Ċ", r"\n"),
        ("a\tb", r"a\tb"),
        ("</s>", "</s>"),
        ("AE1", "AE1"),
    ],
)
def test_tokens_as_they_are_read(token, text):
    assert readable([token]) == [text]


def test_characters_of_more_than_one_token():
    assert readable(["a", "ĠâĢ", "ľ", "so"]) == ["a", "…", " “", "so"]
    assert readable(["ðŁ", "ĺ", "Ģ", "âĢ"]) == ["…", "…", "😀", "âĢ"]


def test_tokens_of_barts_own_tokenizer(shared_data):
    path = shared_data / "bart-tokenizer"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = "A naïve café, 324 metres (1,063 ft) — it's <b>tall</b> & “so” on."
    words = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert any("Ġ" in word for word in words)
    shown = eb.html_token_log_probs(words, np.zeros(len(words)))
    shown = "".join(x for x, _, _ in Spans(shown).found)
    assert shown.replace("…", "") == f"<s>{text}</s>"
    assert "…" in shown  # quotation marks are two tokens


@pytest.mark.parametrize("draw", [eb.plot_token_log_probs, eb.html_token_log_probs])
@pytest.mark.parametrize(
    ("words", "log_probs", "message"),
    [
        (["a", "b"], [-1.0], r"There are 2 tokens, and log_probs of shape \(1,\)"),
        (["a"], [[-1.0]], r"There are 1 tokens, and log_probs of shape \(1, 1\)"),
        ([], [], r"There are 0 tokens"),
        (["a", "b"], [-1.0, float("nan")], "The log-probability of token 1 is NaN"),
    ],
)
def test_what_does_not_fit(draw, words, log_probs, message):
    with pytest.raises(ValueError, match=message):
        draw(words, log_probs)


@pytest.mark.parametrize("draw", [eb.plot_token_log_probs, eb.html_token_log_probs])
def test_without_matplotlib(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'eqx-bart\[plot\]'"):
        draw(["a"], [-1.0])
