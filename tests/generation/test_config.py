"""What follows from the declarations of the settings: checks, defaults, documentation."""

import dataclasses
import inspect

import jax
import pytest
import transformers

import eqx_bart as eb
from eqx_bart import settings
from eqx_bart.settings import settings_of


DECLARED = settings_of(eb.GenerationConfig)
NAN, INFINITY = float("nan"), float("inf")

# Values that settings with these words accept, and values that they refuse.
VALUES = {
    "be true or false": ([True, False], [0, 1, "true"]),
    "be an integer": ([-1, 0, 7.0], [1.5, NAN, True, "1"]),
    "be an integer, 1 or more": ([1, 7.0], [0, -1, 1.5, True, "1"]),
    "be an integer, 0 or more": ([0, 7.0], [-1, 1.5, True, "1"]),
    'be true, false or "never"': ([True, False, "never"], [1, "always"]),
    "be a number": ([-1, 0, 0.5], [NAN, INFINITY, True, "1", 10**400]),
    "be a number, 0 or more": ([0, 1, 0.5], [-0.5, NAN, INFINITY, True, "1"]),
    "be a number above 0": ([1, 0.5], [0, -0.5, NAN, INFINITY, True, "1"]),
    "be above 0; do_sample=False is greedy": ([1, 0.5], [0, 0.0, -1, NAN, "1"]),
    "lie in [0, 1]": ([0, 0.5, 1], [-0.1, 1.1, NAN, True]),
    "lie in (0, 1]": ([0.5, 1], [0, 0.0, 1.1, NAN]),
    "lie in [0, 1)": ([0, 0.5], [-0.1, 1, 1.0, NAN]),
    "be a token id, an integer": ([-1, 0, 7], [1.0, True, (1,), "1"]),
    "be a token id, an integer, 0 or more": ([0, 7], [-1, 1.0, True, (1,), "1"]),
    "be a token id, an integer, or several": (
        [0, 7, (), (7,), [0, 1]],
        [-1, 1.0, True, (1, -1), (True,), "1", "", 0.0],
    ),
    "be a list of token ids": ([(), (0,), [0, 1]], [0, (-1,), (True,), ("1",), "1"]),
    "be a list of lists of token ids": (
        [(), [[0]], [[0, 1], (2,)]],
        [0, [0], [[]], [[-1]]],
    ),
    "be pairs of a list of token ids and a number": (
        [(), [[[0], 1.5]], {(0, 1): -INFINITY}, [[[0, 1], 2], [[3], 4]]],
        [0, [[0, 1.5]], [[[], 1.5]], [[[0], NAN]], [[[0], "1"]], [[[0]]]],
    ),
    "be a start, an integer, and a factor above 0": (
        [(0, 1.5), [3, 1]],
        [1, (1,), (1, 0), (1.0, 1.5), (-1, 1.5), (1, 2, 3)],
    ),
}
WITH_AN_ID_OF_9 = (
    *((f"{x}_token_id", 9) for x in ("pad", "bos", "eos", "decoder_start")),
    *((f"forced_{x}_token_id", 9) for x in ("bos", "eos")),
    *((x, [0, 9]) for x in ("eos_token_id", "forced_eos_token_id")),
    *((x, [0, 9]) for x in ("suppress_tokens", "begin_suppress_tokens")),
    ("bad_words_ids", [[0, 1], [2, 9]]),
    ("sequence_bias", {(0, 1): 0.5, (2, 9): 0.5}),
)


def test_every_field_is_declared_and_every_kind_is_tested():
    fields = [field.name for field in dataclasses.fields(eb.GenerationConfig)]
    assert [*DECLARED, "extra", "origins"] == fields
    words = {name: declared.kind.words for name, declared in DECLARED.items()}
    assert set(words.values()) == VALUES.keys()
    with_ids = {name for name, text in words.items() if "token id" in text}
    assert with_ids == {name for name, _ in WITH_AN_ID_OF_9}


def test_defaults_are_those_of_hf():
    theirs = transformers.GenerationConfig._get_default_generation_params()
    ours = {name: declared.default for name, declared in DECLARED.items()}
    shared = ours.keys() & theirs.keys() - {"max_length"}
    assert len(shared) > 20
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    assert eb.GenerationConfig() == eb.GenerationConfig.from_dict(dict.fromkeys(ours))
    set_to_defaults = eb.GenerationConfig(**ours)
    assert all(getattr(set_to_defaults, name) == v for name, v in ours.items())


