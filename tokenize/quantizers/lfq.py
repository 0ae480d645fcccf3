"""Lookup-free quantization: the signs of a few dimensions. Source: MAGVIT-2, arXiv:2310.05737."""

from __future__ import annotations

from typing import Literal

from .binary import BinaryConfig, BinaryQuantizer


class LFQConfig(BinaryConfig):
    """Signs, of latents as they are; bits have values of -1 and 1."""

    kind: Literal["lfq"] = "lfq"


class LookupFreeQuantizer(BinaryQuantizer):
    """See the head of this file. Q = 1."""
