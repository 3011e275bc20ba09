"""Attention weights as heat maps."""

import itertools
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from drawn import is_whole
from matplotlib._pylab_helpers import Gcf

import eqx_bart as eb


LAYERS, ROWS, HEADS, STEPS, SOURCE = 3, 2, 4, 5, 6
SOURCE_TOKENS, TARGET_TOKENS = ["<s>", "the", "Ġcat", "</s>"], ["L", "e", "Ġchat"]


def attention(queries, keys, *, num_layers=LAYERS, dtype=jnp.float32):
    """Weights for each layer, with nothing for all but the first four tokens."""
    draw = np.random.default_rng(queries * keys)
    weights = draw.uniform(0.1, 1, (num_layers, ROWS, HEADS, queries, keys))
    weights[..., 4:] = 0
    return tuple(jnp.asarray(x, dtype) for x in weights)


CROSS = attention(STEPS, SOURCE)
GENERATED = eb.GenerationOutput(
    sequences=jnp.zeros((ROWS, 2 + STEPS), int),
    lengths=jnp.array([2 + 4, 2 + 3]),  # after a prompt of two tokens
    cross_attentions=CROSS,
)
CALLED = eb.Seq2SeqLMOutput(
    logits=jnp.zeros((ROWS, STEPS, 7)),
    cross_attentions=CROSS,
    decoder_attentions=attention(STEPS, STEPS),
    encoder_attentions=attention(SOURCE, SOURCE),
)
ENCODED = eb.BaseModelOutput(
    last_hidden_state=jnp.zeros((ROWS, SOURCE, 3)),
    attentions=attention(SOURCE, SOURCE),
)


def images(figure):
    return [np.asarray(x.images[0].get_array()) for x in figure.axes if x.images]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels() if text.get_visible()]


@pytest.mark.parametrize("row", [0, 1, -1])
@pytest.mark.parametrize("layer", [None, 0, -1])
@pytest.mark.parametrize("head", [None, 2, "all"])
def test_what_is_drawn(head, layer, row):
    figure = eb.plot_attention(
        CALLED, SOURCE_TOKENS, TARGET_TOKENS, layer=layer, head=head, row=row
    )
    weights = np.stack(CROSS)[:, row, :, :3, :4]
    weights = weights.mean(axis=0) if layer is None else weights[layer]
    if head is None:
        weights = weights.mean(axis=0, keepdims=True)
    elif head != "all":
        weights = weights[head : head + 1]
    np.testing.assert_allclose(images(figure), weights, rtol=1e-6)
    (limits,) = {axes.images[0].get_clim() for axes in figure.axes if axes.images}
    assert limits == (0, pytest.approx(weights.max()))
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    of_layer = "mean of layers" if layer is None else f"layer {layer}"
    of_head = "mean of heads" if head is None else f"head {head}"
    if head == "all":
        assert titles == ["head 0", "head 1", "head 2", "head 3"]
        assert figure.get_suptitle() == f"cross-attention, {of_layer}"
    else:
        assert titles == [f"cross-attention, {of_layer}, {of_head}"]


@pytest.mark.parametrize(
    ("outputs", "kind", "field"),
    [
        (CALLED, "encoder", "encoder_attentions"),
        (CALLED, "decoder", "decoder_attentions"),
        (ENCODED, "encoder", "attentions"),
    ],
)
def test_self_attention(outputs, kind, field):
    figure = eb.plot_attention(outputs, SOURCE_TOKENS, kind=kind, layer=1, head=0)
    weights = np.asarray(outputs[field][1])[0, 0, :4, :4]
    np.testing.assert_array_equal(images(figure), [weights])
    axes = figure.axes[0]
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == ["<s>", "the", "␣cat", "</s>"]
    side = {"encoder": "source", "decoder": "target"}[kind]
    assert axes.get_xlabel() == axes.get_ylabel() == side
    assert axes.get_title() == f"{kind} self-attention, layer 1, head 0"


def test_labels_are_around_all_maps():
    figure = eb.plot_attention(CALLED, SOURCE_TOKENS, TARGET_TOKENS, head="all")
    figure.draw_without_rendering()
    above, left = ["<s>", "the", "␣cat", "</s>"], ["L", "e", "␣chat"]
    found = [(ticks(x.xaxis), ticks(x.yaxis)) for x in figure.axes if x.images]
    assert found == [(above, left), (above, []), ([], left), ([], [])]
    assert figure.axes[0].get_xlabel() == "source"
    assert figure.axes[0].get_ylabel() == "target"


