"""Reference of the YAML keys, written from the pydantic schemas: `python docs/tools/config_reference.py train`."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections import deque
from functools import cache
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOTS = {
    "train": ("tessera train", "tessera.train.lm.config.TrainConfig"),
    "tokenizer": ("tessera tokenizer train", "tessera.train.tokenizer.config.TokenizerTrainConfig"),
    "align": ("tessera align", "tessera.train.align.config.AlignConfig"),
    "shards": ("tessera shards", "tessera.tokenize.data.shards_config.ShardsConfig"),
    "coder": ("tessera tokenizer coder", "tessera.train.entropy_coder.CoderTrainConfig"),
}
"""Page -> command whose YAML file it describes, and the config class of that file."""

UNITS = {
    "seconds": "seconds",
    "frames": "frames",
    "steps": "steps",
    "every": "steps",
    "sample_rate": "Hz",
    "hop": "samples",
    "bytes": "bytes",
    "pixels": "pixels",
    "characters": "characters",
    "height": "pixels",
    "bits": "bits",
}
"""Last words of a key -> unit, unless the help names one."""


def config_page(name: str) -> str:
    """Markdown of one page: a table of keys for the file, then one section for each group of settings in it."""
    command, path = ROOTS[name]
    module, kind = path.rsplit(".", 1)
    root = getattr(import_module(module), kind)
    lines = [
        f"# Keys of `{command}`",
        "",
        f"Every key of the YAML file that `{command}` reads. This page is generated from the schemas. A key without a",
        "default is required. `--set a.b=c` overrides one key; an unknown key is an error that names the nearest one.",
        "",
        *table(root, "", queue := deque(), known := {}),
    ]
    while queue:
        path, configs = queue.popleft()
        lines += section(path, configs, queue, known)
    return "\n".join(lines) + "\n"


def section(path: str, configs: tuple[type[BaseModel], ...], queue: deque, known: dict) -> list[str]:
    """The settings at a path: one table, or one for each kind."""
    lines = [f"## `{path}` {{#{anchor(path)}}}", ""]
    if len(configs) == 1:
        return [*lines, *description(configs[0]), *table(configs[0], path, queue, known)]
    lines += ["One of these, selected by `kind`:", ""]
    for config in configs:
        kind = kind_of(config)
        lines += [f"### `{path}`: `kind: {kind}` {{#{anchor(path)}-{kind}}}", ""]
        lines += [*description(config), *table(config, path, queue, known)]
    return lines


def _help_of(config: type[BaseModel], key: str) -> str:
    """The docstring below a field, in the class that declares it."""
    owner = next(owner for owner in config.__mro__ if key in vars(owner).get("__annotations__", {}))
    return _docstrings(owner).get(key, "")


@cache
def _docstrings(owner: type) -> dict[str, str]:
    """Field -> the docstring below it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def description(config: type[BaseModel]) -> list[str]:
    """The docstring of a config class."""
    text = (config.__doc__ or "").strip()
    return [*(line.strip() for line in text.splitlines()), ""] if text else []


def table(config: type[BaseModel], path: str, queue: deque, known: dict) -> list[str]:
    """One row for each key; nested configs that are not described yet are added to the queue."""
    lines = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    for key, field in config.model_fields.items():
        configs = configs_in(field.annotation)
        link = ""
        if configs:
            at = f"{path}.{field.alias or key}" if path else key
            if configs not in known:
                known[configs] = at
                queue.append((at, configs))
            link = f" See [`{known[configs]}`](#{anchor(known[configs])})."
        text = " ".join(_help_of(config, key).split())
        cells = (f"`{field.alias or key}`", type_of(field), default_of(field), unit_of(key, text), escape(text) + link)
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def anchor(path: str) -> str:
    return path.replace(".", "-").replace("_", "-")


def kind_of(config: type[BaseModel]) -> str:
    """The value of `kind` that selects a config."""
    field = config.model_fields.get("kind")
    return str(field.default) if field is not None else config.__name__


def configs_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """All config classes that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) is Literal:
        return ()
    found: dict[type[BaseModel], None] = {}
    for part in get_args(annotation):
        found |= dict.fromkeys(configs_in(part))
    return tuple(found)


def type_of(field: FieldInfo) -> str:
    """The type in words of YAML, with its range."""
    words = words_of(field.annotation)
    limits = limits_of(field.metadata)
    return escape(f"{words} {limits}".strip())


def words_of(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is typing.Annotated:
        return f"{words_of(parts[0])} {limits_of(annotation.__metadata__)}".strip()
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(words_of, parts)))
    if origin in (tuple, list):
        inner = [part for part in parts if part is not Ellipsis]
        return f"list of {words_of(inner[0])}" if len(inner) < 2 else f"list of {len(inner)}: {words_of(inner[0])}"
    if origin is dict:
        return f"mapping of names to {words_of(parts[1])}"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(annotation, "value")


def limits_of(metadata: Any) -> str:
    """Ranges of a number or a length: ">= 0, < 1"."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}
    found = []
    for entry in metadata:
        inner = getattr(entry, "metadata", None)
        if isinstance(inner, list):
            found.append(limits_of(inner))
        found += [
            f"{sign} {plain(limit)}"
            for name, sign in signs.items()
            if (limit := getattr(entry, name, None)) is not None
        ]
    return ", ".join(part for part in found if part)


def plain(number: float) -> str:
    """A limit, powers of two as such."""
    if isinstance(number, int) and number >= 1 << 16 and number & (number - 1) == 0:
        return f"2^{number.bit_length() - 1}"
    return f"{number:g}" if isinstance(number, float) else str(number)


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"`{in_yaml(field.get_default(call_default_factory=True))}`"


def in_yaml(value: Any) -> str:
    """A default as it would be written in the file, on one line."""
    if isinstance(value, BaseModel):
        given = value.model_dump(mode="json", exclude_defaults=True)
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return in_yaml(kind | given)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def unit_of(key: str, text: str) -> str:
    """The unit that the help names, or the one that the key's last words imply."""
    named = re.match(r"(Samples|Frames|Steps|Positions|Pixels|Bytes|Seconds|Hz)\b", text) or re.search(
        r"\bin (samples|frames|steps|pixels|bytes|seconds|Hz|nats|dB|characters)\b", text
    )
    if named:
        return named[1].lower().replace("hz", "Hz")
    return next((unit for words, unit in UNITS.items() if f"_{key}".endswith(f"_{words}")), "")


def escape(text: str) -> str:
    """Text in a cell of a Markdown table; brackets would read as links."""
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


if __name__ == "__main__":
    print(config_page(sys.argv[1]))
