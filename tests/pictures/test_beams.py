"""The answers of beam search as a tree."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from drawn import is_whole, others, tokens
from matplotlib import colormaps
from matplotlib.colors import to_hex

import eqx_bart as eb


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(eb.BUILTIN_MODEL)


@pytest.fixture(scope="module")
def output(tokenizer):
    model = eb.BartForConditionalGeneration.from_pretrained(eb.BUILTIN_MODEL)
    inputs = tokenizer(["transformer", "though"], padding=True, return_tensors="np")
    return model.generate(
        inputs["input_ids"],
        inputs["attention_mask"],
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=16,
        output_token_log_probs=True,
    )


def parents(figure):
    """Where each token comes from, and the width of the line to it."""
    return {
        tuple(line.get_xydata()[-1]): (tuple(line.get_xydata()[0]), line.get_linewidth())
        for line in figure.axes[0].lines
    }


def paths(figure):
    """What is read from the root to each score: the tokens with their colours, the widths
    of the lines to them, and the score."""
    found, before = tokens(figure), parents(figure)
    ends = {place: x + len(found[place][0]) for place in found for x in [place[0]]}
    for (column, line), score in sorted(others(figure).items(), key=lambda x: x[0][1]):
        place = next(x for x, end in ends.items() if (end + 1, x[1]) == (column, line))
        path = []
        while place in before:
            begin, width = before[place]
            path.append((*found[place], width))
            place = next(x for x, end in ends.items() if (end, x[1]) == begin)
        assert found[place][0] == "</s>"  # the start
        yield path[::-1], score


@pytest.mark.parametrize("row", [0, 2, 4, -1])
def test_the_tree_has_the_answers(row, output, tokenizer):
    """Each path through it is an answer to that input, and each prefix is drawn once."""
    figure = eb.plot_beams(output, tokenizer, row=row)
    rows = range(4) if row in {0, 2} else range(4, 8)
    expected = []
    for i in rows:
        count = int(output.lengths[i]) - 1
        ids = output.sequences[i, 1 : 1 + count].tolist()
        log_probs = np.asarray(output.token_log_probs[i, :count])
        looks = map(to_hex, colormaps["magma"](1 + log_probs / 6))
        widths = (0.5 + 2.5 * np.exp(log_probs)).tolist()
        path = zip(tokenizer.convert_ids_to_tokens(ids), looks, widths, strict=True)
        expected.append(([*path], f"{output.sequences_scores[i]:.2f}"))
    found = [*paths(figure)]
    assert sorted(x[1] for x in found) == sorted(x[1] for x in expected)
    assert found[0][1] == expected[0][1]  # the best is on top
    for path, score in found:
        ((other, _),) = (x for x in expected if x[1] == score)
        assert [x[:1] for x in path] == [x[:1] for x in other]
        for (_, look, width), (_, other_look, other_width) in zip(path, other, strict=True):
            assert look == other_look
            assert width == pytest.approx(other_width, rel=1e-4)
    prefixes = {tuple(x[0] for x in path[:n]) for path, _ in found for n in range(20)}
    assert len(tokens(figure)) == len(prefixes)
    assert is_whole(figure)


@pytest.mark.parametrize("row", [0, 3, 5, -1])
def test_groups_of_beams(row):
    """Each group has a beam that goes on from the prompt: a tree has the answers of all."""
    answers = [[1, 9], [2, 9], [3, 9], [4, 9], [5, 9], [6, 9], [7, 9], [8, 9]]
    beams = jnp.array([0, 2, 0, 2, 4, 6, 6, 4])[:, None].repeat(2, axis=1)
    output = made(*answers, beam_indices=beams)
    figure = eb.plot_beams(output, Letters(), row=row, num_return_sequences=4)
    found = sorted(text for text, _ in tokens(figure).values())
    letters = "abcd" if row in {0, 3} else "efgh"
    assert found == sorted(["<s>", *["</s>"] * 4, *(f"␣{x}" for x in letters)])
    one_group = eb.plot_beams(output, Letters(), row=row)
    assert len(tokens(one_group)) == 1 + 2 * 2


class Letters:
    """A tokenizer whose tokens are letters."""

    def convert_ids_to_tokens(self, ids):
        return [["<s>", *(f"Ġ{x}" for x in "abcdefgh"), "</s>"][i] for i in ids]


def made(*answers, **fields):
    """An output with these answers, after a prompt of two tokens."""
    steps = max(map(len, answers))
    rows = [[8, 0, *answer] + [7] * (steps - len(answer)) for answer in answers]
    lengths = [2 + len(answer) for answer in answers]
    return eb.GenerationOutput(
        sequences=jnp.array(rows),
        lengths=jnp.array(lengths),
        **{
            "sequences_scores": -jnp.arange(float(len(answers))),
            "beam_indices": jnp.zeros((len(answers), steps), int),
            "token_log_probs": jnp.full((len(answers), steps), -1.0),
            **fields,
        },
    )


def test_answers_that_begin_alike_lie_together():
    output = made([1, 2, 9], [3, 9], [1, 4, 4, 9], [3, 5, 9], [1, 2, 6, 9])
    figure = eb.plot_beams(output, Letters())
    lines = {}
    for (column, line), (text, _) in sorted(tokens(figure).items()):
        lines[line] = lines.get(line, "") + text
        assert column in {0, 5, 9, 15, 21}  # the widest of each step, and two more
    assert lines == {
        0: "<s>␣a␣b</s>",
        1: "␣f</s>",
        2: "␣d␣d</s>",
        3: "␣c</s>",
        4: "␣e</s>",
    }
    scores = {line: text for (_, line), text in others(figure).items()}
    assert scores == {0: "-0.00", 1: "-4.00", 2: "-2.00", 3: "-1.00", 4: "-3.00"}


def test_lines_do_not_cross_tokens():
    """A line goes down before a column in which no other token stands."""
    figure = eb.plot_beams(made([1, 2, 9], [3, 9], [1, 4, 9], [3, 5, 9]), Letters())
    spans = [(x, x + len(text)) for (x, _), (text, _) in tokens(figure).items()]
    for line in figure.axes[0].lines:
        (turn,) = set(line.get_xdata()[1:3])
        assert all(not begin < turn < end for begin, end in spans)


def test_a_long_answer():
    """Longer than Python's calls may be nested."""
    figure = eb.plot_beams(made([1] * 1100 + [9], [1] * 1099 + [2, 9]), Letters())
    assert len(tokens(figure)) == 1 + 1101 + 2


@pytest.mark.parametrize(
    ("fields", "row", "message"),
    [
        ({"beam_indices": None}, 0, "There are no beams: generate with num_beams"),
        ({"token_log_probs": None}, 0, "generate with output_token_log_probs=True"),
        ({"token_log_probs": jnp.full((1, 2), jnp.nan)}, 0, "of token 0 is NaN"),
        ({}, 1, "There is no row 1: there are 1"),
    ],
)
def test_what_is_missing(fields, row, message):
    with pytest.raises(ValueError, match=message):
        eb.plot_beams(made([1, 9], **fields), Letters(), row=row)


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_answers(count):
    message = f"num_return_sequences={count}: the output has 3 rows"
    with pytest.raises(ValueError, match=message):
        eb.plot_beams(made([1, 9], [2, 9], [3, 9]), Letters(), num_return_sequences=count)