def test_without_target_tokens_they_are_numbered():
    for row, count in ((0, 4), (1, 3)):
        axes = eb.plot_attention(GENERATED, SOURCE_TOKENS, row=row).axes[0]
        assert ticks(axes.yaxis) == [str(i) for i in range(count)]
    axes = eb.plot_attention(CALLED, SOURCE_TOKENS).axes[0]
    assert ticks(axes.yaxis) == [str(i) for i in range(STEPS)]


def test_what_a_model_returns():
    """The built-in model in half precision, with padding: rows and columns are tokens."""
    path = eb.BUILTIN_MODEL
    model = eb.BartForConditionalGeneration.from_pretrained(path, dtype="bfloat16")
    ids = np.array([[0, 5, 6, 7, 8, 2], [0, 9, 2, 1, 1, 1]])
    mask = ids != model.config.pad_token_id
    output = model.generate(ids, mask, max_new_tokens=12, output_attentions=True)
    figure = eb.plot_attention(output, ["<s>", "x", "</s>"], row=1)
    (image,) = images(figure)
    assert image.shape == (int(output.lengths[1]) - 1, 3)
    np.testing.assert_allclose(image.sum(axis=1), 1, atol=2**-6)


LONG = ["unpronounceable"] * 70


@pytest.mark.parametrize(
    ("tokens", "head"),
    [(["a"], None), (["a"], "all"), (LONG, 0), (LONG[:20], "all"), (["$x", "$", "_^"], 0)],
)
def test_nothing_is_cut_off(tokens, head):
    size = len(tokens)
    outputs = eb.BaseModelOutput(
        last_hidden_state=jnp.zeros((1, size, 3)),
        attentions=(jnp.full((1, 4, size, size), 0.1),),
    )
    figure = eb.plot_attention(outputs, tokens, kind="encoder", head=head)
    assert is_whole(figure)
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


def test_a_long_text_is_no_larger_than_can_be_drawn():
    outputs = eb.BaseModelOutput(
        last_hidden_state=jnp.zeros((1, 1000, 3)),
        attentions=(jnp.full((1, 1, 1000, 1000), 0.1),),
    )
    figure = eb.plot_attention(outputs, ["a"] * 1000, kind="encoder")
    assert max(figure.get_size_inches()) < 65


@pytest.mark.parametrize(
    ("outputs", "tokens", "options", "message"),
    [
        (CALLED, ["a"] * 7, {}, "There are 7 tokens, and attention has 6 there"),
        (CALLED, ["a"] * 3, {}, "There are 3 tokens, and attention to others of the 6"),
        (CALLED, [], {}, "There are 0 tokens"),
        (CALLED, ["a"] * 4, {"target_tokens": ["a"] * 6}, "6 tokens, .* has 5 there"),
        (GENERATED, ["a"] * 4, {"target_tokens": ["a"] * 5}, "5 target .*row 0 has 4 new"),
        (CALLED, ["a"] * 4, {"layer": 3}, "There is no layer 3: there are 3"),
        (CALLED, ["a"] * 4, {"head": -5}, "There is no head -5: there are 4"),
        (CALLED, ["a"] * 4, {"kind": "self"}, "no kind 'self': there are cross, encoder"),
        (CALLED, ["a"] * 4, {"row": 2}, "There is no row 2: there are 2"),
        (GENERATED, ["a"] * 4, {"kind": "encoder"}, "Output has no encoder_attentions"),
        (
            CALLED,
            ["a"] * 4,
            {"kind": "encoder", "target_tokens": ["a"]},
            "The encoder's tokens attend to themselves",
        ),
    ],
)
def test_what_does_not_fit(outputs, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        eb.plot_attention(outputs, tokens, **options)


def test_layers_that_show_nothing():
    outputs = eb.BaseModelOutput(
        last_hidden_state=jnp.zeros((ROWS, SOURCE, 3)),
        attentions=(attention(SOURCE, SOURCE)[0], None),
    )
    assert eb.plot_attention(outputs, SOURCE_TOKENS, kind="encoder", layer=0)
    with pytest.raises(ValueError, match="Layer 1 shows no weights"):
        eb.plot_attention(outputs, SOURCE_TOKENS, kind="encoder")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'eqx-bart\[plot\]'"):
        eb.plot_attention(CALLED, SOURCE_TOKENS)


def test_no_figure_is_kept():
    """As pyplot keeps those that it makes."""
    eb.plot_attention(CALLED, SOURCE_TOKENS)
    assert not Gcf.figs