def settled(**settings):
    return eb.GenerationConfig(**settings).settled(1, 10, 20)


@pytest.mark.parametrize("name", DECLARED)
def test_values(name):
    """Each is accepted by a config, and refused where it is used."""
    words = DECLARED[name].kind.words
    accepted, refused = VALUES[words]
    for value in accepted:
        assert getattr(eb.GenerationConfig(**{name: value}), name) is not None
    for value in refused:
        used = {"num_beams": 2, "do_sample": True, name: value}
        with pytest.raises(ValueError) as error:
            settled(**used)
        assert str(error.value).startswith(f"GenerationConfig: {name} must {words}; it is ")


@pytest.mark.parametrize(
    "name",
    [x for x in DECLARED if not DECLARED[x].is_used({"num_beams": 1, "do_sample": False})],
)
def test_what_is_not_used_may_have_any_value(name):
    assert getattr(settled(**{name: "anything"}), name) == DECLARED[name].default


OWN, GIVEN = "the model's generation_config", "the generation_config given"
ARGUMENT = "an argument of generate"


@pytest.mark.parametrize(
    ("own", "given", "arguments", "expected"),
    [
        ({"min_length": 9}, {}, {"max_length": 5}, (4, 4)),
        ({"min_length": 9}, {"max_new_tokens": 3}, {}, (3, 3)),
        ({"min_new_tokens": 9}, {"max_length": 20}, {"max_new_tokens": 2}, (2, 2)),
        ({}, {"min_length": 9}, {"max_length": 5}, (4, 4)),
        ({"min_length": -1}, {}, {}, (19, 0)),
        ({"max_length": 7}, {}, {"min_length": 7}, (6, 6)),
        (
            {"max_length": 7},
            {},
            {"min_length": 9},
            f"min_length=9 ({ARGUMENT}) is more than max_length=7 ({OWN}) allows: 6 new",
        ),
        (
            {"max_new_tokens": 7},
            {"min_length": 9},
            {},
            f"min_length=9 ({GIVEN}) is more than max_new_tokens=7 ({OWN}) allows: 7 new",
        ),
        (
            {},
            {"max_length": 7, "min_length": 9},
            {"num_beams": 2},
            f"min_length=9 ({GIVEN}) is more than max_length=7 ({GIVEN}) allows",
        ),
        ({"max_length": 5, "min_length": 9}, None, {}, "min_length=9 is more than max"),
        ({"min_length": 30}, None, {}, "min_length=30 is more than the default allows"),
    ],
)
def test_a_newer_maximum_wins_over_a_minimum(own, given, arguments, expected):
    config = eb.GenerationConfig(**own)
    if given is not None:
        config = config.updated(eb.GenerationConfig(**given), arguments)
    if isinstance(expected, tuple):
        config = config.settled(1, 10, 20)
        assert (config.max_new_tokens, config.min_new_tokens) == expected
    else:
        with pytest.raises(ValueError) as error:
            config.settled(1, 10, 20)
        assert expected in str(error.value)


def test_a_change_for_good_is_older_than_a_call():
    own = eb.GenerationConfig(min_length=9).changed(None, {"max_length": 5})
    assert own.settled(1, 10, 20).min_new_tokens == 4
    with pytest.raises(
        ValueError, match=r"min_length=7 \(an arg.* \(a change of the model's"
    ):
        own.updated(None, {"min_length": 7}).settled(1, 10, 20)


@pytest.mark.parametrize(("name", "value"), WITH_AN_ID_OF_9)
def test_token_ids_lie_in_the_vocabulary(name, value):
    config = eb.GenerationConfig(**{name: value})
    assert config.settled(1, 10, 20).max_new_tokens == 19
    with pytest.raises(ValueError, match=f"{name}=9 is outside the vocabulary of 9"):
        config.settled(1, 9, 20)


def test_settled_leaves_nothing_open():
    config = eb.GenerationConfig(min_length=4, eos_token_id=[7, 8]).settled(3, 10, 20)
    assert (config.max_new_tokens, config.min_new_tokens, config.pad_token_id) == (17, 1, 7)
    assert (config.max_length, config.min_length) == (None, None)
    for name, declared in DECLARED.items():
        if declared.default is not None and name != "min_length":
            assert getattr(config, name) == declared.default


