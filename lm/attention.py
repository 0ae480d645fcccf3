"""Attention backends: one function each, in a table. Only this file imports flash_attn and xformers, and only when they
are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionName = Literal["auto", "sdpa", "flash", "xformers"]

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None", bool], Tensor]
"""attend(queries [B, H, S, E], keys [B, G, M, E], values [B, G, M, E], mask, causal) -> [B, H, S, E].

mask: bool, broadcasts to [B, H, S, M], True where a key is seen; None: all. causal: query s sees keys 0..s (S = M, no
mask). H is a multiple of G: query head h reads key head h // (H / G).
"""


def sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """torch's scaled_dot_product_attention, which has kernels of its own for every device."""
    B, H, S, E = queries.shape
    G = keys.shape[1]
    if S == 1 and G < H and (mask is None or mask.shape[1:3] == (1, 1)):
        # One step: the heads that share a key are its queries, so that keys need not be copied for each.
        grouped = F.scaled_dot_product_attention(queries.reshape(B, G, H // G, E), keys, values, attn_mask=mask)
        return grouped.reshape(B, H, 1, E)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=G < H)


def flash(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """flash-attn for 16-bit tensors without a mask; its kernels know no other, so the rest goes to sdpa."""
    if mask is not None or queries.dtype not in (torch.float16, torch.bfloat16):
        return sdpa(queries, keys, values, mask, causal)
    from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
    return flash_attn_func(q, k, v, causal=causal).transpose(1, 2)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def xformers(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """xformers' memory-efficient attention; calls with a mask go to sdpa (xformers wants it padded and copied for every
    head)."""
    if mask is not None:
        return sdpa(queries, keys, values, mask, causal)
    from xformers.ops import LowerTriangularMask, memory_efficient_attention  # pyright: ignore[reportMissingImports]

    group = queries.shape[1] // keys.shape[1]
    q = queries.transpose(1, 2)
    k, v = (
        x.repeat_interleave(group, dim=1).transpose(1, 2) if group > 1 else x.transpose(1, 2) for x in (keys, values)
    )
    return memory_efficient_attention(q, k, v, attn_bias=LowerTriangularMask() if causal else None).transpose(1, 2)


BACKENDS: dict[str, Attend] = {"sdpa": sdpa, "flash": flash, "xformers": xformers}

PACKAGES = {"flash": "flash-attn", "xformers": "xformers"}
"""What to install for a backend."""


def choose_backend(name: AttentionName = "auto", device: torch.device | str = "cpu") -> Attend:
    """Give the attention function of that name, after it has worked on a tiny input.

    "auto" is sdpa.

    Raises:
        ImportError: the backend's package is not installed. ValueError: unknown name, or it does not work on this
            device.
    """
    if name == "auto":
        name = "sdpa"
    if name not in BACKENDS:
        raise ValueError(f"attention '{name}' is unknown; choose auto, {', '.join(BACKENDS)}")
    if name != "sdpa":
        probe(name, torch.device(device))
    return BACKENDS[name]


def probe(name: str, device: torch.device) -> None:
    """Run a backend on a tiny causal input in the dtype it is made for; raises as `choose_backend` says."""
    if name == "flash" and device.type != "cuda":
        _import("flash")
        raise ValueError(f"attention 'flash' runs on CUDA devices, not on '{device.type}'; use attention: sdpa")
    if name in PACKAGES:
        _import(name)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    x = torch.zeros(1, 2, 8, 32, dtype=dtype, device=device)
    try:
        out = BACKENDS[name](x, x, x, None, True)
    except Exception as error:  # a kernel that is not built for this device fails in ways of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"attention '{name}' does not work on '{device}' here ({reason}); use attention: sdpa"
        ) from error
    if out.shape != x.shape:
        raise ValueError(f"attention '{name}' gave shape {list(out.shape)} for {list(x.shape)}; use attention: sdpa")


def available_backends(device: torch.device | str = "cpu") -> dict[str, str]:
    """Each backend's name with "ok" or the reason why it cannot be used on this device."""
    report = {}
    for name in BACKENDS:
        try:
            probe(name, torch.device(device))
            report[name] = "ok"
        except (ImportError, ValueError) as error:
            report[name] = str(error)
    return report


def _import(name: str) -> None:
    try:
        if name == "flash":
            import flash_attn  # pyright: ignore[reportMissingImports]  # noqa: F401
        else:
            import xformers.ops  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"attention '{name}' needs the package {PACKAGES[name]} (pip install {PACKAGES[name]}); or use sdpa"
        ) from error
