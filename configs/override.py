"""`--set a.kind=x`: fields of the kind that stood in the file do not belong to the new one, and are left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from .printable import say


def drop_old_fields(
    data: Any, before: Any, sets: Sequence[str], fields_of: Callable[[Sequence[str | int]], Collection[str]]
) -> None:
    """Where an override gave a mapping another kind, remove the fields that only the old kind has; says so on stderr.

    Args:
        data: the config with the overrides, changed in place. before: as it stands in the file.
        sets: the overrides "a.b=c". A field that is set by one of them is kept, so that a mistake in it is an error.
        fields_of: names of the fields at a place, whose last part is the new kind; none where there is no such kind.
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
                said = f"{'.'.join([*place, name])} of the file is left out"
                say(f"note: {said}, kind '{new['kind']}' has no such setting")


def _at(data: Any, place: Sequence[str]) -> Any:
    for key in place:
        if isinstance(data, list) and key.isdigit() and int(key) < len(data):
            data = data[int(key)]
        elif isinstance(data, dict):
            data = data.get(key)
        else:
            return None
    return data