@pytest.mark.parametrize("prompt_length", [1, 5, 20])
def test_the_default_length(prompt_length):
    """20 new tokens, as HF's, or as many as there are positions for."""
    config = eb.GenerationConfig()
    assert config.settled(prompt_length, 10, 99).max_new_tokens == 20
    room = min(20, 21 - prompt_length)
    assert config.settled(prompt_length, 10, 21).max_new_tokens == room


def test_documentation():
    documented = inspect.getdoc(eb.GenerationConfig)
    assert documented.startswith("The settings of `generate`, under HF's names.\n")
    assert max(len(line) for line in documented.split("\n")) <= 88
    entries = [x.split("`")[1] for x in documented.split("\n") if x.startswith("- `")]
    assert entries == list(DECLARED)
    words = " ".join(documented.split())
    for name, declared in DECLARED.items():
        default = "" if declared.default is None else f" ({declared.default})"
        assert f"- `{name}`: {declared.meaning}.{default}" in words
    headings = [x for x in documented.split("\n") if x.startswith("**")]
    assert headings == list(dict.fromkeys(x.group for x in DECLARED.values()))


def test_a_config_is_static():
    config = eb.GenerationConfig(num_beams=3, bad_words_ids=[[1, 2]])
    same = eb.GenerationConfig(num_beams=3, bad_words_ids=[[1, 2]])
    assert (config, hash(config)) == (same, hash(same))
    assert config != dataclasses.replace(config, num_beams=4)
    changed = eb.GenerationConfig(num_beams=4, bad_words_ids=[[1, 2]])
    changed = changed.changed(None, {"num_beams": 3})  # where it is from, it does not show
    assert (changed, hash(changed), repr(changed)) == (config, hash(config), repr(config))
    assert jax.tree.leaves(config) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_beams = 4


def test_settings_are_not_checked_twice():
    """They have checks of their own, and no shapes: annotations cost each call time."""
    functions = [
        *(f for _, f in inspect.getmembers(settings, inspect.isfunction)),
        *(f for _, f in inspect.getmembers(eb.GenerationConfig, inspect.isfunction)),
        *(f for _, f in inspect.getmembers(eb.GenerationConfig, inspect.ismethod)),
    ]
    assert {"is_real", "__post_init__", "settled", "from_dict"} <= {
        f.__name__ for f in functions
    }
    wrapped = {f.__name__ for f in functions if hasattr(f, "__wrapped__")}
    assert wrapped <= {"__init__", "__repr__"}  # for other reasons


def test_hfs_other_settings_by_name():
    """HF's `GenerationConfig` takes all of its settings by name."""
    config = eb.GenerationConfig(return_dict_in_generate=True, extra={"task": 1})
    assert config.to_dict() == {"return_dict_in_generate": True, "task": 1}
    assert eb.GenerationConfig(penalty_alpha=0.6).extra == {"penalty_alpha": 0.6}
    with pytest.raises(TypeError, match="num_beems"):
        eb.GenerationConfig(num_beems=2)


def test_without_an_end_padding_is_token_0():
    assert eb.GenerationConfig(eos_token_id=()).settled(1, 9, 9).pad_token_id == 0


def test_a_file_that_is_too_deep(tmp_path):
    deep = "[" * 600 + "]" * 600
    (tmp_path / "generation_config.json").write_text(f'{{"their_own": {deep}}}')
    with pytest.raises(eb.CheckpointError, match=r"generation_config\.json at .*recursion"):
        eb.GenerationConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("max_positions", [20, 21])
def test_the_longest_answer(max_positions):
    """The last token is not read, and needs no position."""
    for most in (1, max_positions):
        config = eb.GenerationConfig(max_length=most + 1)
        assert config.settled(1, 9, max_positions).max_new_tokens == most
    for wrong in (max_positions + 2, 1, 0):
        config = eb.GenerationConfig(max_length=wrong)
        with pytest.raises(ValueError, match="max_length"):
            config.settled(1, 9, max_positions)
    with pytest.raises(ValueError, match="3 tokens from a start of 5"):
        eb.GenerationConfig(max_length=3).settled(5, 9, max_positions)


def test_nothing_is_returned_that_is_not_asked_for():
    names = [name for name in DECLARED if name.startswith("output_")]
    assert len(names) == 5
    assert not any(DECLARED[name].default for name in names)
