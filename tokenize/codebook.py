"""A codebook: V code vectors, the exact nearest-code search, and how the vectors move while training.

Forward passes only collect. `update_codebooks` then does, for all codebooks at once and with one all-reduce:
    start     k-means on the first vectors seen; a later level only after the one before it started on an earlier update
    average   exponential moving averages of (sum, count) per code; the vector of a code is sum / count
    revive    every few updates, codes used less than `revive_below` of the uniform share become vectors of the data
All choices depend on the content of the vectors alone (`priority`), so any number of processes choose the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

REVIVE_EVERY = 5
"""Updates between two looks for dead codes."""
KMEANS_ITERATIONS = 10
KMEANS_VECTORS_PER_CODE = 16
ROUNDING = 1e-6
"""Relative error a float32 matrix product may have here, with a margin; see `nearest_code`."""
CANDIDATES = 8
"""Codes whose distance is computed again where the matrix product cannot tell."""
SEARCH_ELEMENTS = 1 << 22
"""Distances held at a time: [N, V] is never whole for large N."""
SMALLEST_COUNT = 1e-8
"""Counts stop decaying here: sum / count stays defined when revival is off."""


class Codebook(nn.Module):
    """V vectors [V, D] of one level.

    Under moving averages the state is two float32 buffers, never a Parameter (a bf16 trainer's master copy would overwrite it);
    `learned` makes the vectors a Parameter that the optimizer moves, and only start and revival happen here.
    """

    def __init__(self, size: int, dim: int, *, normalise: bool, learned: bool, decay: float, revive_below: float, kmeans_start: bool):
        super().__init__()
        self.size, self.dim = size, dim
        self.normalise, self.learned = normalise, learned
        self.decay, self.revive_below = decay, revive_below
        first = torch.randn(size, dim) / dim**0.5
        if learned:
            self.weight = nn.Parameter(first)
        else:
            self.register_buffer("sum", first)
        self.register_buffer("count", torch.ones(size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("started", torch.tensor(not kmeans_start))
        self.forget()

    def forget(self) -> None:
        """Drop what was collected since the last update."""
        # Plain attributes, not buffers: DDP overwrites all buffers with those of rank 0 before each forward pass.
        self.collected: tuple[Tensor, Tensor] | None = None
        self.reservoir: Tensor | None = None

    def _apply(self, fn, recurse=True):
        """As every module (`.to`, `.cuda`), but averages stay float32 under `.half()` and `.bfloat16()`: they would stop moving."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if self._buffers[name].dtype != torch.float32:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def entries(self) -> Tensor:
        """The code vectors [V, D], float32."""
        vectors = self.weight.float() if self.learned else self.sum / self.count[:, None]
        return F.normalize(vectors, dim=-1) if self.normalise else vectors

    @torch.no_grad()
    def collect(self, x: Tensor, codes: Tensor, mask: Tensor | None) -> None:
        """Take note of vectors [N, D] and their codes [N] for the next update; those outside the mask [N] are left out."""
        if mask is not None:
            x, codes = x[mask], codes[mask]
        x = x.float()
        if bool(self.started):
            if self.collected is None:
                self.collected = self._nothing()
            counts, sums = self.collected
            counts += torch.bincount(codes, minlength=self.size)
            if not self.learned:
                sums.index_add_(0, codes, x)
        wanted = self.wanted(True)
        if wanted:
            x = x if self.reservoir is None else torch.cat([self.reservoir, x])
            self.reservoir = first_by_priority(x, int(self.updates), wanted) if len(x) > wanted else x

    def wanted(self, may_start: bool) -> int:
        """How many vectors the next update needs from the data."""
        if not bool(self.started):
            return KMEANS_VECTORS_PER_CODE * self.size if may_start else 0
        return self.size if self.revive_below > 0 and int(self.updates) % REVIVE_EVERY == REVIVE_EVERY - 1 else 0

    def report(self, wanted: int, rank: int, world: int) -> list[Tensor]:
        """What this process saw; the sum over processes is what all saw, since each writes its vectors to its own place.

        Returns uses [V], sums of vectors [V, D], numbers of vectors kept [world], and those vectors [world, wanted, D].
        """
        numbers = self.count.new_zeros(world)
        vectors = self.count.new_zeros(world, wanted, self.dim)
        if wanted and self.reservoir is not None:
            numbers[rank] = len(self.reservoir)
            vectors[rank, : len(self.reservoir)] = self.reservoir
        return [*(self.collected or self._nothing()), numbers, vectors]

    def absorb(self, report: Sequence[Tensor]) -> None:
        """Move by the summed report of all processes. One non-finite number in it, and nothing moves."""
        counts, sums, numbers, vectors = report
        wanted = vectors.shape[1]
        finite = bool(sums.sum().isfinite()) and bool(vectors.sum().isfinite())
        data = vectors.new_zeros(0, self.dim)
        if wanted and finite:
            gathered = [place[:kept] for place, kept in zip(vectors, numbers.long().tolist(), strict=True)]
            data = first_by_priority(torch.cat(gathered), int(self.updates), wanted)
        if not bool(self.started):
            if len(data):
                self._start(data)
        elif finite and float(counts.sum()) > 0:
            self._average(counts, sums)
            if len(data):
                self._revive(data)
        self.updates += 1
        self.forget()

    def _nothing(self) -> tuple[Tensor, Tensor]:
        return self.count.new_zeros(self.size), self.count.new_zeros(self.size, 0 if self.learned else self.dim)

    def _start(self, data: Tensor) -> None:
        centres, sizes = kmeans(data, self.size, KMEANS_ITERATIONS, self.normalise)
        # A code without data counts as dead and is replaced at the next look; its vector is defined all the same.
        counts = torch.where(sizes > 0, sizes, 1e-3 * len(data) / self.size)
        self._set(torch.arange(self.size, device=data.device), centres, counts)
        self.started.fill_(True)

    def _average(self, counts: Tensor, sums: Tensor) -> None:
        decay = torch.where(self.count > SMALLEST_COUNT, self.decay, 1.0)
        self.count.mul_(decay).add_(counts, alpha=1 - self.decay)
        if not self.learned:
            self.sum.mul_(decay[:, None]).add_(sums, alpha=1 - self.decay)

    def _revive(self, data: Tensor) -> None:
        fair = self.count.mean()
        dead = (self.count < self.revive_below * fair).nonzero()[:, 0]
        fresh = distinct(data)
        dead = dead[: len(fresh)]
        # Sum and count both start anew, else the stale average pulls the vector back at once; the uniform share of
        # uses gives it the time to win vectors of its own.
        self._set(dead, fresh[: len(dead)], fair.expand(len(dead)))

    def _set(self, which: Tensor, vectors: Tensor, counts: Tensor) -> None:
        if self.learned:
            self.weight[which] = vectors.to(self.weight.dtype)
        else:
            self.sum[which] = vectors * counts[:, None]  # times the count: a bare vector would be drowned by the next average
        self.count[which] = counts


@torch.no_grad()
def update_codebooks(books: Sequence[Codebook]) -> None:
    """One update of all codebooks, coarse first, with a single all-reduce over the processes that exist when it is called."""
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    plan, may_start = [], True
    for book in books:
        plan.append(book.wanted(may_start))
        may_start = may_start and bool(book.started)
    reports = [book.report(wanted, rank, world) for book, wanted in zip(books, plan, strict=True)]
    if together:
        reports = _sum_over_processes(reports)
    for book, report in zip(books, reports, strict=True):
        book.absorb(report)


def _sum_over_processes(reports: list[list[Tensor]]) -> list[list[Tensor]]:
    flat = torch.cat([part.flatten() for report in reports for part in report])
    dist.all_reduce(flat)
    parts = iter(flat.split([part.numel() for report in reports for part in report]))
    return [[next(parts).view_as(part) for part in report] for report in reports]


@torch.no_grad()
def nearest_code(x: Tensor, entries: Tensor, exact: bool = True) -> Tensor:
    """Nearest of `entries` [V, D] for each row of x [N, D] -> [N] long; the lower number wins a tie.

    A matrix product gives all distances (centred: a common offset would cost it precision). Where two lie closer together
    than it may round, those few are computed again in float64, row by row. So the result depends neither on how the
    product rounds nor on the other rows. `exact=False` leaves that out: enough for training, and twice as fast.
    """
    centre = entries.mean(dim=0)
    centred = entries - centre
    norms = centred.square().sum(dim=-1)
    half_norms, largest = 0.5 * norms, norms.max()
    codes = []
    for rows in x.split(max(1, SEARCH_ELEMENTS // len(entries))):
        near = rows.float() - centre
        scores = torch.addmm(half_norms, near, centred.T, alpha=-1)  # half the squared distance, but for |row|^2
        best, code = scores.min(dim=-1)
        codes.append(code)
        if not exact:
            continue
        doubt = ROUNDING * (near.square().sum(dim=-1) + largest)
        tied = (scores <= (best + doubt)[:, None]).sum(dim=-1) > 1
        which = tied.nonzero()[:, 0]
        if len(which):
            code[which] = _nearest_exactly(rows[which], entries, scores[which])
    return torch.cat(codes) if codes else x.new_zeros(0, dtype=torch.long)


def _nearest_exactly(x: Tensor, entries: Tensor, scores: Tensor) -> Tensor:
    """Of the codes with the lowest scores [n, V], the truly nearest to each row of x [n, D]."""
    dtype = exact_dtype(x)
    close = scores.topk(min(CANDIDATES, len(entries)), largest=False, sorted=False).indices.sort(dim=-1).values
    distances = (x.to(dtype)[:, None] - entries.to(dtype)[close]).square().sum(dim=-1)
    return close.gather(1, distances.argmin(dim=-1, keepdim=True))[:, 0]


def exact_dtype(x: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def kmeans(data: Tensor, num_codes: int, iterations: int, normalise: bool = False) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random data, which are the first distinct rows: `data` [n, D] comes in random order.

    Returns centres [V, D], and how many rows each one has [V]; with fewer distinct rows than codes, the spare ones repeat rows and have 0.
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
        active.copy_(moved)  # a view: the centres move with it
    return centres, sizes


def priority(x: Tensor, salt: int) -> Tensor:
    """A pseudo-random int64 for each row of x [n, D] from its bits alone: equal rows get equal numbers, wherever they are.

    Sorting by it shuffles; taking the lowest draws a random sample, which is the same however the rows were spread over
    processes, batches and order.
    """
    bits = (x.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0: an all-reduce turns -0 into +0
    odd = (2 * torch.arange(x.shape[1], device=x.device) + 1) * 0x1E3779B97F4A7C15 | 1  # wraps around, as all below
    mixed = (bits * odd).sum(dim=-1) + (salt * 0x632BE59BD9B4E019 & (1 << 62) - 1)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> 31)


def first_by_priority(x: Tensor, salt: int, count: int) -> Tensor:
    """The `count` rows of x [n, D] with the lowest priority, in its order; all of them, in this order, if there are fewer."""
    return x[priority(x, salt).argsort(stable=True)[:count]]


def distinct(x: Tensor) -> Tensor:
    """Rows of x [n, D] without those equal to the row before (equal rows are neighbours in order of priority)."""
    if len(x) < 2:
        return x
    return torch.cat([x[:1], x[1:][(x[1:] != x[:-1]).any(dim=-1)]])
