"""Triton kernels for sampling on a GPU: uniform random numbers, and filtered sampling of ids.

Run eagerly, sampling takes about a hundred kernels of a microsecond or two each, a quarter of a small model's step.
"""

# Triton's type annotations do not describe the language inside a kernel.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton  # type: ignore
import triton.language as tl  # type: ignore


@triton.jit
def _mix(x):
    """The SplitMix64 finalizer, as in counter_rng.py."""
    x = x + tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    x = (x ^ (x >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    x = (x ^ (x >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    return x ^ (x >> 31)


@triton.jit
def uniform_kernel(seeds, step, numbers, draw, K, BLOCK: tl.constexpr):
    """Uniform numbers [K] of a row and step; program (row)."""
    row = tl.program_id(0)
    books = tl.arange(0, BLOCK)
    seed = tl.load(seeds + row).to(tl.uint64)
    coordinate = books.to(tl.uint64) + (tl.full((), 0, tl.uint64) + draw << 32)
    hashed = _mix(_mix(_mix(seed) + tl.load(step).to(tl.uint64)) + coordinate)
    tl.store(numbers + row * K + books, ((hashed >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16, mask=books < K)


@triton.jit
def sample_kernel(
    logits, uniforms, ids, temperature, greedy, top_k, min_p, V, n,
    LIMITED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sample the id of a cell like `filters.sample` without top-p; program (row * n + symbol)."""
    cell = tl.program_id(0).to(tl.int64)
    symbol = cell % n
    each = tl.arange(0, BLOCK)
    own = tl.load(logits + cell * V + each, mask=each < V, other=float("-inf"))
    largest = tl.max(own, axis=0)
    likeliest = tl.min(tl.where(own == largest, each, BLOCK), axis=0)
    likeliest = tl.where(likeliest < V, likeliest, 0)  # NaN logits do not equal the largest
    # Subtract the largest first, as in filters.py: no temperature makes the quotient overflow.
    weights = tl.exp((own - largest) / tl.load(temperature + symbol))
    kept = (weights >= tl.load(min_p + symbol)) & (weights > 0) & (each < V)
    if LIMITED:
        k = tl.load(top_k + symbol)
        if k < V:
            # Find the k-th largest bit by bit: non-negative floats sort like their bit patterns.
            bits = weights.to(tl.int64, bitcast=True)
            least = tl.full((), 0, tl.int64)
            for place in range(62):
                higher = least | (tl.full((), 1, tl.int64) << (61 - place))
                enough = tl.sum((bits >= higher).to(tl.int32), axis=0) >= k
                least = tl.where(enough, higher, least)
            equal = bits == least
            room = k - tl.sum((bits > least).to(tl.int32), axis=0)
            kept = kept & ((bits > least) | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room)))
    weights = tl.where(kept, weights, 0.0)
    cumulative = tl.cumsum(weights, axis=0)
    target = tl.load(uniforms + cell) * tl.max(cumulative, axis=0)
    # A parallel sum is not always monotonic: search only kept ids and fall back to the last of them.
    found = tl.min(tl.where(kept & (cumulative > target), each, BLOCK), axis=0)
    last = tl.max(tl.where(kept, each, -1), axis=0)
    found = tl.minimum(found, last)
    found = tl.where((tl.load(greedy + symbol) != 0) | (found < 0), likeliest, found)
    tl.store(ids + cell, found.to(tl.int64))
