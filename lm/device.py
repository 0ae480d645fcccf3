"""Parse and check the device on which a model runs."""

from __future__ import annotations

import torch

from ..configs.printable import printable

HINT = "choose auto, cpu, cuda or cuda:N"


def choose_device(name: str | torch.device) -> torch.device:
    """Parse a device name; "auto": the first CUDA device if available, else the CPU.

    Raises ValueError for an invalid name, an unsupported device type, or a device that is not available.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError, TypeError):
        raise ValueError(f"device '{printable(name, 60)}' is not known; {HINT}") from None
    if device.type == "mps" and torch.backends.mps.is_available():
        return device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device '{device}': models run on cpu and cuda; {HINT}")
    if device.type == "cpu":
        return torch.device("cpu")
    if (device.index or 0) >= count:
        found = f"sees {count} CUDA devices" if count else "sees no CUDA device"
        raise ValueError(f"device '{device}' was asked for, but torch {found}; {HINT}")
    return device
