"""Codebook of V code vectors and its update rules during training.

Forward passes only collect statistics. `update_codebooks` then updates all codebooks with one all-reduce:
    start     k-means on the first vectors seen; a level starts only after the previous one started in an earlier update
    average   exponential moving averages of (sum, count) per code; the vector of a code is sum / count
    revive    every few updates, codes used less than `revive_below` of the uniform share are replaced by data vectors,
              or every code moves towards one, the further the less it is used (`blend`)
All choices depend only on the content of the vectors (`priority`), so they are the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from .nearest import distinct, exact_dtype, first_by_priority, kmeans
from .parametrization import CodebookForm

REVIVE_EVERY = 5
"""Updates between two checks for dead codes."""
KMEANS_ITERATIONS = 10
KMEANS_VECTORS_PER_CODE = 16
KMEANS_VECTORS_AT_LEAST = 4096
SMALLEST_COUNT = 1e-8
"""Counts stop decaying here, so that sum / count stays defined when revival is off."""


class Float32Buffers(nn.Module):
    """Module whose float buffers stay float32 under `.half()` and `.bfloat16()`."""

    def _apply(self, fn, recurse=True):
        """As in nn.Module, but float buffers keep float32: rounded averages would stop moving."""
        kept = {
            name: buffer for name, buffer in self._buffers.items() if buffer is not None and buffer.is_floating_point()
        }
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != torch.float32:
                self._buffers[name] = buffer.to(moved.device)
        return self


class Codebook(Float32Buffers):
    """V code vectors [V, D] of one level.

    With moving averages the state is two float32 buffers, never a Parameter: the master copy of a bf16 trainer would
    overwrite it. With `learned` the vectors are a Parameter trained by the optimizer, and this class does only start
    and revival. With a `form` the vectors are computed from its parameters. `step` (0 .. 1) replaces the averages: each
    code moves by this fraction towards the mean of the vectors assigned to it.
    """

    sum: Tensor
    count: Tensor
    updates: Tensor
    started: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        normalise: bool,
        learned: bool,
        decay: float,
        revive_below: float,
        kmeans_start: bool,
        form: CodebookForm | None = None,
        step: float | None = None,
        blend: bool = False,
    ):
        super().__init__()
        self.size, self.dim = size, dim
        self.normalise, self.learned = normalise, learned
        self.decay, self.revive_below = decay, revive_below
        self.form, self.step, self.blend = form, step, blend
        if form is not None and not form.settable:
            self.revive_below, kmeans_start = 0.0, False
        if form is None:
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
        """Discard the statistics collected since the last update."""
        # Plain attributes, not buffers: DDP overwrites all buffers with those of rank 0 before each forward pass.
        self.collected: tuple[Tensor, Tensor] | None = None
        self.reservoir: Tensor | None = None

    def entries(self) -> Tensor:
        """The code vectors [V, D], float32."""
        if self.form is not None:
            vectors = self.form()
        else:
            vectors = self.weight.float() if self.learned else self.sum / self.count[:, None]
        return F.normalize(vectors, dim=-1) if self.normalise else vectors

    @torch.no_grad()
    def collect(self, x: Tensor, codes: Tensor, mask: Tensor | None) -> None:
        """Collect vectors [N, D] and their codes [N] inside the mask [N] for the next update."""
        if mask is not None:
            x, codes = x[mask], codes[mask]
        x = x.float()
        if self.collected is None:
            self.collected = self._nothing()
        counts, sums = self.collected
        counts += torch.bincount(codes, minlength=self.size)
        if not self.learned:
            sums.index_add_(0, codes, x.to(sums.dtype))
        wanted = self.wanted(True)
        if wanted:
            x = x if self.reservoir is None else torch.cat([self.reservoir, x])
            self.reservoir = first_by_priority(x, int(self.updates), wanted) if len(x) > wanted else x

    def wanted(self, may_start: bool) -> int:
        """Number of data vectors that the next update needs."""
        if not bool(self.started):
            return max(KMEANS_VECTORS_PER_CODE * self.size, KMEANS_VECTORS_AT_LEAST) if may_start else 0
        due = self.revive_below > 0 and int(self.updates) % REVIVE_EVERY == REVIVE_EVERY - 1
        return self.size if due else 0

    def report(self, wanted: int, rank: int, world: int) -> list[Tensor]:
        """Statistics of this process, laid out so that they can be summed over processes: each rank has its own slot.

        Returns usage counts [V], vector sums [V, D], numbers of kept vectors [world], and the vectors
        [world, wanted, D].
        """
        numbers = self.count.new_zeros(world, dtype=exact_dtype(self.count))
        vectors = numbers.new_zeros(world, wanted, self.dim)
        if wanted and self.reservoir is not None:
            numbers[rank] = len(self.reservoir)
            vectors[rank, : len(self.reservoir)] = self.reservoir
        return [*(self.collected or self._nothing()), numbers, vectors]

    def absorb(self, report: Sequence[Tensor]) -> None:
        """Update from the summed report of all processes; a non-finite value in it cancels the update."""
        counts, sums, numbers, vectors = report
        wanted = vectors.shape[1]
        finite = bool(sums.sum().isfinite()) and bool(vectors.sum().isfinite())
        data = self.count.new_zeros(0, self.dim)
        if wanted and finite:
            gathered = [place[:kept] for place, kept in zip(vectors, numbers.long().tolist(), strict=True)]
            data = first_by_priority(torch.cat(gathered).float(), int(self.updates), wanted)
        if not bool(self.started):
            if len(data):
                self._start(data, float(counts.sum()))
        elif finite and float(counts.sum()) > 0:
            self._average(counts.float(), sums.float())
            if len(data):
                self._revive(data)
        self.updates += 1
        self.forget()

    def _nothing(self) -> tuple[Tensor, Tensor]:
        # float64: the summation order, hence the number of processes, then does not affect the stored float32.
        counts = self.count.new_zeros(self.size, dtype=exact_dtype(self.count))
        return counts, counts.new_zeros(self.size, 0 if self.learned else self.dim)

    def _start(self, data: Tensor, seen: float) -> None:
        centres, sizes = kmeans(data, self.size, KMEANS_ITERATIONS, self.normalise)
        # Counts are uses per update, like the averages that follow. A code without data counts as dead.
        counts = torch.where(sizes > 0, sizes * (seen / len(data)), 1e-3 * seen / self.size)
        self._set(torch.arange(self.size, device=data.device), centres, counts)
        self.started.fill_(True)

    def _average(self, counts: Tensor, sums: Tensor) -> None:
        entries = None if self.step is None else self.sum / self.count[:, None]
        decay = torch.where(self.count > SMALLEST_COUNT, self.decay, 1.0)
        self.count.mul_(decay).add_(counts, alpha=1 - self.decay)
        if entries is not None and self.step is not None:
            means = sums / counts.clamp_min(1)[:, None]
            moved = torch.where(counts[:, None] > 0, entries + self.step * (means - entries), entries)
            self.sum.copy_(moved * self.count[:, None])
        elif not self.learned:
            self.sum.mul_(decay[:, None]).add_(sums, alpha=1 - self.decay)

    def _revive(self, data: Tensor) -> None:
        fair = self.count.mean()
        if self.blend:
            return self._blend(data, fair)
        dead = (self.count < self.revive_below * fair).nonzero()[:, 0]
        fresh = distinct(data)
        dead = dead[: len(fresh)]
        # Reset both sum and count: otherwise the stale average pulls the vector back at once. The uniform share as
        # count gives the code time to attract vectors.
        self._set(dead, fresh[: len(dead)], fair.expand(len(dead)))

    def _blend(self, data: Tensor, fair: Tensor) -> None:
        fresh = distinct(data)
        least_used = self.count.argsort(stable=True)[: len(fresh)]
        share = self.count[least_used] / fair
        part = (-share / self.revive_below).exp()
        vectors = self.entries()[least_used].lerp(fresh[: len(least_used)], part[:, None])
        # Keep the count: a code that is still unused after the move must keep moving.
        self._set(least_used, vectors, self.count[least_used])

    def _set(self, which: Tensor, vectors: Tensor, counts: Tensor) -> None:
        if self.form is not None:
            self.form.set(which, vectors)
        elif self.learned:
            self.weight[which] = vectors.to(self.weight.dtype)
        else:
            # Scale by the count: entries() divides by it, and the next average must not outweigh the new vector.
            self.sum[which] = vectors * counts[:, None]
        self.count[which] = counts


@torch.no_grad()
def update_codebooks(books: Sequence[Codebook]) -> None:
    """Update all codebooks once, coarse first, with a single all-reduce over the current process group."""
    if not books:
        return
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
