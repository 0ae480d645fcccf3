"""Arguments of a call, checked by name: numbers of numpy and torch become Python's, other types are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...configs.printable import one_line
from ...configs.schema import Config
from ...lm.generation_config import GuidanceConfig

MAX_VALUES = 4096
"""A larger array or tensor is not a setting; it stays what it is, and is refused."""
MAX_SHOWN = 120
"""Characters of a value in a message."""


def plain(value: Any) -> Any:
    """The value with numbers, arrays and tensors as Python's numbers and lists, tuples as lists."""
    if isinstance(value, Tensor) and value.device.type == "meta":
        return value
    if hasattr(value, "tolist") and getattr(value, "size", None) is not None:
        count = value.numel() if isinstance(value, Tensor) else value.size
        return value.tolist() if count <= MAX_VALUES else value
    if isinstance(value, GuidanceConfig):
        return value.model_dump(mode="json")
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def setting(name: str, value: Any) -> Any:
    """A setting as YAML would say it. ValueError: it is of a type that a setting never has."""
    value = plain(value)
    if isinstance(value, Config):
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, text or a mapping, found {shown(value)}") from None
    return value


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number; ValueError: another type, or less than `least`."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f", at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}, found {shown(value)}")
    return value


def number(name: str, value: Any) -> float:
    """A number; ValueError: another type."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, found {shown(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False; ValueError: another type."""
    value = plain(value)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, found {shown(value)}")
    return value


def function(name: str, value: Any) -> Callable | None:
    """Something that can be called, or None; ValueError: another type."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function, or None, found {shown(value)}")
    return value


def tensor(name: str, value: Any, what: str) -> Tensor:
    """A tensor that holds values; ValueError: another type. `what`: what it should be."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be {what}, found {shown(value)}; torch.as_tensor makes a tensor of an array")
    if value.device.type == "meta":
        raise ValueError(f"{name} must be {what}, found a tensor without values (of the device meta)")
    return value


def shown(value: Any) -> str:
    """A value in a message: one short line."""
    if isinstance(value, Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype} {list(value.shape)}"
    return one_line(repr(value), MAX_SHOWN)
