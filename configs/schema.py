"""Configuration: a frozen, strict pydantic base class, and the functions that read YAML files into config objects.

Every mistake in a file raises a one-line `ConfigError`: file, path of the field, what was found, what to do.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, ValidationError, model_serializer

from . import yaml_subset
from .override import drop_old_fields
from .printable import one_line, printable

MAX_CONFIG_BYTES = 1 << 20
MAX_COMPARED, MAX_SHOWN = 5000, 100
"""Limits on the known names that an unknown name is compared with, and on those shown in the message."""


class ConfigError(ValueError):
    """An invalid configuration; the message is one line for the user."""


class Config(BaseModel):
    """Base class of all configs: unknown keys are errors that suggest the nearest known key, values are not coerced,
    numbers must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def of_earlier_files(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The settings of a file, as this version names them. ConfigError: an earlier name beside its successor."""
        return data


class FingerprintedConfig(Config):
    """Config that is part of fingerprints: fields added later are not serialized at their default value.

    This preserves the fingerprints of everything made before the fields existed.
    """

    added: ClassVar[frozenset[str]] = frozenset()
    """Names of those fields."""

    @model_serializer(mode="wrap")
    def _without_unused_additions(self, handler):
        fields = type(self).model_fields
        unused = {name for name in self.added if getattr(self, name) == fields[name].get_default()}
        return {name: value for name, value in handler(self).items() if name not in unused}


def kind_or(default: str) -> Discriminator:
    """Discriminator for a union of configs by `kind`; in old files without it, `default` is assumed."""

    def kind(value: Any) -> str:
        return str(value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default))

    return Discriminator(kind)


LayerCount = Annotated[int, Field(ge=1, le=4096)]
"""Number of modules that are built one by one."""
BatchSize = Annotated[int, Field(ge=1, le=1 << 20)]
StepCount = Annotated[int, Field(ge=1, le=10**10)]
LayerCountOrNone = Annotated[int, Field(ge=0, le=4096)]

C = TypeVar("C", bound=Config)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that was probably meant: "did you mean 'width'?" or "known: a, b"."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known[:MAX_COMPARED], n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    more = f", and {len(known) - MAX_SHOWN} more" if len(known) > MAX_SHOWN else ""
    return f"known: {', '.join(known[:MAX_SHOWN])}{more}"


def read_config(path: str | Path, kind: type[C], sets: Sequence[str] = ()) -> C:
    """Read a YAML file into a config object.

    Args:
        path: the YAML file.
        kind: the Config class to build.
        sets: overrides "a.b=c"; the value is YAML, list items are indexed by number ("conditions.0.dropout"). An
            override of a `kind` removes the fields of the file that the new kind does not have.
    Raises:
        ConfigError: invalid YAML, unknown keys, wrong types or values. FileNotFoundError: no such file.
    """
    return build_config(read_yaml(path), kind, sets, str(path))


def build_config(
    data: Any, kind: type[C], sets: Sequence[str], where: str, resolve: Callable[[Any], Any] | None = None
) -> C:
    """`read_config` for data already read from a file; `data` is modified.

    Args:
        where: prefix of error messages.
        resolve: function applied to the data after the overrides and before validation.
    """
    before = copy.deepcopy(data)
    data = override(data, sets)
    drop_old_fields(data, before, sets, lambda place: _fields_at(kind, place))
    return check_config(data if resolve is None else resolve(data), kind, where)


def check_config(data: Any, kind: type[C], where: str = "config") -> C:
    """Validate plain data (as read from YAML or JSON) as a `kind`; ConfigError names the first bad field."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, found {_kind_of(data)}")
    try:
        data = kind.of_earlier_files(data)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        # Through JSON: strict mode then accepts lists for tuples and strings for enums, which files cannot express.
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise _refusal(error, kind, data, where) from None


def make_config(kind: type[C], where: str, **fields: Any) -> C:
    """Build a `kind` from fields that come from another file; ConfigError names that file and the first bad field."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise _refusal(error, kind, fields, where) from None


def _kind_of(data: Any) -> str:
    """Describe a value that is not a mapping in YAML terms."""
    return "nothing" if data is None else "a list" if isinstance(data, list) else _as_yaml(data)


def _refusal(error: ValidationError, kind: type[Config], data: Any, where: str) -> ConfigError:
    """Convert pydantic's errors to one line about the first."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "missing":  # an unknown key beside it is more likely its name, spelled wrong
        beside = (one for one in errors if one["type"] == "extra_forbidden" and one["loc"][:-1] == first["loc"][:-1])
        first = next(beside, first)
    field = ".".join(_named(first["loc"], data)) or "(top)"
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{where}: {field}: unknown key; {_nearest_field(kind, first['loc'])}")
    if first["type"] == "union_tag_invalid":
        tags = first.get("ctx", {})
        tag, known = tags["tag"], tags["expected_tags"].replace("'", "").split(", ")
        given = first["input"].get("kind") if isinstance(first.get("input"), dict) else tag
        shown = f"'{tag}'" if isinstance(given, str) else one_line(json.dumps(given, default=str), 80)
        return ConfigError(f"{where}: {field}: kind {shown} is unknown; {nearest_name(tag, known)}")
    message = _PLAIN.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    if first["type"] in ("too_short", "string_too_short") and first["ctx"]["min_length"] == 1:  # pyright: ignore
        message = "is empty; give at least one"
    return ConfigError(f"{where}: {field}: {message}{_found(first)}")


