"""Speed and memory use of a tokenizer, one item at a time."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...tokenize.tokenizer import Tokenizer


@dataclass(frozen=True)
class Speed:
    """Speed for single items on `device`, after a warm-up."""

    unit: str
    """"seconds of sound per second" (times real time) or "pictures per second"."""
    encode: float
    decode: float
    device: str
    threads: int
    encode_peak_mb: float | None
    """Memory above that already in use, for the largest item; None if the system does not report it (see note)."""
    decode_peak_mb: float | None
    note: str = ""


class Stopwatch:
    """Total seconds over several intervals, including device time."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    @contextmanager
    def running(self):
        """Add the time spent inside the context."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - started


def peak_memory(device: torch.device, work: Callable[[], object]) -> float | None:
    """Peak memory of `work` in megabytes above that in use; None if the system does not report it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if not _reset_peak():
        return None
    before = _status("VmRSS")
    work()
    return max(0.0, (_status("VmHWM") - before) / 1000)


def largest_item_peaks(tokenizer: Tokenizer, item: Tensor) -> tuple[float | None, float | None, str]:
    """Peak memory of encoding an item and of decoding its codes, and a note if they are missing."""
    codes = tokenizer.encode(item[None]).codes
    encode = peak_memory(tokenizer.device, lambda: tokenizer.encode(item[None]))
    decode = peak_memory(tokenizer.device, lambda: tokenizer.decode(codes))
    note = "" if encode is not None else "memory not measured: only Linux (/proc) and CUDA report the peak"
    return encode, decode, note


def _reset_peak() -> bool:
    """On Linux, release free memory and reset the peak resident size to the current one."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else work reuses memory from earlier work and seems to need none
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _status(name: str) -> float:
    """A value of /proc/self/status, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return float(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")
