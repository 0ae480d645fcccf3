"""Whether a public layout can represent a tokenizer: comparison with the config that it would be read back as."""

from __future__ import annotations

from typing import Any

from ...configs.schema import FingerprintedConfig
from .tensor_map import CannotWrite

TRAINING_ONLY = {
    *("name", "chunk", "commitment", "decay", "update", "inner_steps", "inner_rate", "index_temperature"),
    *("codebook_weight", "entropy", "moments", "revive_below", "revive", "kmeans_init"),
    *("level_dropout", "level_choices", "last_frame", "level"),
}
"""Settings that do not change what a frozen tokenizer computes of whole frames."""
SAME = {"norm": {"weight": "none"}}
"""Values that compute the same once a tokenizer is frozen."""


def check_tokenizer_layout(layout: str, found: FingerprintedConfig, expected: FingerprintedConfig) -> None:
    """Raise CannotWrite unless two configs describe the same frozen computation; names the first difference."""
    different = _difference(found.model_dump(mode="json"), expected.model_dump(mode="json"), "")
    if different is not None:
        name, ours, theirs = different
        raise CannotWrite(
            f"{layout}'s layout does not support this tokenizer's {name}: found {ours!r}, it needs {theirs!r}"
        )


def _difference(found: Any, expected: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys(), key=lambda key: (key != "kind", key)):
            if key not in TRAINING_ONLY:
                inner = f"{name}.{key}" if name else key
                different = _difference(found.get(key), expected.get(key), inner)
                if different is not None:
                    return different
        return None
    same: dict[Any, Any] = SAME.get(name.rpartition(".")[2], {})
    if found == expected or (same and same.get(found, found) == same.get(expected, expected)):
        return None
    return name, found, expected
