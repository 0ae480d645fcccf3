"""Names of modules in a config: a name stands for everything below it, and may have wildcards.

transformer.blocks.0        the first block, with all its layers and weights; not blocks.01 or blocks.10
transformer.blocks.*.ffn    the feed-forward of each block
head.weight                 one tensor
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from .schema import ConfigError


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, or the name of something that contains it. A dot at the end means nothing."""
    parts, pattern = name.split("."), pattern.rstrip(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def fits_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches."""
    return any(fits(name, pattern) for pattern in patterns)


def check_patterns(patterns: Sequence[str], names: Iterable[str], where: str) -> None:
    """Raise ConfigError, which begins with `where`, for a pattern that matches none of the names of tensors."""
    names = list(names)
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ConfigError(f"{where}: no module is called '{pattern}'; there are {tops} and their parts")
