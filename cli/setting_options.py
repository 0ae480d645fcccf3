"""Command-line options derived from the fields of `GenerationConfig`: flag, type, range and help."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal

import typer

from ..configs.printable import printable
from ..configs.schema import check_config, parse_yaml
from ..lm.generation_config import GenerationConfig

MAX_NUMBER = 2**40
"""Largest absolute value of a number in a list; most settings have narrower ranges."""
SETTINGS = tuple(name for name in GenerationConfig.model_fields if name not in GenerationConfig.of_models)
"""The settings that are options."""


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    return GenerationConfig.model_json_schema()["properties"]


def _alternatives(name: str) -> list[dict[str, Any]]:
    """The JSON schemas of a setting's allowed types, without null."""
    schema = _schemas()[name]
    kinds = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return [kind for kind in kinds if kind.get("type") != "null"]


def setting_option(name: str) -> Any:
    """The annotation of a setting's option."""
    help_text = re.sub(r"\bnull\b", "not given", " ".join(_schemas()[name]["description"].split()))
    kinds = _alternatives(name)
    first = kinds[0]
    several = {kind.get("type") for kind in kinds[:2]} <= {"number", "integer", "array"}
    if len(kinds) > 1 and several and "one per codebook" not in help_text:
        help_text = f"{help_text} One value, or one per codebook: 3,2,1."
    if "enum" in first:
        return Annotated[Literal[tuple(first["enum"])] | None, typer.Option(help=help_text)]  # pyright: ignore
    if len(kinds) == 1 and first.get("type") in ("integer", "number"):
        low = first["exclusiveMinimum"] + 1 if "exclusiveMinimum" in first else first.get("minimum")
        limits: Any = {"min": low, "max": first.get("maximum")}
        kind: Any = int if first["type"] == "integer" else float
        return Annotated[kind | None, typer.Option(**limits, help=help_text)]
    return Annotated[str | None, typer.Option(help=help_text)]


def check_settings(typed: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, parsed from their options.

    Raises:
        typer.BadParameter: not a number where one is needed; names the option.
        ConfigError: out of range.
    """
    given = {name: _parse(name, value) for name, value in typed.items() if value is not None}
    check_config(given, GenerationConfig, "generate")
    return given


def _parse(name: str, value: Any) -> Any:
    kinds = [kind.get("type", "object") for kind in _alternatives(name)]
    option = f"--{name.replace('_', '-')}"
    if not isinstance(value, str) or "string" in kinds:
        return value
    if kinds[0] == "array":
        return as_list(numbers(value, option, whole=True, several="several")) if value.strip() else []
    if kinds[0] in ("number", "integer"):
        is_mapping = "object" in kinds and value.lstrip().startswith("{")
        return parse_yaml(value, option) if is_mapping else numbers(value, option, whole=kinds[0] == "integer")
    parse_yaml(value, option)
    return value  # the name of a kind, or its settings; "null" stays text: None would stand for the model's default


def as_list(value: Any) -> list:
    """Wrap a single value in a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def numbers(
    text: str | None, option: str, whole: bool = False, several: str = "one per codebook"
) -> float | list | None:
    """Parse "0.9" or "0.9,0.8,0.7"; typer.BadParameter names the option.

    Args:
        whole: whole numbers only.
        several: what a list holds, for the message.
    """
    if text is None:
        return None
    try:
        values = [int(part) if whole else float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or any(not abs(value) <= MAX_NUMBER for value in values):
        wanted = "a whole number" if whole else "a number"
        found = f"found '{printable(text, 100)}'"
        raise typer.BadParameter(f"{option} takes {wanted}, or {several} with commas; {found}") from None
    return values[0] if len(values) == 1 else values
