"""Matrix products of blocks of rows: a row has the same bits however many blocks are multiplied at once.

A product of few rows takes about as long as reading the weights, so all blocks that are there should share one reading.
But a BLAS may add up in another order for another number of rows. Its order depends on sizes, strides and threads and
not on the numbers, so it can be tried: if one product of random numbers has the bits of one product a block, it
replaces them. Otherwise each block is multiplied by itself.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

MOST_ROWS = 128
"""Of blocks that are multiplied at once. Beyond, the weights are no longer what takes the time, and MKL adds up in
another order if there are many inputs."""
ALIGNMENT = 64
"""Of new tensors in memory, in bytes. Kernels may round differently for memory that is aligned differently."""
PERIOD = 10007
"""Of the random numbers of a trial; prime, so that rows and columns differ."""


def add_product(y: Tensor, x: Tensor, weights: Tensor, blocks: int) -> None:
    """y += x @ weights, in place and without gradients.

    x: [L, inputs] and y: [L, outputs], both contiguous; L a multiple of blocks. Of several blocks each has a multiple
    of ALIGNMENT bytes. weights: [inputs, outputs].
    """
    if blocks == 1:
        y.addmm_(x, weights)
        return
    rows = len(x) // blocks
    together = max(1, MOST_ROWS // rows)
    for first in range(0, blocks, together):
        count = min(together, blocks - first)
        some = slice(first * rows, (first + count) * rows)
        if count == 1 or (x.device.type == "cpu" and _at_once(x, weights, rows, count)):
            y[some].addmm_(x[some], weights)
        else:
            for out, block in zip(y[some].split(rows), x[some].split(rows), strict=True):
                out.addmm_(block, weights)


def _at_once(x: Tensor, weights: Tensor, rows: int, blocks: int) -> bool:
    past = x.data_ptr() % ALIGNMENT // x.element_size()
    return tried(tuple(weights.shape), weights.stride(), rows, blocks, past, torch.get_num_threads())


@lru_cache(4096)
def tried(shape: tuple[int, int], strides: tuple[int, int], rows: int, blocks: int, past: int, threads: int) -> bool:
    """Whether one product with weights of this shape and strides has the bits of one product a block of `rows` rows,
    on this CPU with `threads` threads of torch. past: numbers from an aligned place in memory to x."""
    numbers = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))

    def fill(count: int, width: int, past: int = 0) -> Tensor:
        size = past + count * width
        return numbers.repeat(-(-size // PERIOD))[past:size].view(count, width)

    x, y = fill(blocks * rows, shape[0], past), fill(blocks * rows, shape[1])
    weights = torch.empty_strided(shape, strides).copy_(fill(*shape))
    together = y.clone().addmm_(x, weights)
    for out, block in zip(y.split(rows), x.split(rows), strict=True):
        out.addmm_(block, weights)
    return torch.equal(y, together)
