"""Handling of Ctrl-C and SIGTERM: finish the step, save, exit. A second signal ends the process at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


class StopRequest:
    """Context in which SIGINT and SIGTERM set `asked` instead of ending the process; no effect outside the main
    thread."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)
        for other, handler in self._before.items():
            signal.signal(other, handler)  # type: ignore[arg-type]
