"""Atomic checkpoints: a kill at any moment leaves them complete or absent, and they are verified before loading.

    steps/.step-00000200.tmp/   files are written here                                     1
    manifest.json               SHA-256 and size of every file, all fsynced                2
    steps/step-00000200/        the renamed folder                                         3
    COMMITTED                   SHA-256 of the manifest; only now the checkpoint exists    4
    older checkpoints           removed, COMMITTED first                                   5

Resuming loads the newest checkpoint whose marker, manifest and files all agree. The first process writes everything;
the state of the others is collected before, so that a full disk fails where no process waits for another.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...configs.files import (
    DISK_FULL,
    DiskFull,
    error_number,
    fsync_dir,
    read_json,
    sha256_file,
    write_atomic,
    write_json,
)
from ...configs.folder_lock import remove_leftovers
from ...configs.printable import say
from ..distributed.process_group import ProcessGroup

MANIFEST, MARKER = "manifest.json", "COMMITTED"

_STEP, _STAGE = re.compile(r"step-\d{8,}"), re.compile(r"\.step-\d{8,}\.tmp")

STATE_FILE = "run.json"
"""State of a run in a checkpoint: counts, config, data."""
ALLOWED_GLOBALS = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Globals in DeepSpeed's own files (of earlier versions), besides tensors and plain data; pickles with any others are
refused unread."""


Loss = Callable[[Path], float | None]


class Checkpoints:
    """The checkpoints of one run, in `folder`/step-N.

    Args:
        folder: created if missing.
        world: the processes that save and load together.
        keep_last: committed checkpoints to keep, at least 1.
        keep_best: number of checkpoints with the lowest loss to keep as well.
        loss: loss of a checkpoint, or None.
    """

    def __init__(
        self, folder: Path, world: ProcessGroup, keep_last: int, keep_best: int = 0, loss: Loss = lambda _: None
    ):
        self.folder = folder
        self.world = world
        self.keep_last, self.keep_best, self.loss = keep_last, keep_best, loss

    def save(self, step: int, write: Callable[[Path], Any], num_bytes: int = 0) -> Path:
        """Save a checkpoint; all processes call this.

        Args:
            step: finished steps.
            write: writes into the given folder; only the first process calls it, so that a failure leaves none waiting.
            num_bytes: approximate size of what `write` writes, for the message if the disk is full.
        Returns:
            The committed folder. A good checkpoint of the same step is kept.
        Raises:
            DiskFull: in every process, if it is full. OSError, ProcessLost: other failures. Older checkpoints stay
                intact, and nothing of this one remains.
        """
        final = self.folder / f"step-{step:08}"
        stage = self.folder / f".{final.name}.tmp"
        if self.world.share(self.world.is_first and not why_unusable(final)):
            return final
        self.world.together(
            lambda: self._save_alone(step, stage, final, write, num_bytes) if self.world.is_first else None
        )
        return final

    def _save_alone(self, step: int, stage: Path, final: Path, write: Callable[[Path], Any], num_bytes: int) -> None:
        try:
            self._open_stage(stage)
            write(stage)
            self._commit(stage, final, step)
        except Exception as error:
            for path in (stage, *([] if (final / MARKER).exists() else [final])):
                shutil.rmtree(path, ignore_errors=True)
            number = error_number(error)
            if number not in DISK_FULL:
                raise
            free = shutil.disk_usage(next(path for path in (self.folder, *self.folder.parents) if path.exists())).free
            needed = f" it needs about {num_bytes:,} bytes and" if num_bytes else ""
            raise DiskFull(
                number,
                f"no disk space for a checkpoint,{needed} {free:,} bytes are free; earlier checkpoints are "
                "intact, free some space and resume with --resume",
                str(self.folder),
            ) from None

    def clean(self) -> None:
        """Remove leftovers of killed runs: temporary folders, and checkpoints never committed or half removed.

        Only for the process that holds the lock on the run's folder: another one may be writing them.
        """
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            if path.is_symlink() or not path.is_dir():
                continue
            if _STAGE.fullmatch(path.name):
                shutil.rmtree(path)
            elif _STEP.fullmatch(path.name) and not (path / MARKER).exists():
                say(f"note: {path} is incomplete; it is removed")
                shutil.rmtree(path)
            elif _STEP.fullmatch(path.name):
                remove_leftovers(path)
        remove_leftovers(self.folder)

    def newest(self) -> Path | None:
        """The newest valid checkpoint, the same in every process; None if there is none.

        Raises:
            ValueError: there are committed checkpoints, and all of them are damaged.
        """
        return self.world.share(
            self.world.together(self._find) if self.world.is_first else self.world.together(lambda: None)
        )

    def committed(self) -> list[Path]:
        """Folders of committed checkpoints, oldest first; does not verify their content."""
        return [path for path in self._steps() if (path / MARKER).exists()]

    def best(self, count: int = 1) -> list[Path]:
        """The committed checkpoints with the lowest loss, lowest first; the earlier one wins ties."""
        losses = [(loss, path) for path in self.committed() if (loss := self.loss(path)) is not None]
        return [path for _, path in sorted(losses)[:count]]

    def is_best(self, loss: float) -> bool:
        """Whether a checkpoint with this loss would be kept as one of the best, the same in every process; all call
        this."""
        best = self.best(self.keep_best) if self.world.is_first else []
        losses = [found for path in best if (found := self.loss(path)) is not None]
        return self.world.share(len(losses) < self.keep_best or any(loss < found for found in losses))

    def _find(self) -> Path | None:
        damaged = []
        for found in reversed(self._steps()):
            reason = why_unusable(found)
            if reason is None:
                return found
            say(f"warning: {found} is skipped: {reason}")
            if (found / MARKER).exists():
                damaged.append(found)
        if damaged:
            raise ValueError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(path.name for path in damaged)}); "
                "start again with another --out"
            )
        return None

    def _steps(self) -> list[Path]:
        """Checkpoint folders, oldest first; ignores folders with other names (`step-00000200-copy`)."""
        found = [path for path in self.folder.glob("step-*") if _STEP.fullmatch(path.name) and not path.is_symlink()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _open_stage(self, stage: Path) -> None:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)

    def _commit(self, stage: Path, final: Path, step: int) -> None:
        files = _files(stage)
        entries = {name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for name, path in files.items()}
        for path in files.values():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for folder in {path.parent for path in files.values()}:
            fsync_dir(folder)
        write_json(stage / MANIFEST, {"format": 1, "step": step, "processes": self.world.size, "files": entries})
        if final.exists():
            remove(final)  # never committed, or damaged
        os.replace(stage, final)
        fsync_dir(self.folder)
        write_atomic(final / MARKER, sha256_file(final / MANIFEST).encode())
        self._prune()

    def _prune(self) -> None:
        """Remove checkpoints that are neither among the newest `keep_last` nor the best, and leftovers of killed
        runs."""
        committed = self.committed()
        left_behind = [path for path in self._steps() if path not in committed]
        best = self.best(self.keep_best)
        old = [path for path in committed[: -self.keep_last] if path not in best]
        stages = [path for path in self.folder.glob(".step-*.tmp") if _STAGE.fullmatch(path.name)]
        for path in [*old, *left_behind, *stages]:
            remove(path)


