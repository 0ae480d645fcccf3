"""Kernel selection for `attention: auto`, by rule: nothing is timed, so every start of a model makes the same choice.

    attention mask                       on CUDA in half precision                                   elsewhere
    packed sequences                     flash, else xformers, if installed, working and supported   sdpa
    whole sequences, dense masks         sdpa: torch includes the flash-attn and cuDNN kernels       sdpa
    steps after a KV cache               sdpa, and the Triton kernels of Tessera                     sdpa

sdpa processes packed sequences one by one, with a few kernels each; flash-attn and xformers use one kernel for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .flash import MAX_HEAD_WIDTH
from .mask_types import PackedSequences

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for choosing it."""

    name: str
    reason: str


def choose_kernel(
    mask: PackedSequences | Tensor | None,
    device: str,
    dtype: torch.dtype,
    head_width: int,
    usable: Mapping[str, str],
) -> Choice:
    """Apply the rule to one call.

    Args:
        mask: the attention mask; only whether it is `PackedSequences` matters.
        device: "cuda", "cpu", ...
        head_width: E.
        usable: for each backend that needs a package, "ok" or why it cannot be used on this device.
    """
    if device != "cuda":
        return Choice("sdpa", f"flash-attn and xformers need a CUDA device, found '{device}'")
    if not isinstance(mask, PackedSequences):
        return Choice("sdpa", "torch's own kernels are used for sequences that are not packed")
    if dtype not in HALF:
        return Choice("sdpa", f"flash-attn computes in half precision, not in {str(dtype).removeprefix('torch.')}")
    refused = []
    for name in ("flash", "xformers"):
        reason = _unfit(name, mask, head_width) or usable.get(name, "not installed")
        if reason == "ok":
            return Choice(name, "; ".join(["one kernel for all packed rows", *refused]))
        refused.append(f"not {name}: {reason}")
    return Choice("sdpa", "; ".join(refused))


def _unfit(name: str, rows: PackedSequences, head_width: int) -> str:
    """Why a backend would fall back to sdpa for these packed sequences; empty if it would not."""
    if name == "flash" and rows.window is not None and any(rows.prefixes):
        return "its window does not support a prefix"
    if name == "xformers" and rows.window is not None:
        return "a window is not supported here"
    if name == "flash" and head_width > MAX_HEAD_WIDTH:
        return f"head width {head_width} is above its limit of {MAX_HEAD_WIDTH}"
    if name == "flash" and head_width % 8:
        return f"head width {head_width} is not a multiple of 8"
    return ""
