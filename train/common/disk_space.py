"""Check that the disk has room for the checkpoints of a run and its model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ...configs.schema import ConfigError
from .checkpoint import MARKER


def check_disk_space(out: Path, checkpoint: int, model: int, kept: int) -> None:
    """Check that the disk has room for a checkpoint and the model; warn if not for all that will be kept.

    Args:
        checkpoint, model: size of each in bytes. kept: checkpoints that will be kept.
    Raises:
        ConfigError: there is no room for one checkpoint and the model.
    """
    free = shutil.disk_usage(next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())).free
    if free < checkpoint + model:
        raise ConfigError(
            f"{out}: no disk space for a checkpoint and the model, which take about {_size(checkpoint + model)}, "
            f"{_size(free)} are free; free some space, or choose a folder on another disk with --out"
        )
    there = len(list((out / "steps").glob(f"step-*/{MARKER}")))
    needed = max(1, kept + 1 - there) * checkpoint + model  # one more while it is written
    if free < needed:
        print(
            f"warning: {out}: all checkpoints that are kept and the model take about {_size(needed)}, {_size(free)} "
            "are free; keep fewer, or free some space",
            file=sys.stderr,
        )


def _size(count: int) -> str:
    """Human-readable size, such as "1.2 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
