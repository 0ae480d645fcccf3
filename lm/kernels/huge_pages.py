"""Memory of huge pages (2 MiB instead of 4 KiB) for weights that every decode step reads, on Linux.

A step reads weights at the speed of memory, and with small pages the CPU must look up where each of them lies: one
thread of an Intel server read matrices of 336 MB of bfloat16 at 10.4 GB/s from small pages and at 12.6 from huge ones
(benchmarks/csm.py reads 9 GB a frame).
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

LEAST = 4 << 20
"""Bytes of a tensor from which on it is moved."""


def on_huge_pages(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor, copied to memory for which huge pages are asked; itself if it is small, or on other
    systems. The system decides whether it gives some."""
    if tensor.nbytes < LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    memory = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    # The tensor keeps the memory alive, and gives it back with itself.
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
