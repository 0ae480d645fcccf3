"""`--set a.kind=x`: drop the fields of the file that only the old kind has."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from .printable import say


def drop_old_fields(
    data: Any, before: Any, sets: Sequence[str], fields_of: Callable[[Sequence[str | int]], Collection[str]]
) -> None:
    """If an override changed the kind of a mapping, remove the fields that only the old kind has; notes it on stderr.

    Args:
        data: the config with the overrides, modified in place. before: the config in the file.
        sets: the overrides "a.b=c". Fields set by an override are kept, so that mistakes in them are errors.
        fields_of: names of the fields at a location, whose last part is the new kind; empty if the kind is unknown.
    """
    paths = [item.partition("=")[0].split(".") for item in sets]
    for path in paths:
        *place, last = path
        old, new = _at(before, place), _at(data, place)
        if last != "kind" or not isinstance(old, dict) or not isinstance(new, dict) or old.get("kind") == new["kind"]:
            continue
        known = fields_of([*(int(part) if part.isdigit() else part for part in place), str(new["kind"])])
        given = {other[len(place)] for other in paths if other[: len(place)] == place and len(other) > len(place)}
        for name in [name for name in new if known and name not in known and name not in given]:
            del new[name]
            if os.environ.get("RANK", "0") == "0":
                ignored = f"{'.'.join([*place, name])} of the file is ignored"
                say(f"note: {ignored}, kind '{new['kind']}' has no such setting")


def _at(data: Any, place: Sequence[str]) -> Any:
    for key in place:
        if isinstance(data, list) and key.isdigit() and int(key) < len(data):
            data = data[int(key)]
        elif isinstance(data, dict):
            data = data.get(key)
        else:
            return None
    return data
