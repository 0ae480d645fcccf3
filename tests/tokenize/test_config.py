"""Configs: strict, unknown keys name their neighbour, YAML without its traps."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from tessera.configs.schema import Config, ConfigError, check_config, read_config


class Small(Config):
    kind: Literal["small"] = "small"
    width: int = 1


class Large(Config):
    kind: Literal["large"] = "large"
    heights: tuple[int, ...] = (1,)


class Whole(Config):
    part: Annotated[Small | Large, Field(discriminator="kind")]
    parts: tuple[Annotated[Small | Large, Field(discriminator="kind")], ...] = ()
    lr: float = 1.0


def read(tmp_path, text, sets=()):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return read_config(path, Whole, sets)


def test_lists_become_tuples_and_exponents_are_numbers(tmp_path):
    config = read(
        tmp_path, "part: {kind: large, heights: [1, 2]}\nlr: 1e-3\n", ["parts=[{kind: small}]", "parts.0.width=3"]
    )
    assert config.part.heights == (1, 2) and config.lr == 1e-3 and config.parts[0].width == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("part: {kind: small, widht: 3}", r"part.small.widht: unknown key; did you mean 'width'"),
        (
            "part: {kind: small}\nparts: [{kind: large, height: [3]}]",
            r"parts.0.large.height: unknown key; did you mean 'heights'",
        ),
        ("part: {kind: small}\nlearning: 3", r"learning: unknown key; known: lr, part, parts"),
        ("part: {kind: small, width: '3'}", r"part.small.width: .*\(found '3'\)"),
        ("part: {kind: null}", "part: kind null is unknown; known: large, small"),
        ("part: {kind: tiny}", "part: kind 'tiny' is unknown; known: large, small"),
        ("part: {kind: lrage}", "part: kind 'lrage' is unknown; did you mean 'large'"),
        ("part: &a {kind: small}\nparts: [*a]", "aliases"),
        ("lr: 1\nlr: 2", "'lr' occurs twice"),
        ("part: !!python/object:os.system {}", "not valid YAML"),
        ("- 1", "expected a mapping of settings, found a list"),
        ("", "expected a mapping of settings, found nothing"),
        ("x", "expected a mapping of settings, found 'x'"),
        ("part: [", "not valid YAML"),
    ],
)
def test_one_line_errors(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and str(tmp_path / "c.yaml") in str(caught.value)


@pytest.mark.parametrize("item", ["lr", "=3", "lr.x=3", "parts.0.width=1"])
def test_bad_overrides(tmp_path, item):
    with pytest.raises(ConfigError, match="--set"):
        read(tmp_path, "part: {kind: small}\nlr: 1\nparts: []", [item])


def test_plain_data_is_checked_too():
    with pytest.raises(ConfigError, match="index.json: part: Field required"):
        check_config({}, Whole, "index.json")


@pytest.mark.parametrize("sets", [["part.kind=small"], ["part.width=3", "part.kind=small"]])
def test_another_kind_leaves_the_fields_of_the_old_one_out(tmp_path, capsys, sets):
    config = read(tmp_path, "part: {kind: large, heights: [1, 2]}\nparts: []\n", sets)
    assert config.part == Small(width=3 if len(sets) == 2 else 1)
    assert capsys.readouterr().err == "note: part.heights of the file is ignored, kind 'small' has no such setting\n"
    listed = read(tmp_path, "part: {kind: small}\nparts: [{kind: large, heights: [1]}]\n", ["parts.0.kind=small"])
    assert listed.parts == (Small(),)


def test_another_kind_keeps_what_both_have_and_what_is_set(tmp_path, capsys):
    class Wide(Config):
        kind: Literal["wide"] = "wide"
        width: int = 1
        depth: int = 1

    class Both(Config):
        part: Annotated[Small | Wide, Field(discriminator="kind")]

    path = tmp_path / "c.yaml"
    path.write_text("part: {kind: wide, width: 7, depth: 2}\n")
    assert read_config(path, Both, ["part.kind=small"]).part == Small(width=7)
    assert "part.depth of the file is ignored" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="depth: unknown key; it belongs to kind 'wide', not to 'small'"):
        read_config(path, Both, ["part.kind=small", "part.depth=3"])
    with pytest.raises(ConfigError, match="kind 'samll' is unknown; did you mean 'small'"):
        read_config(path, Both, ["part.kind=samll"])


def test_a_field_of_another_kind_says_whose_it_is(tmp_path):
    with pytest.raises(ConfigError, match="heights: unknown key; it belongs to kind 'large', not to 'small'; set"):
        read(tmp_path, "part: {kind: small}\n", ["part.heights=[1]"])
