"""YAML 1.2 scalars, keys, aliases and tags; quantities there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.config.errors import Mark, Mistakes
from emulator.config.quantity import (
    DURATION_MAX_NS,
    RATE_MAX,
    QuantityError,
    format_duration,
    format_rate,
    parse_duration,
    parse_rate,
)
from emulator.config.yaml12 import dump, parse


def read(text):
    mistakes = Mistakes()
    root = parse(text, Mark("f"), mistakes)
    mistakes.raise_if_any()
    return root.plain()


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "N", "On", "1:30", "190:20:30"])
def test_words_of_yaml_1_1_are_strings(word):
    assert read(f"a: {word}") == {"a": word}


@pytest.mark.parametrize(
    "word", ["1_000", "0b11", "2001-01-01", "=", "<<", "0x", "0o8", "-0x1", "tRUE", ".Inf1"]
)
def test_other_types_of_yaml_1_1_are_strings_too(word):
    assert read(f"a: {word}") == {"a": word}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("012", 12),
        ("0o17", 15),
        ("0x41", 65),
        ("0xEC", 236),
        ("-7", -7),
        ("+7", 7),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("2k/s", "2k/s"),
    ],
)
def test_a_scalar_is_what_the_core_schema_says(text, value):
    result = read(f"a: {text}")["a"]
    assert result == value
    assert type(result) is type(value)


def test_a_key_such_as_on_stays_a_word():
    assert read("{on: 1, 0: 2, 0x1: 3}") == {"on": 1, 0: 2, 1: 3}


def test_a_merge_key_is_just_a_key():
    assert read("a: &a {x: 1}\nb: {<<: *a}") == {"a": {"x": 1}, "b": {"<<": {"x": 1}}}


def test_a_duplicate_key_is_a_mistake_at_its_second_place(desk):
    message = desk.error("pirlab: 1\nname: a\nname: b\ncluster: {pcpus: 1}\nvms: {a: {vcpus: 1}}\n")
    assert message == "c.yaml:3:1: key 'name' is there twice, first in line 2\n    name: b\n    ^"


def test_two_spellings_of_one_integer_are_one_key(desk):
    assert "key 1 is there twice" in desk.error_with("x-a: {1: a, 0x1: b}")


@pytest.mark.parametrize("key", ["[a]", "{a: b}", "true", "1.5", "~"])
def test_a_key_is_a_name_or_an_integer(desk, key):
    assert "c.yaml:6:9: a key must be a name or an integer" in desk.error_with(
        f"x-a: {{? {key} : 1}}"
    )


@pytest.mark.parametrize("tag", ["!mine", "!!python/object:os.system", "!!timestamp"])
def test_a_tag_is_a_mistake(desk, tag):
    assert "means nothing here" in desk.error_with(f"question: {tag} a")


def test_an_aliased_value_is_reported_where_it_is_written(desk):
    message = desk.error_with("x-q: &q [1]\nquestion: *q\n")
    assert message.startswith("c.yaml:6:6: question: must be a text, got a list\n    x-q: &q [1]")


_SCALARS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Co", "Cn"]), max_size=12),
    st.sampled_from(["on", "012", "0o17", "1:30", "null", "~", "", "0x1F", "1e3", "- a", "a: b"]),
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.none(),
)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(_SCALARS, max_size=3), min_size=1))
def test_what_is_dumped_is_read_again(plain):
    assert read(dump(plain)) == plain


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("10ns", 10),
        ("200us", 200_000),
        ("200µs", 200_000),
        ("1.5ms", 1_500_000),
        ("0.1s", 100_000_000),
        ("5s", 5_000_000_000),
        ("1m", 60_000_000_000),
        ("2h", 7_200_000_000_000),
        ("0us", 0),
        ("1e3us", 1_000_000),
    ],
)
def test_a_duration_is_exact(text, ns):
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "text",
    ["5", "5 s", "-5s", "5S", "s", "", "1.s", ".5s", "5ms5", "0.5ns", "25h", "5s\n", "\u0665s"],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(QuantityError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "per_s"), [("500/s", 500.0), ("2k/s", 2e3), ("1.5M/s", 1.5e6), ("0.1/s", 0.1)]
)
def test_a_rate_is_per_second(text, per_s):
    assert parse_rate(text) == per_s


@pytest.mark.parametrize("text", ["0/s", "500", "2K/s", "2k", "2kHz", "-1/s", "1001M/s", "1e999/s"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(QuantityError):
        parse_rate(text)


@given(st.integers(0, DURATION_MAX_NS))
def test_every_duration_round_trips(ns):
    assert parse_duration(format_duration(ns)) == ns


@given(st.floats(1e-300, RATE_MAX, allow_subnormal=False))
def test_every_rate_round_trips(per_s):
    assert parse_rate(format_rate(per_s)) == per_s


@pytest.mark.parametrize(
    ("per_s", "text"), [(2e3, "2k/s"), (1.5e6, "1.5M/s"), (500.0, "500/s"), (1234.5, "1.2345k/s")]
)
def test_a_rate_is_written_as_one_would(per_s, text):
    assert format_rate(per_s) == text
