"""Where stored results come from (machine, torch, commit), and a lock for processes that share a folder of results."""

from __future__ import annotations

import platform
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tessera.configs.folder_lock import FolderInUse, lock_folder
from tessera.lm.ops.linear import lacks_bfloat16

ROOT = Path(__file__).resolve().parent.parent


@cache
def here() -> dict[str, str]:
    """What figures depend on besides settings and seed."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    bfloat16 = "emulated" if lacks_bfloat16() else "native"
    return {
        "machine": machine(), "torch": torch.__version__, "bfloat16": bfloat16,
        "commit": commit.stdout.strip() or "unknown",
    }  # fmt: skip


def machine() -> str:
    """Processor, operating system, and the instructions that torch uses."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, {platform.system()} {platform.machine()}"


class waited_lock:
    """lock_folder that waits until the folder is free."""

    def __init__(self, folder: Path, purpose: str):
        self.folder, self.purpose = folder, purpose

    def __enter__(self) -> None:
        while True:
            self.lock = lock_folder(self.folder, self.purpose)
            try:
                return self.lock.__enter__()
            except FolderInUse:
                time.sleep(0.2)

    def __exit__(self, *error: Any) -> None:
        self.lock.__exit__(*error)
