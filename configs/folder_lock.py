"""Exclusive write access to a folder: a lock that is released when its process ends.

    with lock_folder(out, "tessera shards"):
        ...                                     a second process gets FolderInUse, which names the first

The lock is flock() on a file in the folder. The system releases it however the process ends, so a lock never outlives
its holder. A forked child would inherit the open file and keep the lock alive, so it is closed in the child; programs
started by exec do not inherit it. The holder removes the file while it holds the lock, so a process that then locks the
removed file notices it and tries again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .output_place import prepare_folder
from .printable import say

LOCK_FILE = ".tessera.lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Error numbers of file systems without locks."""
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{1,8}\.part|\.tmp[A-Za-z0-9]{6}", re.DOTALL)
"""Temporary files of `write_atomic` and of safetensors."""

_held: set[int] = set()
_watching_forks = False


class FolderInUse(ValueError):
    """Another process is writing into the folder; the message names it."""


@contextmanager
def lock_folder(folder: str | Path, purpose: str, below: Sequence[str] = ()) -> Iterator[None]:
    """Lock a folder for writing, and remove temporary files left there by a killed process.

    Args:
        folder: created if missing; removed again if an error occurs before anything is written to it.
        purpose: what the holder does, for the error message of a refused process ("tessera shards").
        below: patterns of subfolders that are also cleaned of temporary files ("samples/*").
    Raises:
        FolderInUse: another process, or other code in this one, holds the lock. FileExistsError: it is a file.

    A folder on a file system without locks (with a note on stderr) or without write permission is not locked.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    prepare_folder(folder)
    handle = _acquire(folder, purpose)
    refused = False
    try:
        if handle is not None:
            remove_leftovers(folder, below)
        yield
    except (ValueError, OSError):
        refused = True
        raise
    finally:
        if handle is not None:
            _release(folder / LOCK_FILE, handle)
        for path in made if refused else []:
            with suppress(OSError):  # not empty
                path.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether a folder is empty except for the lock file."""
    return all(path.name == LOCK_FILE for path in folder.iterdir())


def remove_leftovers(folder: Path, below: Sequence[str] = ()) -> None:
    """Remove temporary files of a killed process from a folder that this process has locked."""
    for place in (folder, *(found for pattern in below for found in folder.glob(pattern))):
        if place.is_symlink() or not place.is_dir():
            continue
        for path in list(place.iterdir()):
            if not _LEFTOVER.fullmatch(path.name) or path.is_symlink():
                continue
            if path.is_dir():
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink(missing_ok=True)


def _acquire(folder: Path, purpose: str) -> int | None:
    """Handle of the locked file; None if locking is not supported."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _unlocked(folder, "this system has none")
    path = folder / LOCK_FILE
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return None  # writing will raise the system's error
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        except FileNotFoundError:
            pass  # the holder has just removed it
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = _describe(handle)
                os.close(handle)
                raise FolderInUse(
                    f"{folder}: another process is writing there ({holder}); wait until it ends or stop it, or name "
                    "another folder"
                ) from None
            os.close(handle)
            if error.errno in _NO_LOCKS:
                path.unlink(missing_ok=True)
                return _unlocked(folder, os.strerror(error.errno))
            raise
        os.close(handle)
    _close_in_children(handle)
    note = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "purpose": purpose,
    }
    with suppress(OSError):  # full disk: the lock works without the note
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(note) + "\n").encode(), 0)
    return handle


def _release(path: Path, handle: int) -> None:
    if handle not in _held:  # a forked child, which has closed it
        return
    with suppress(OSError):
        path.unlink()
    _held.discard(handle)
    os.close(handle)


def _unlocked(folder: Path, why: str) -> None:
    say(f"note: {folder} cannot be locked ({why}); make sure that no second process writes there")


def _close_in_children(handle: int) -> None:
    global _watching_forks
    _held.add(handle)
    if not _watching_forks:
        os.register_at_fork(after_in_child=_close_all)
        _watching_forks = True


def _close_all() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


def _describe(handle: int) -> str:
    """Description of the lock's holder from the lock file; untrusted text, so it is truncated and made printable."""
    try:
        note = json.loads(os.pread(handle, 4096, 0))
        words = f"process {note['pid']} on {note['host']} since {note['since']}: {note['purpose']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "which one is not known"
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:300]
