"""Memory checks before large allocations: Linux overcommits memory and kills the process later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
_SIGNS = ("not enough memory", "can't allocate memory", "out of memory", "invalid buffer size", "storage size")


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Bytes that can still be allocated on a device, within the limits of this process; None if unknown."""
    if str(device).startswith("cuda"):
        import torch  # imported here: the command line reports errors without importing torch

        return torch.cuda.mem_get_info(device)[0]
    found = [free for free in (_free_of_machine(), _free_of_group(), _free_of_process()) if free is not None]
    return min(found, default=None)


def check_memory(needed: float, what: str, advice: str, device: torch.device | str = "cpu") -> None:
    """Raise ValueError if `needed` bytes, a lower bound, exceed the free memory of a device.

    Args:
        what: what needs the memory; start of the message.
        advice: what to reduce; end of the message.
    """
    if needed < 1 << 28:
        return
    available = available_bytes(device)
    if available is not None and needed > available:
        raise ValueError(f"{what} needs {in_words(needed)} of memory, {in_words(available)} are free; {advice}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error of Python or of torch (CPU or GPU)."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def in_words(size: float) -> str:
    """Format a number of bytes, for example "12.3 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000 or unit == "PB":
            return (
                f"{size:.0f} {unit}"
                if unit == "bytes"
                else f"{size:.3g} {unit}"
                if size < 1000
                else f"{size:.1e} {unit}"
            )
        size /= 1000
    raise AssertionError


def _free_of_machine() -> int | None:
    return _field("/proc/meminfo", "MemAvailable:", 1024)


def _free_of_group() -> int | None:
    """Free memory of a container: the limit of its control group (version 2) minus the memory in use."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        cached = _field(CGROUP / "memory.stat", "inactive_file", 1) or 0
        return None if limit == "max" else max(0, int(limit) - used + cached)
    except (OSError, ValueError):
        return None


def _free_of_process() -> int | None:
    """Free address space under RLIMIT_AS."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _field("/proc/self/status", "VmSize:", 1024)
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)


def _field(path: str | Path, name: str, unit: int) -> int | None:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
