"""YAML of users: what configs need, and nothing that is slow, large or surprising."""

import time

import pytest

from tessera.configs.schema import ConfigError, parse_yaml
from tessera.configs.yaml_subset import MAX_CHARACTERS, MAX_VALUES, parse

HOSTILE = {
    "many keys": ("\n".join(f"k{number}: 1" for number in range(15_000)), "more than 10000 keys"),
    "deep lists": ("[" * 200_000, "nested deeper"),
    "deep mappings": ("{a: " * 60_000, "nested deeper"),
    "deep blocks": ("\n".join(" " * depth + "a:" for depth in range(600)), "nested deeper"),
    "explicit keys": ("? " * 100_000, "nested deeper"),
    "a long list": ("[" + "a," * 120_000, "more than 10000"),
    "no list's end": ("{" + "a " * 120_000, "expected ',' or '}'"),
    "binary": ("a: !!binary aGVsbG8=", "tags"),
    "set": ("a: !!set {b, c}", "tags"),
    "omap": ("a: !!omap [b: 1]", "tags"),
    "own tag": ("%TAG ! tag:x,2000:\n---\na: !b c", "tags"),
    "python": ("a: !!python/object/apply:os.system [ls]", "tags"),
    "anchor": ("a: &x 1", "anchors"),
    "alias": ("a: &x [1]\nb: *x", "anchors"),
    "merge": ("a: &x {b: 1}\nc: {<<: *x}", "anchors"),
    "digits": ("a: " + "9" * 5000, "5000 digits"),
    "64 bits": ("a: 9223372036854775808", "beyond 64 bits"),
    "negative 64 bits": ("a: -9223372036854775808", "beyond 64 bits"),
    "no digits": ("a: 0x_", "not a number"),
    "base 60": ("a: 1" + ":1" * 50_000 + ".0", "digits"),
    "list as key": ("[a, b]: 1", "expected text"),
    "twice": ("a: 1\na: 2", "'a' occurs twice"),
    "twice by another spelling": ("1: 1\n'1': 2", "'1' occurs twice"),
    "NUL": ("a: \x00", "#x0000"),
    "escaped NUL": ('a: "x\\0y"', "NUL"),
    "escaped NUL in a key": ('"a\\0": 1', "NUL"),
    "surrogate": ("a: \ud800", "#xd800"),
    "no character": ('a: "\\Uffffffff"', "not valid YAML"),
    "version": ("%YAML " + "9" * 5000 + ".1\n--- a", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 1", "single document"),
    "tab": ("\ta: 1", "cannot start"),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_in_one_line_and_soon(name):
    text, message = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"c\.yaml: not valid YAML: ") as caught:
        parse_yaml(text, "c.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - started < 5  # quadratic code took minutes


def test_text_beyond_the_limit_is_not_parsed():
    with pytest.raises(ConfigError, match=f"c.yaml: not valid YAML: {MAX_CHARACTERS + 1} characters, the limit is"):
        parse_yaml("#" * (MAX_CHARACTERS + 1), "c.yaml")


@pytest.mark.slow
def test_the_largest_allowed_text_is_soon_read():
    keys = "\n".join(f"key{number}: {{a: 1}}" for number in range(MAX_VALUES // 4 - 1))
    started = time.process_time()
    assert len(parse(keys)) == MAX_VALUES // 4 - 1
    assert len(parse("a: " + "x" * (MAX_CHARACTERS - 3))["a"]) == MAX_CHARACTERS - 3
    assert time.process_time() - started < 10


def test_values():
    text = "a: 1e-3\nb: yes\nc: 2024-01-01\nd: 2001-99-99\n1: 3\non: ~\n<<: {x: 1}\ne: 1_000\nf: .5\ng: -.inf\nh: '1'"
    assert parse(text) == {
        **{"a": 1e-3, "b": True, "c": "2024-01-01", "d": "2001-99-99", "1": 3, "on": None},
        **{"<<": {"x": 1}, "e": 1000, "f": 0.5, "g": float("-inf"), "h": "1"},
    }
    assert parse("") is None and parse("\ufeffa: [b, 2]") == {"a": ["b", 2]}
