"""Scalars as an event file of TensorBoard.

The SummaryWriter of torch writes in a thread: where the disk is full the thread dies with a traceback, and who closes
the writer may wait for it. This one writes at the call, and the caller gets the error.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """An event file in `folder`.

    Args:
        step: finished steps so far. TensorBoard drops what earlier files of the folder say of later ones.
    Raises:
        ImportError: the package tensorboard is not installed. OSError: as its file, here and in `add`.
    """

    def __init__(self, folder: Path, step: int = 0):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        events: Any = event_pb2  # the classes of these modules are made when they are imported
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        folder.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)  # TensorBoard reads the files in the order of their names
        name = f"events.out.tfevents.{seconds:010}.{rest:09}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self._file = open(self.path, "xb", buffering=0)  # closed by close()
        self._records = RecordWriter(self._file)
        first = step + 1 if step else 0
        self._add(self._event(step=first, file_version="brain.Event:2"))
        if step:
            self._add(self._event(step=first, session_log=events.SessionLog(status=events.SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers by name."""
        entries = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(self._event(step=step, summary=self._summary(value=entries)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
