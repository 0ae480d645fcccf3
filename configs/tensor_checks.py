"""Names and shapes of the tensors in a file, compared with what a config asks for."""

from __future__ import annotations

from pathlib import Path

from .files import read_header


class WeightsError(ValueError):
    """The weights are not those of the config: tensors missing, left over, or of another shape."""


def check_tensors(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], path: Path) -> None:
    """Raise WeightsError unless a file's tensors have exactly the names and shapes the config asks for."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        raise WeightsError(f"{path}: {len(missing)} tensors of the config are missing, first '{missing[0]}'")
    if extra:
        raise WeightsError(f"{path}: {len(extra)} tensors do not belong to the config, first '{extra[0]}'")
    for name in sorted(wanted):
        if found[name] != wanted[name]:
            raise WeightsError(
                f"{path}: tensor '{name}' is {list(found[name])}, the config asks for {list(wanted[name])}"
            )


def header_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes from the header alone, after its checks."""
    return {name: entry.shape for name, entry in read_header(path).tensors.items()}
