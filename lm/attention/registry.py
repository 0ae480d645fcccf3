"""Attention backends: a table of functions, one per file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

from .auto import Choice, choose_kernel
from .flash import flash
from .flex import flex
from .mask_types import AttentionMask, PackedSequences
from .sdpa import sdpa
from .xformers_backend import xformers

AttentionName = Literal["auto", "sdpa", "flash", "xformers", "flex"]

Attend = Callable[[Tensor, Tensor, Tensor, AttentionMask, bool], Tensor]
"""attend(queries [B, H, S, E], keys [B, G, M, E], values [B, G, M, E], mask, causal) -> [B, H, S, E].

mask: bool, broadcasts to [B, H, S, M], True where a query attends to a key; or `PackedSequences` (then B is 1) or
`CacheLength` (mask_types.py); None: all keys. causal: query s attends to keys 0..s (S = M, no mask). H is a multiple of
G: query head h uses key head h // (H / G). A backend falls back to sdpa for calls that its kernels do not support.
"""

BACKENDS: dict[str, Attend] = {"sdpa": sdpa, "flash": flash, "xformers": xformers, "flex": flex}

PACKAGES = {"flash": ("flash-attn", "flash_attn"), "xformers": ("xformers", "xformers.ops")}
"""Package to install for a backend, and the module it imports."""

ON_CUDA = ("flash", "xformers", "flex")
"""Backends that are probed on CUDA if available, rather than on the CPU."""

WITH_CACHE_LENGTH = ("flash",)
"""Backends with a kernel for `CacheLength`; for the others a KV cache builds a dense mask."""


def choose_backend(name: AttentionName = "auto", device: torch.device | str | None = None) -> Attend:
    """Return the attention function with this name, after probing it on a tiny input.

    "auto" is sdpa without a CUDA device, and `auto` otherwise.

    Args:
        device: where to probe it; None: on CUDA if available and the backend is made for it.
    Raises:
        ImportError: the backend's package is not installed. ValueError: unknown name, or it does not work on this
            device.
    """
    if name == "auto":
        return auto if torch.cuda.is_available() else sdpa
    if name not in BACKENDS:
        raise ValueError(f"attention '{name}' is unknown; choose auto, {', '.join(BACKENDS)}")
    if name != "sdpa":
        if device is None:
            device = "cuda" if name in ON_CUDA and torch.cuda.is_available() else "cpu"
        probe(name, torch.device(device))
    return BACKENDS[name]


def auto(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, causal: bool) -> Tensor:
    """Implements `Attend` with the kernel chosen by `auto.choose_kernel`."""
    if not isinstance(mask, PackedSequences):
        return sdpa(queries, keys, values, mask, causal)
    device = queries.device
    chosen = choose_kernel(mask, device.type, queries.dtype, queries.shape[3], usable_packages(str(device)))
    return BACKENDS[chosen.name](queries, keys, values, mask, causal)


def explain(name: AttentionName, device: torch.device | str, dtype: torch.dtype, head: int, packed: bool) -> Choice:
    """The backend that a training run uses on a device, and the reason.

    Args:
        name: as configured.
        dtype: of the attention computation; under autocast, the autocast dtype.
        head: the head width.
        packed: whether sequences are packed.
    """
    if name != "auto":
        return Choice(name, "as configured")
    device = torch.device(device)
    rows = PackedSequences([1], device) if packed else None
    usable = usable_packages(str(device)) if packed and device.type == "cuda" else {}
    return choose_kernel(rows, device.type, dtype, head, usable)


@cache
def usable_packages(device: str) -> Mapping[str, str]:
    """For each backend that needs a package, "ok" or why it cannot be used on a device; probed once per process."""
    return {name: _state(name, torch.device(device)) for name in PACKAGES}


def probe(name: str, device: torch.device) -> None:
    """Run a backend on a tiny causal input in a suitable dtype; raises as `choose_backend`."""
    if name in PACKAGES:
        _check_installed(name)
    if name == "flash" and device.type != "cuda":
        raise ValueError(f"attention 'flash' runs on CUDA devices, not on '{device.type}'; use attention: sdpa")
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    x = torch.zeros(1, 2, 8, 32, dtype=dtype, device=device)
    try:
        out = BACKENDS[name](x, x, x, None, True)
    except Exception as error:  # a kernel that is not built for this device can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"attention '{name}' does not work on '{device}' here ({reason}); use attention: sdpa"
        ) from error
    if out.shape != x.shape:
        raise ValueError(
            f"attention '{name}' returned shape {list(out.shape)} for {list(x.shape)}; use attention: sdpa"
        )


def available_backends(device: torch.device | str = "cpu") -> dict[str, str]:
    """Each backend's name with "ok" or the reason it cannot be used on this device."""
    return {name: _state(name, torch.device(device)) for name in BACKENDS}


def _state(name: str, device: torch.device) -> str:
    try:
        probe(name, device)
        return "ok"
    except (ImportError, ValueError) as error:
        return str(error)


def _check_installed(name: str) -> None:
    package, module = PACKAGES[name]
    try:
        import_module(module)
    except ImportError as error:
        raise ImportError(
            f"attention '{name}' needs the package {package} (pip install {package}); or use sdpa"
        ) from error
