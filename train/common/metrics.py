"""Metrics of a run: metrics.jsonl (one object per line), and TensorBoard if installed."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...configs.files import DISK_FULL, DiskFull, write_atomic
from ...configs.json_limits import LINE, parse_json
from .event_file import EventFile


class Metrics:
    """Append-only metrics of one run.

    A line is {"step": n, "split": "train" | "test", "loss": ..., "loss_per_codebook": [...], ...}; `step` counts
    finished steps. A next-scale model has "loss_per_scale". Opening removes lines beyond `step` (from a run killed
    after its last checkpoint), since they will be written again.

    Args:
        folder: the run's folder.
        step: finished steps so far.
    """

    def __init__(self, folder: Path, step: int = 0):
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = [
                line
                for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n")
                if _step_of(line) <= step
            ]
            write_atomic(self.path, "".join(f"{line}\n" for line in kept).encode())
        with _naming(self.path):
            self._file = open(self.path, "ab", buffering=0)  # closed by close()
        self._board = _open_board(folder / "tensorboard", step)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Write one line; non-finite numbers become null. DiskFull: the disk is full."""
        line = {"step": step, "split": split, **{name: _plain(value) for name, value in values.items()}}
        with _naming(self.path):
            self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        if self._board is not None:
            numbers = {
                f"{split}/{name}" + ("" if suffix is None else f"/{suffix}"): number
                for name, value in values.items()
                for suffix, number in (enumerate(value) if isinstance(value, list) else [(None, value)])
                if isinstance(number, int | float)
            }
            with _naming(self._board.path):
                self._board.add(numbers, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl, except a last line truncated by a kill."""
    lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    return [parse_json(line, "metrics.jsonl", LINE) for line in lines if _step_of(line) < math.inf]


def _step_of(line: str) -> float:
    try:
        return int(parse_json(line, "metrics.jsonl", LINE)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(folder: Path, step: int) -> EventFile | None:
    try:
        with _naming(folder):
            return EventFile(folder, step)
    except ImportError:  # optional; metrics.jsonl holds the same numbers
        print(
            "note: no TensorBoard files, the package tensorboard is not installed (pip install tensorboard)",
            file=sys.stderr,
        )
        return None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file name to operating system errors, and advice if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise OSError(error.errno, error.strerror, str(path)) from None
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
        raise DiskFull(
            error.errno,
            f"no disk space to write this file ({error.strerror}), {free:,} bytes are free; the checkpoints "
            "are intact, free some space and resume with --resume",
            str(path),
        ) from None
