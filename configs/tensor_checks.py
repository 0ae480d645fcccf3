"""Comparison of the tensor names and shapes in a file with those that a config requires."""

from __future__ import annotations

from pathlib import Path


class WeightsError(ValueError):
    """The weights do not match the config: tensors are missing, unexpected, or have another shape."""


def check_tensors(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], path: Path) -> None:
    """Raise WeightsError unless the tensors of a file have exactly the names and shapes the config requires."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        raise WeightsError(f"{path}: {len(missing)} tensors that the config asks for are missing, first '{missing[0]}'")
    if extra:
        raise WeightsError(f"{path}: {len(extra)} tensors do not belong to the config, first '{extra[0]}'")
    for name in sorted(wanted):
        if found[name] != wanted[name]:
            raise WeightsError(
                f"{path}: tensor '{name}' is {list(found[name])}, the config asks for {list(wanted[name])}"
            )
