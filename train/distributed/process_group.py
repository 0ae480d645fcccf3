"""The processes of one run: rank, communication, and decisions made jointly by all of them.

Without a launcher a run is one process and nothing here uses torch.distributed.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...configs.files import DISK_FULL, DiskFull
from ...configs.schema import ConfigError

RENDEZVOUS = "TESSERA_RENDEZVOUS"
"""Environment variable: file:// address where the processes of `--nproc` rendezvous."""

T = TypeVar("T")


class TrainingFailed(RuntimeError):
    """The run cannot continue; the message says what happened and what is left."""


class ProcessLost(TrainingFailed):
    """Another process of the run failed or died."""


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and size of this run, and the device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True in the process that writes logs, metrics and samples."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def add(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; returns it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, value: Any) -> Any:
        """Broadcast a value (plain data) from rank 0 to every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` in every process; if it fails in one, all raise, so none waits for a process that is gone.

        Args:
            action: not collective: if it fails in one process, the others must still finish it.
        Raises:
            The exception of `action`; if another process failed, DiskFull or ValueError as there, else ProcessLost.
        """
        failure, result = None, None
        try:
            result = action()
        except Exception as error:
            failure = error
        if self.size > 1:
            notes: list[Any] = [None] * self.size
            dist.all_gather_object(notes, None if failure is None else _note(failure))
            first = next(((rank, note) for rank, note in enumerate(notes) if note), None)
            if failure is None and first is not None:
                failure = _as_noted(*first)
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]


ONE_PROCESS = ProcessGroup(0, 1, torch.device("cpu"))
"""The group of a single process."""


def join_world(device: str = "auto", *, always: bool = False) -> ProcessGroup:
    """Join the other processes of this run, as described by the launcher's environment.

    Args:
        device: "auto" (CUDA if available), "cpu" or "cuda".
        always: create a process group even for one process (required by DeepSpeed).

    Supports the variables of `tessera train --nproc`, `deepspeed` and `torchrun`: RANK, WORLD_SIZE, LOCAL_RANK, and
    MASTER_ADDR and MASTER_PORT or TESSERA_RENDEZVOUS.

    Raises:
        ConfigError: CUDA is requested but not available, or there are more processes than GPUs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; set device=auto or device=cpu")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU, torch sees {torch.cuda.device_count()}; "
            "start fewer processes"
        )
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
    if (size > 1 or always) and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            init_method=os.environ.get(RENDEZVOUS, "env://") if size > 1 else None,
            # A single process needs no rendezvous: no port, no file.
            store=None if size > 1 else dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=30),
        )
    return ProcessGroup(rank, size, where)


@contextmanager
def run_in(world: ProcessGroup) -> Iterator[None]:
    """Context of a run; leaves the group at the end.

    A process that fails leaves the group without waiting for the others: it exits, which ends them too. They see a
    broken connection instead of an answer and raise ProcessLost.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size > 1 and _is_broken_connection(error):
            time.sleep(1)  # the failed process exits first, and its exit code is the run's
            raise ProcessLost(
                f"process {world.rank} lost the connection to another process, whose message gives the reason; "
                "checkpoints are intact, resume with --resume"
            ) from None
        raise
    leave_world(world)


def _is_broken_connection(error: RuntimeError) -> bool:
    message = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        words in message for words in ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo")
    )


def _note(error: Exception) -> tuple[str, int | None, str, str | None]:
    """Summary of an error for other processes: its kind, and the number, text and file of an operating system error."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "room", error.errno, str(error.strerror), str(error.filename)
    return "value" if isinstance(error, ValueError) else "other", None, f"{type(error).__name__}: {error}", None


def _as_noted(rank: int, note: tuple[str, int | None, str, str | None]) -> Exception:
    kind, number, text, file = note
    if kind == "room":
        return DiskFull(number, text, file)
    message = f"another process failed, rank {rank}: {text}"
    return ValueError(message) if kind == "value" else ProcessLost(message)


def leave_world(world: ProcessGroup) -> None:
    """Destroy the group of several processes. A group of one is kept: DeepSpeed cannot create a second one in a
    process."""
    if world.size > 1 and dist.is_initialized():
        _keep_until_exit(dist.group.WORLD)
        dist.destroy_process_group()


def _keep_until_exit(group: Any) -> None:
    """Hold a reference to a group that was left.

    Freeing a gloo group waits for its threads, which may need the GIL to release the last collective. If
    DistributedDataParallel holds the last reference, it frees the group with the GIL held and deadlocks; dropping a
    reference from Python releases the GIL.
    """
    atexit.register(lambda: group)
