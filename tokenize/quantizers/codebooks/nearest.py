"""Nearest-code search, k-means, and pseudo-random sampling that is independent of order, batch and process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CANDIDATES = 8
"""Number of codes whose distance is recomputed when the matrix product is ambiguous, in the usual case."""
SEARCH_ELEMENTS = 1 << 22
"""Number of distances held at once; for large N the full [N, V] matrix is never held."""


@dataclass(frozen=True)
class SearchTable:
    """Vectors to search, and what a search needs of them whatever it looks for."""

    entries: Tensor
    """[V, D]."""
    centre: Tensor
    """[D] float32, their mean: a common offset would cost precision."""
    centred: Tensor
    """[V, D] float32, entries - centre."""
    half_norms: Tensor
    """[V] float32, half the squared lengths of `centred`."""
    largest: Tensor
    """Scalar, the largest squared length."""

    @classmethod
    def of(cls, entries: Tensor) -> SearchTable:
        """The table of `entries` [V, D]."""
        centre = entries.mean(dim=0)
        centred = entries - centre
        norms = centred.square().sum(dim=-1)
        return cls(entries, centre, centred, 0.5 * norms, norms.max())


@torch.no_grad()
def nearest_code(x: Tensor, table: Tensor | SearchTable, exact: bool = True) -> Tensor:
    """Nearest entry of the table [V, D] for each row of x [N, D] -> [N] long; the lower number wins a tie.

    A matrix product gives all distances. Distances that differ by less than its rounding error are recomputed in
    float64, row by row, so the result depends neither on rounding nor on the other rows. `exact=False` skips this step:
    accurate enough for training, and twice as fast.
    """
    table = table if isinstance(table, SearchTable) else SearchTable.of(table)
    entries, centre, centred, half_norms = table.entries, table.centre, table.centred, table.half_norms
    rounding = 2 * (x.shape[1] + 8) * 2.0**-24  # bound on the error of the difference of two float32 dot products
    codes = []
    for rows in x.split(max(1, SEARCH_ELEMENTS // len(entries))):
        near = rows.float() - centre
        scores = torch.addmm(half_norms, near, centred.T, alpha=-1)  # half the squared distance, minus |row|^2 / 2
        best, code = scores.min(dim=-1)
        codes.append(code)
        if not exact:
            continue
        doubt = rounding * (near.square().sum(dim=-1) + table.largest)
        second = scores.scatter_(1, code[:, None], torch.inf).amin(dim=-1)
        which = (~(second > best + doubt)).nonzero()[:, 0]  # nan (a square that overflows): all codes are possible
        if len(which):
            close = scores.scatter_(1, code[:, None], best[:, None])[which]
            possible = len(entries) - (close > (best + doubt)[which, None]).sum(dim=-1)
            code[which] = _nearest_exactly(rows[which], entries, close, possible)
    return torch.cat(codes) if codes else x.new_zeros(0, dtype=torch.long)


@torch.no_grad()
def largest_product(x: Tensor, entries: Tensor) -> Tensor:
    """Code of `entries` [V, D] with the largest dot product with each row of x [N, D] -> [N] long.

    In float64, where products as near as its rounding do not occur; the lower number wins a tie.
    """
    dtype = exact_dtype(x)
    codes, vectors = [x.new_zeros(0, dtype=torch.long)], entries.to(dtype).T
    for rows in x.split(max(1, SEARCH_ELEMENTS // len(entries))):
        codes.append((rows.to(dtype) @ vectors).argmax(dim=-1))
    return torch.cat(codes)


def _nearest_exactly(x: Tensor, entries: Tensor, scores: Tensor, possible: Tensor) -> Tensor:
    """The exactly nearest code to each row of x [n, D] among the `possible` [n] ones with the lowest scores [n, V].

    More than CANDIDATES are possible where vectors repeat, or where one of them is so long that the rounding errors
    exceed the distances between the others.
    """
    dtype = exact_dtype(x)
    code = torch.empty_like(possible)
    few = possible <= CANDIDATES
    for group in (few.nonzero()[:, 0], (~few).nonzero()[:, 0]):
        if not len(group):
            continue
        count = min(max(CANDIDATES, int(possible[group].max())), len(entries))
        for place in group.split(max(1, SEARCH_ELEMENTS // (count * x.shape[1]))):
            close = scores[place].topk(count, largest=False, sorted=False).indices.sort(dim=-1).values
            distances = (x[place].to(dtype)[:, None] - entries.to(dtype)[close]).square().sum(dim=-1)
            code[place] = close.gather(1, distances.argmin(dim=-1, keepdim=True))[:, 0]
    return code


@torch.no_grad()
def nearest_few(x: Tensor, entries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of `entries` [V, D] to each row of x [N, D], nearest first; the lower number first in a tie.

    As in `nearest_code`, the matrix product only finds candidates, and the result does not depend on the other rows.

    Returns:
        indices [N, count] long, and squared distances [N, count] float64.
    """
    table = SearchTable.of(entries)
    rounding = 2 * (x.shape[1] + 8) * 2.0**-24  # as in nearest_code
    wide = min(count + CANDIDATES, len(entries))
    numbers = [x.new_zeros(0, count, dtype=torch.long)]
    distances = [x.new_zeros(0, count, dtype=exact_dtype(x))]
    for rows in x.split(max(1, SEARCH_ELEMENTS // max(len(entries), wide * x.shape[1]))):
        near = rows.float() - table.centre
        scores = torch.addmm(table.half_norms, near, table.centred.T, alpha=-1)
        best, close = scores.topk(wide, largest=False)
        number, distance = _few_exactly(rows, entries, close, count)
        if wide < len(entries):
            doubt = rounding * (near.square().sum(dim=-1) + table.largest)
            sure = best[:, -1] > best[:, count - 1] + doubt  # else more may be as near; nan: all may
            which = (~sure).nonzero()[:, 0]
            everything = torch.arange(len(entries), device=x.device)[None]
            for row in which.tolist():
                number[row], distance[row] = (
                    found[0] for found in _few_exactly(rows[row : row + 1], entries, everything, count)
                )
        numbers.append(number)
        distances.append(distance)
    return torch.cat(numbers), torch.cat(distances)


def _few_exactly(x: Tensor, entries: Tensor, close: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` exactly nearest of the candidates `close` [n, c] to each row of x [n, D], and squared distances."""
    dtype = exact_dtype(x)
    close = close.sort(dim=-1).values
    distances = (x.to(dtype)[:, None] - entries.to(dtype)[close]).square().sum(dim=-1)
    distances, order = distances.sort(dim=-1, stable=True)
    return close.gather(1, order[:, :count]), distances[:, :count]


def exact_dtype(x: Tensor) -> torch.dtype:
    """float64 if the device supports it, otherwise float32."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def kmeans(data: Tensor, num_codes: int, iterations: int, normalise: bool = False) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm, initialized with the first distinct rows of `data` [n, D], which is sorted by `priority`.

    Returns:
        centers [V, D], and the number of rows assigned to each [V]. If there are fewer distinct rows than codes, the
        spare centers repeat rows and have count 0.
    """
    seeds = distinct(data)[:num_codes]
    centres = seeds[torch.arange(num_codes, device=data.device) % len(seeds)].clone()
    active, sizes = centres[: len(seeds)], data.new_zeros(num_codes)
    for _ in range(iterations):
        sums, counts = torch.zeros_like(active), data.new_zeros(len(active))
        half_norms = 0.5 * active.square().sum(dim=-1)
        for rows in data.split(max(1, SEARCH_ELEMENTS // len(active))):
            codes = torch.addmm(half_norms, rows, active.T, alpha=-1).argmin(dim=-1)
            sums.index_add_(0, codes, rows)
            counts.index_add_(0, codes, rows.new_ones(len(rows)))
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], active)
        moved = F.normalize(moved, dim=-1) if normalise else moved
        sizes[: len(active)] = counts
        if torch.equal(moved, active):
            break
        active.copy_(moved)  # a view: this updates `centres`
    return centres, sizes


def priority(x: Tensor, salt: int) -> Tensor:
    """Pseudo-random int64 hash of each row of x [n, D], computed from its bits only: equal rows get equal numbers.

    Sorting by it shuffles; taking the lowest draws a random sample that does not depend on order, batches or processes.
    """
    bits = (x.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0: an all-reduce turns -0 into +0
    odd = (2 * torch.arange(x.shape[1], device=x.device) + 1) * 0x1E3779B97F4A7C15 | 1  # wraps around, as all below
    mixed = (bits * odd).sum(dim=-1) + (salt * 0x632BE59BD9B4E019 & (1 << 62) - 1)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> 31)


def first_by_priority(x: Tensor, salt: int, count: int) -> Tensor:
    """The `count` rows of x [n, D] with the lowest priority, sorted by it; all rows if there are fewer."""
    return x[priority(x, salt).argsort(stable=True)[:count]]


def distinct(x: Tensor) -> Tensor:
    """Remove rows of x [n, D] that equal the previous row (equal rows are adjacent when sorted by priority)."""
    if len(x) < 2:
        return x
    return torch.cat([x[:1], x[1:][(x[1:] != x[:-1]).any(dim=-1)]])
