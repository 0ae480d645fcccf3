"""Argument checks: numpy and torch numbers are converted to Python numbers, other types are rejected by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...configs.printable import one_line
from ...configs.schema import Config

MAX_VALUES = 4096
"""Larger arrays and tensors are not converted, and are therefore rejected as settings."""
MAX_SHOWN = 120
"""Maximum number of characters of a value in a message."""


def plain(value: Any) -> Any:
    """Convert numbers, arrays and tensors to Python numbers and lists, tuples to lists, and configs to mappings."""
    if isinstance(value, Tensor) and value.device.type == "meta":
        return value
    if hasattr(value, "tolist") and getattr(value, "size", None) is not None:
        count = value.numel() if isinstance(value, Tensor) else value.size
        return value.tolist() if count <= MAX_VALUES else value
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def setting(name: str, value: Any) -> Any:
    """A setting as plain YAML data. ValueError: the type cannot be a setting."""
    value = plain(value)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, text or a mapping, found {shown(value)}") from None
    return value


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Check for a whole number; ValueError: another type, or less than `least`."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f", at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}, found {shown(value)}")
    return value


def number(name: str, value: Any) -> float:
    """Check for a number; ValueError: another type."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, found {shown(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """Check for True or False; ValueError: another type."""
    value = plain(value)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, found {shown(value)}")
    return value


def function(name: str, value: Any) -> Callable | None:
    """Check for a callable or None; ValueError: another type."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function, or None, found {shown(value)}")
    return value


def tensor(name: str, value: Any, what: str) -> Tensor:
    """Check for a tensor with data; ValueError: another type, or a meta tensor. `what`: the expected value."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be {what}, found {shown(value)}; torch.as_tensor makes a tensor of an array")
    if value.device.type == "meta":
        raise ValueError(f"{name} must be {what}, found a tensor without values (on the device meta)")
    return value


def shown(value: Any) -> str:
    """A value as one short line for a message."""
    if isinstance(value, Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype} {list(value.shape)}"
    return one_line(repr(value), MAX_SHOWN)
