"""Texts cut in windows: nothing is lost, and no cut is worse than another."""

import itertools
import random
import sys

import pytest
from conftest import with_slow

from eqx_bart.tasks import windows as module
from eqx_bart.tasks.windows import beginning, partition, windows


WORDS = [
    *("the", "of", "and", "house", "Dr.", "Mr.", "U.S.", "e.g.", "3.5", "went", "café"),
    *(
        "naïve",
        "Zürich",
        "日本語",
        "😀",
        "👩‍👩‍👧",
        "don't",
        "“quoted”",
        "(aside)",
        "İstanbul",
    ),
    *("http://a.b/c", "antidisestablishmentarianism", "---", "ﬁn"),
]
SPACES = (
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\u00a0",
    "\u2029",
    "\r\n",
    "\x85",
    "\u3000",
)


def random_sentence(rng):
    words = rng.choices(WORDS, k=rng.randint(1, 14))
    words[0] = "X" + words[0]
    return "".join(
        word + (rng.choice(SPACES) if i < len(words) - 1 else rng.choice(".!?…"))
        for i, word in enumerate(words)
    )


def random_text(rng):
    """Sentences of many lengths, of which some are too long, and some without spaces."""
    parts = [random_sentence(rng) for _ in range(rng.randint(5, 60))]
    if rng.random() < 0.3:
        parts.insert(rng.randrange(len(parts)), " ".join(rng.choices(WORDS[:3], k=300)))
    if rng.random() < 0.3:
        parts.insert(rng.randrange(len(parts)), "日本語" * rng.randint(1, 150))
    return "".join(x + rng.choice(SPACES) for x in parts)


@pytest.mark.parametrize("seed", with_slow(*range(4), slow=range(200)))
def test_nothing_is_lost(seed, tokenizer):
    rng = random.Random(seed)
    for _ in range(10):
        text, most = random_text(rng), rng.choice((24, 64, 200))
        prefix = rng.choice(("", " ", "summarize: "))
        found = windows(tokenizer, text, most, prefix=prefix)
        end = 0
        for span, ids in found:
            assert not text[end : span.start].strip()
            part, end = text[span.start : span.end], span.end
            assert part == part.strip() != ""
            assert ids == tokenizer(prefix + part)["input_ids"]
            assert len(ids) <= most
        assert not text[end:].strip()


@pytest.mark.parametrize("seed", range(4))
def test_sentences_and_tokens_stay_whole(seed, tokenizer):
    rng = random.Random(seed)
    sentences = [
        "So " + " ".join(rng.choices(WORDS[:2] + WORDS[9:14], k=rng.randint(1, 15))) + "."
        for _ in range(60)
    ]
    text = " ".join(sentences)
    found = windows(tokenizer, text, 64, prefix=" ")
    ends = list(itertools.accumulate(len(x) + 1 for x in sentences))
    starts = [0, *ends[:-1]]
    for span, _ in found:
        assert span.start in starts
        assert span.end + 1 in ends
    # With the prefix of bart-large-cnn, the tokens are those of the whole text.
    tokens = [i for _, ids in found for i in ids[1:-1]]
    assert tokens == tokenizer(" " + text)["input_ids"][1:-1]
    # As few windows as sentences allow, of about one length.
    sizes = [
        len(tokenizer(" " + x, add_special_tokens=False)["input_ids"]) for x in sentences
    ]
    assert len(found) == fewest(sizes, 62)
    longest = max(len(ids) - 2 for _, ids in found)
    assert longest == smallest(sizes, len(found))


def runs(sizes, number):
    """All ways to put neighbours in so many runs."""
    for cuts in itertools.combinations(range(1, len(sizes)), number - 1):
        yield [sizes[i:j] for i, j in itertools.pairwise([0, *cuts, len(sizes)])]


def fewest(sizes, most):
    """How many runs are needed, by a table of all beginnings."""
    best = [0]
    for end in range(1, len(sizes) + 1):
        fits = [s for s in range(end) if sum(sizes[s:end]) <= most]
        best.append(1 + min(best[start] for start in fits))
    return best[-1]


def smallest(sizes, number):
    """The largest run of that partition in so many whose largest is the smallest."""
    best = [0, *[float("inf")] * len(sizes)]
    for _ in range(number):
        best = [
            min((max(best[s], sum(sizes[s:end])) for s in range(end)), default=float("inf"))
            for end in range(len(sizes) + 1)
        ]
    return best[-1]


def test_partitions_are_the_best():
    rng = random.Random(0)
    for _ in range(300):
        sizes = rng.choices(range(10), k=rng.randint(1, 9))
        most = rng.randint(max(*sizes, 1), 25)
        found = [sizes[run] for run in partition(sizes, most)]
        assert [x for run in found for x in run] == sizes
        assert all(found)
        assert max(map(sum, found)) <= most
        number = next(
            n
            for n in itertools.count(1)
            if any(max(map(sum, x)) <= most for x in runs(sizes, n))
        )
        assert len(found) == number == fewest(sizes, most)
        best = min(max(map(sum, x)) for x in runs(sizes, number))
        assert max(map(sum, found)) == best == smallest(sizes, number)


def test_one_that_is_too_large_is_alone():
    assert partition([2, 9, 1, 1], 4) == [slice(0, 1), slice(1, 2), slice(2, 4)]
    assert partition([9], 4) == [slice(0, 1)]


def test_a_long_sentence_is_cut_at_lines_or_words(tokenizer):
    lines = "\n".join(f"carrots and {'very ' * (i % 7)}small peas" for i in range(60))
    for span, _ in windows(tokenizer, lines, 50):
        part = lines[span.start : span.end]
        assert part.startswith("carrots")
        assert part.endswith("peas")
    words = " ".join(["antidisestablishmentarianism"] * 40)
    found = windows(tokenizer, words, 50)
    assert {x for (a, b), _ in found for x in words[a:b].split()} == {words.split()[0]}


def test_abbreviations_of_a_language():
    text = "Vino el Sr. Gómez con la Sra. Pérez.\n\n Y se fueron. "
    spanish = [text[a:b] for a, b in module._sentences(text, "es")]
    assert spanish == ["Vino el Sr. Gómez con la Sra. Pérez.", "\n\n Y se fueron."]
    english = [text[a:b] for a, b in module._sentences(text, "en")]
    assert english == ["Vino el Sr. Gómez con la Sra.", " Pérez.", "\n\n Y se fueron."]


def test_all_kinds_of_whitespace():
    for space in filter(str.isspace, map(chr, range(sys.maxunicode + 1))):
        text = f"a.{space} B {space}.{space}\nC. {space}D"
        found = [text[a:b] for a, b in module._sentences(text, "en")]
        assert "".join(found) == text


def test_what_is_read_of_the_beginning(tokenizer):
    text = "Le café était fermé; nous avons mangé une crêpe 🥞. " * 20
    for prefix in ("", " ", "summarize: "):
        span, ids = beginning(tokenizer, text, 40, prefix=prefix)
        assert ids == tokenizer(prefix + text, truncation=True, max_length=40)["input_ids"]
        assert span.start == 0
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded == prefix + text[: span.end]


def test_too_few_tokens(tokenizer):
    with pytest.raises(ValueError, match="no room for a text in windows of 4 tokens"):
        windows(tokenizer, "日本語", 4, prefix="summarize: ")


def test_without_sentencex(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'eqx-bart\[tasks\]'"):
        windows(tokenizer, "One. Two.", 8)