def remove(folder: Path) -> None:
    """Delete a checkpoint, marker first, so that a partial one never counts as committed."""
    marker = folder / MARKER
    if marker.exists():
        marker.unlink()
        fsync_dir(folder)
    shutil.rmtree(folder)


def why_unusable(folder: Path) -> str | None:
    """None for a committed checkpoint whose files are all intact, otherwise the problem."""
    if not (folder / MARKER).is_file():
        return "it was never finished (no COMMITTED marker)"
    try:
        manifest = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != (folder / MARKER).read_text(errors="replace"):
            return f"{MANIFEST} is not the one that was committed"
        entries = read_json(folder / MANIFEST)["files"]
        found = _files(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return " ".join(str(error).split())
    wrong = sorted((entries.keys() ^ found.keys()) - {MANIFEST, MARKER})
    if wrong:
        return f"{wrong[0]} is {'missing' if wrong[0] in entries else 'not in the manifest'}"
    for name, entry in entries.items():
        if found[name].stat().st_size != entry["bytes"] or sha256_file(found[name]) != entry["sha256"]:
            return f"{name} is damaged"
    return None


def check_pickles(folder: Path) -> None:
    """Raise ValueError unless every file below `folder`, except safetensors and JSON, is a torch file without foreign
    code.

    Nothing is unpickled: this walks the opcodes of each pickle, and every name they would import must be on torch's
    list of safe globals or in ALLOWED_GLOBALS.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint

    for name, path in _files(folder).items():
        if path.suffix in (".json", ".safetensors") or name in (MARKER,):
            continue
        try:
            foreign = sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - ALLOWED_GLOBALS)
        except Exception as error:  # any parser error is a reason not to load
            raise ValueError(
                f"{path}: not a torch file that can be checked; it was not loaded "
                f"({' '.join(str(error).split())[:200]})"
            ) from None
        if foreign:
            raise ValueError(
                f"{path}: loading it would run {foreign[0]}; it was not loaded, and was not written by tessera"
            )


@contextmanager
def restricted_loads(allowed: Sequence[type]) -> Iterator[None]:
    """Context in which torch.load builds only tensors, plain data and `allowed` types, whatever its caller requests.

    DeepSpeed requests unrestricted loading (weights_only=False). Raises ValueError, which names the file, for anything
    else in it.
    """
    import torch

    load = torch.load

    def load_restricted(file: Any, map_location: Any = None, *ignored: Any, **options: Any) -> Any:
        try:
            return load(file, map_location, mmap=options.get("mmap"), weights_only=True)
        except pickle.UnpicklingError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{file}: holds more than tensors and plain data; it was not loaded, and does not come from a run of "
                f"tessera ({reason})"
            ) from None

    torch.load = load_restricted
    try:
        with torch.serialization.safe_globals(list(allowed)):
            yield
    finally:
        torch.load = load


def _files(folder: Path) -> dict[str, Path]:
    """All files below a folder by relative name; ValueError for links and other irregular files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.relative_to(folder)} is a link or not a regular file")
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path
    return found
