"""Which kernel attention takes where a config names none (`attention: auto`), by rule: nothing is timed, so every start
of a model chooses alike.

    what queries see                     on CUDA in half precision                                   elsewhere
    rows laid end to end (packed)        flash, else xformers, where installed, working and fit      sdpa
    whole sequences, dense masks         sdpa: torch has the kernels of flash-attn and cuDNN itself  sdpa
    steps behind a cache                 sdpa, and the Triton kernels of Tessera                      sdpa

sdpa takes packed rows one by one, a few kernels each; flash-attn and xformers have one kernel for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .flash import LARGEST_HEAD
from .mask_types import PackedSequences

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """A backend and why it is taken."""

    name: str
    because: str


def choose_kernel(
    sight: PackedSequences | Tensor | None,
    device: str,
    dtype: torch.dtype,
    head_width: int,
    usable: Mapping[str, str],
) -> Choice:
    """The rule, for one call.

    Args:
        sight: what queries see; of a tensor or a count only that it is no `PackedSequences` matters.
        device: "cuda", "cpu", ...
        head_width: E.
        usable: of the backends that need a package "ok", or why they cannot be used on this device.
    """
    if device != "cuda":
        return Choice("sdpa", f"flash-attn and xformers are made for CUDA, not for '{device}'")
    if not isinstance(sight, PackedSequences):
        return Choice("sdpa", "torch has kernels of its own for sequences that are not packed")
    if dtype not in HALF:
        return Choice("sdpa", f"flash-attn computes in half precision, not in {str(dtype).removeprefix('torch.')}")
    refused = []
    for name in ("flash", "xformers"):
        reason = _unfit(name, sight, head_width) or usable.get(name, "not installed")
        if reason == "ok":
            return Choice(name, "; ".join(["one kernel for all packed rows", *refused]))
        refused.append(f"not {name}: {reason}")
    return Choice("sdpa", "; ".join(refused))


def _unfit(name: str, rows: PackedSequences, head_width: int) -> str:
    """Why a backend would hand these rows to sdpa; empty where it would not."""
    if name == "flash" and rows.window is not None and any(rows.prefixes):
        return "its window knows no prefix"
    if name == "xformers" and rows.window is not None:
        return "it takes no window here"
    if name == "flash" and head_width > LARGEST_HEAD:
        return f"a head of {head_width} is wider than its {LARGEST_HEAD}"
    if name == "flash" and head_width % 8:
        return f"a head of {head_width} is no multiple of 8"
    return ""
