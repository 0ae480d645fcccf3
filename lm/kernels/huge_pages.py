"""Memory of huge pages (2 MiB instead of 4 KiB) for weights that every decode step reads, on Linux.

A step reads weights at the speed of memory, and with small pages the CPU must look up again and again where they lie,
in a virtual machine at two levels. One thread of a virtual Intel server read 336 MB of packed bfloat16 matrices at
5.3 GB/s from small pages and at 9.9 from huge ones, int8 at 5.3 and 8.8, int4 at 4.3 and 5.5. Filling the memory takes
two to four times as long, once.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 2 << 20
"""Bytes of a huge page, and of the smallest tensor that is put there."""


def zeros_on_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU, in memory for which huge pages are asked unless they are few, or on other systems. The system
    decides whether it gives some, and when the tensor is written."""
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device="cpu")
    memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE, start, size // HUGE * HUGE)
    # The tensor keeps the memory alive, and gives it back with itself.
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=start).view(shape)


def on_huge_pages(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor, copied there; itself if it is small, or on other systems."""
    if tensor.nbytes < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    return zeros_on_huge_pages(tensor.shape, tensor.dtype).copy_(tensor)
