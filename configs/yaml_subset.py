"""The YAML subset of config files: mappings with string keys, lists, and plain values.

Tags, anchors, aliases (they can expand to gigabytes) and duplicate keys are rejected. Dates of YAML 1.1 stay strings,
and 1e-3 is a number. Depth and size are limited, so rejecting a text takes at most a second.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_CHARACTERS = 256 << 10
MAX_VALUES = 10_000
"""Limit on the keys and values of a document."""
MAX_DEPTH = 40
MAX_INTEGER = 2**63 - 1
MAX_DIGITS = 100
"""Limit on the digits of a number."""


def parse(text: str) -> Any:
    """Parse to dictionaries with str keys, lists, str, int, float, bool and None; raises a one-line ValueError."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters, the limit is {MAX_CHARACTERS}")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\Uffffffff" is one of the latter two
        raise ValueError(" ".join(str(error).split())) from None


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str):
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        where = f"line {event.start_mark.line + 1}" if event is not None else "the end"
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*name) are not allowed in configs; write the value out, {where}")
        if getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"anchors and aliases (&name, *name) are not allowed in configs, {where}")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise yaml.YAMLError(f"tags ({tag[:40]}) are not allowed in configs; write the plain value, {where}")
        self.count += 1
        if self.count > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} keys and values, {where}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels, {where}")
        if "\0" in (getattr(event, "value", None) or ""):
            raise yaml.YAMLError(f"text with a NUL character, which is not allowed in file names, {where}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        found = {}
        for key, value in node.value:
            where = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is a list or a mapping, expected text, {where}")
            if key.value in found:
                raise yaml.YAMLError(f"the key '{key.value}' occurs twice, {where}")
            found[key.value] = self.construct_object(value, deep=True)
        return found

    def construct_number(self, node):
        where = f"line {node.start_mark.line + 1}"
        if len(node.value) > MAX_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value)} digits, {where}")
        try:
            number = (self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float)(node)
        except (ValueError, OverflowError):
            raise yaml.YAMLError(f"'{node.value}' is not a number, {where}") from None
        if isinstance(number, int) and abs(number) > MAX_INTEGER:
            raise yaml.YAMLError(f"{node.value} is beyond 64 bits, {where}")
        return number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
# YAML 1.1 has more value types than configs need (dates, <<, =); they stay strings.
_KINDS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KINDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 parses 1e-3 as a string; YAML 1.2 parses it as a float.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$|^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)$"),
    list("-+0123456789."),
)
