"""Launches several processes on this machine: `tessera train --nproc N`.

Each process runs `tessera train ...` and gets its rank from the environment (see process_group.py). They end together:
if one fails, the others are ended; a signal to this process is forwarded to all; and if this process dies, they stop by
themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...configs.printable import say
from .process_group import RENDEZVOUS

LIFELINE = "TESSERA_LIFELINE"
"""Environment variable: file descriptor of a pipe that closes when the launching process dies."""
STOPPED = 130
"""Exit code of a process that saved and stopped after a signal."""
START = "import sys; sys.path[:] = {path!r}; from {package}.cli.app import main; main()"
"""Program of a process. It uses this process's sys.path: `python -m tessera` would import a folder `tessera` in the
working directory instead of the package."""


def launch(arguments: Sequence[str], nproc: int, environment: Mapping[str, str] | None = None) -> int:
    """Run `tessera ARGUMENTS` in `nproc` processes, with the same package as this process.

    Returns:
        0 if all exit with 0, otherwise the exit code of the first that failed (128 + n for a signal n).
    """
    environment = dict(os.environ if environment is None else environment)
    threads = max(1, (os.cpu_count() or 1) // nproc)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment.setdefault(
        "GLOO_SOCKET_IFNAME", "lo"
    )  # all on this machine; its host name may not resolve to a usable address
    program = START.format(path=sys.path, package=__name__.partition(".")[0])
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
        meeting = (Path(folder) / "rendezvous").as_uri()
        processes = []
        for rank in range(nproc):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": nproc, "LOCAL_WORLD_SIZE": nproc, LIFELINE: reading}
            own_environment = {**environment, RENDEZVOUS: meeting, **{name: str(value) for name, value in own.items()}}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, *arguments],
                    env=own_environment,
                    pass_fds=(reading,),
                    start_new_session=True,
                )
            )
        os.close(reading)
        try:
            return _wait(processes)
        finally:
            os.close(writing)


def _wait(processes: list[subprocess.Popen]) -> int:
    asked = False

    def hand_on(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = next((code for code in codes if code), None)
            if failed is not None:
                if failed < 0 and not asked:
                    say(f"tessera: process {codes.index(failed)} {_ended_by(-failed)}")
                # Others may still be saving after the same signal; after a failure they wait for a dead process.
                _end(processes, grace=60.0 if failed == STOPPED else 5.0)
                return failed if failed > 0 else 128 - failed
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end(processes, grace=0.0)


def _ended_by(number: int) -> str:
    often = " (often because memory ran out)" if number == signal.SIGKILL else ""
    return (
        f"was ended by {signal.Signals(number).name}{often}; the others are stopped, checkpoints are intact; "
        "resume with --resume"
    )


def _end(processes: list[subprocess.Popen], grace: float) -> None:
    """Give processes `grace` seconds to exit, then kill them."""
    deadline = time.monotonic() + grace
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def watch_lifeline() -> None:
    """In a process started by `launch`: when the launching process dies, stop as after SIGTERM."""
    number = os.environ.get(LIFELINE)
    if number is None:
        return

    def wait() -> None:
        while os.read(int(number), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
