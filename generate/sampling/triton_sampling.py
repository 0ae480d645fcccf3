"""Sampling on a GPU in two kernels (triton_kernels.py), if Triton is available."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...lm.kernels.triton_fused_block import supports_device

if TYPE_CHECKING:
    from .filter_tensors import Filters

MAX_VALUES = 1 << 14
"""Maximum number of values per program; larger vocabularies are sampled with torch operations."""


def supports(x: Tensor) -> bool:
    """Whether the kernels support this tensor's device."""
    return supports_device(x) and not torch.compiler.is_compiling()


def uniform(seeds: Tensor, step: Tensor, num_codebooks: int, draw: int) -> Tensor:
    """`counter_rng.uniform`, bit for bit."""
    from .triton_kernels import uniform_kernel

    numbers = torch.empty(len(seeds), num_codebooks, dtype=torch.float64, device=seeds.device)
    block = 1 << max(0, num_codebooks - 1).bit_length()
    kernel: Any = uniform_kernel
    kernel[(len(seeds),)](seeds, step, numbers, draw, num_codebooks, BLOCK=block, num_warps=1)
    return numbers


def sample(logits: Tensor, uniforms: Tensor, filters: Filters) -> Tensor:
    """`filters.sample` for filters without top-p, equal except for the rounding of sums."""
    from .triton_kernels import sample_kernel

    B, n, V = logits.shape
    ids = torch.empty(B, n, dtype=torch.long, device=logits.device)
    kernel: Any = sample_kernel
    kernel[(B * n,)](
        logits.contiguous(), uniforms.contiguous(), ids, filters.temperature, filters.greedy.view(torch.uint8),
        filters.top_k, filters.min_p, V, n, LIMITED=bool(filters.largest_k), BLOCK=1 << max(0, V - 1).bit_length(),
        num_warps=8,
    )  # fmt: skip
    return ids