def _named(location: Sequence[str | int], data: Any) -> Iterator[str]:
    """The parts of a location, without implied kinds that the file does not contain and without pydantic's names for
    the alternatives of a value or list."""
    for part in location:
        if not isinstance(data, dict) and isinstance(part, str) and _ALTERNATIVE.fullmatch(part):
            continue
        if isinstance(data, dict) and part not in data and "kind" not in data and part != location[-1]:
            continue
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None  # the entry itself may be missing
        yield str(part)


_ALTERNATIVE = re.compile(r"(constrained-)?(float|int|str)|tuple\[.*|function-.*")
"""pydantic's names for the alternatives of a value that may be one number or several."""


_PLAIN = {
    "union_tag_not_found": "kind is missing; add it",
    "tuple_type": "Input should be a list",
    "list_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
    "model_attributes_type": "Input should be a mapping",
}
"""Replacements for messages that pydantic words in terms of Python or JSON."""


def _found(error: Any) -> str:
    value = error.get("input")
    return (
        ""
        if isinstance(value, dict | list) or error["type"] == "value_error"
        else f" (found {printable(_as_yaml(value), 100)})"
    )


def _as_yaml(value: Any) -> str:
    """A scalar in YAML notation."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _nearest_field(kind: type[BaseModel], location: Sequence[str | int]) -> str:
    """Suggest what an unknown key at a location may be: a field of another kind, or one with a similar name."""
    *place, name = location
    others = [tag for tag in _kinds_at(kind, place[:-1]) if name in _fields_at(kind, [*place[:-1], tag])]
    if others and str(place[-1]) in _kinds_at(kind, place[:-1]):
        above = ".".join(map(str, place[:-1]))
        return f"it belongs to kind {' or '.join(map(repr, others))}, not to '{place[-1]}'; set {above}.kind as well"
    return nearest_name(str(name), _fields_at(kind, place))


def _kinds_at(annotation: Any, location: Sequence[str | int]) -> list[str]:
    """Kinds of the union at a location; empty if there is no union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if location:
            inner = fields[str(location[0])].annotation if location[0] in fields else None
            return _kinds_at(inner, location[1:])
        return [str(fields["kind"].default)] if "kind" in fields else []
    inner = location[1:] if location and isinstance(location[0], int) else location
    return [tag for part in get_args(annotation) for tag in _kinds_at(part, inner)]


def _fields_at(annotation: Any, location: Sequence[str | int]) -> set[str]:
    """Names of the fields allowed where pydantic reports an error; follows its location through unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if not location:
            return set(fields)
        if location[0] in fields:
            return _fields_at(fields[str(location[0])].annotation, location[1:])
        # In a union of kinds, the location has the name of the kind between the field and its fields.
        tag = fields.get("kind")
        return _fields_at(annotation, location[1:]) if tag is not None and tag.default == location[0] else set()
    inner = location[1:] if location and isinstance(location[0], int) else location
    return set().union(*(_fields_at(part, inner) for part in get_args(annotation)))


def override(data: Any, sets: Sequence[str]) -> Any:
    """Apply "a.b=c" overrides to plain data, in place; returns it."""
    for item in sets:
        name, sign, text = item.partition("=")
        if not sign or not name:
            raise ConfigError(f"--set {item}: expected key.path=value, for instance --set train.steps=100")
        keys = name.split(".")
        target: Any = data
        for depth, key in enumerate(keys):
            place: Any = key
            above = ".".join(keys[:depth])
            if isinstance(target, list):
                if not key.isdigit() or int(key) >= len(target):
                    raise ConfigError(f"--set {item}: '{key}' is not an index of '{above}', a list of {len(target)}")
                place = int(key)
            elif not isinstance(target, dict):
                raise ConfigError(f"--set {item}: '{above}' is a single value without a field '{key}'")
            if depth == len(keys) - 1:
                target[place] = parse_yaml(text, f"--set {item}")
            elif isinstance(target, dict):
                target = target.setdefault(place, {})
            else:
                target = target[place]
    return data


def read_yaml(path: str | Path) -> Any:
    """Parse a YAML file of at most 1 MB (see `parse_yaml`)."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a YAML file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    with open(path, "rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes is too large for a config (limit {MAX_CONFIG_BYTES})")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str = "") -> Any:
    """Parse YAML safely: no tags, aliases or duplicate keys, limited size and depth (yaml_subset.py).

    Args:
        where: prefix of the error message; "": none, for validators, whose caller names the field.
    """
    try:
        return yaml_subset.parse(text)
    except ValueError as error:
        raise ConfigError(f"{where}{': ' if where else ''}not valid YAML: {error}") from None
