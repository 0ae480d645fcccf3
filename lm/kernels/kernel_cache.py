"""A cache folder for compiled code that only this user can have written, and loading of code from memory.

Code is trusted according to who may write its file: the folder and the file must belong to this user and be writable by
nobody else, each parent folder must belong to this user or root and be writable by nobody else (or be sticky, as /tmp
is), and none of them may be a symbolic link. The SHA-256 at the end of a file only shows that it is complete. A file is
opened once and read into memory, so the bytes that were checked are the bytes that are loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 64 << 20
_DIGEST_BYTES = 32
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class NotTrusted(OSError):
    """Another user can change the folder or file, or it is reached through a link."""


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/tessera, by default ~/.cache/tessera; None if neither is an absolute path.

    The XDG base directory specification requires relative paths to be ignored.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # no HOME, and no entry for this user
            return None
    return base / "tessera" if base.is_absolute() else None


def read_cached(folder: Path, name: str) -> bytes | None:
    """The content written by `write_cached`; None if missing or damaged. OSError: it is not trusted."""
    with _trusted_folder(folder, make=False) as directory:
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise NotTrusted(f"{folder / name} is not a file that only this user can write")
            data = file.read(MAX_BYTES)
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_cached(folder: Path, name: str, content: bytes) -> None:
    """Write a file atomically: complete or absent after a kill. OSError: disk full, read-only, or not trusted."""
    part = f".{name}.{secrets.token_hex(8)}.part"
    with _trusted_folder(folder, make=True) as directory:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            with open(handle, "wb") as file:
                file.write(content + hashlib.sha256(content).digest())
                file.flush()
                os.fsync(handle)
            os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=directory)
            raise
        os.fsync(directory)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user can enter, removed afterwards. OSError: there is no place for one."""
    made = _make_private_folder()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _make_private_folder() -> Path:
    """In the folder for temporary files, or in the cache if that is read-only or world-writable."""
    try:
        above = Path(os.path.realpath(tempfile.gettempdir()))
        with _trusted_folder(above, make=False, own=False):
            return Path(tempfile.mkdtemp(prefix="tessera-", dir=above))  # mode 0700
    except OSError:
        cache = cache_folder()
        if cache is None:
            raise
        with _trusted_folder(cache, make=True):
            return Path(tempfile.mkdtemp(prefix=".build-", dir=cache))


def load_code(content: bytes, name: str) -> ctypes.CDLL:
    """Load a shared library that is already in memory; OSError if loading fails."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # not permitted on some machines
            handle = os.memfd_create(name)  # stays open: dlopen returns this library if its path is reused
            try:
                _write_all(handle, content)
                return ctypes.CDLL(f"/proc/self/fd/{handle}")
            except OSError:
                os.close(handle)
                raise
    with private_folder() as folder:
        path = folder / name
        path.write_bytes(content)
        return ctypes.CDLL(str(path))


def _write_all(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


@contextlib.contextmanager
def _trusted_folder(folder: Path, make: bool, own: bool = True) -> Iterator[int]:
    """Open a folder and each parent without following links, check them, and return a handle of the folder.

    Args:
        make: create missing folders, for this user alone.
        own: the folder itself must belong to this user; False: the rules of its parents apply.
    """
    if not folder.is_absolute() or ".." in folder.parts:
        raise NotTrusted(f"{folder} is not an absolute path")
    names = folder.parts[1:]
    handle = os.open(folder.anchor, _FOLDER)
    try:
        path = Path(folder.anchor)
        for number, name in enumerate(names):
            try:
                below = os.open(name, _FOLDER, dir_fd=handle)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):  # created concurrently by another process
                    os.mkdir(name, 0o700, dir_fd=handle)
                below = os.open(name, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle, path = below, path / name
            last = own and number == len(names) - 1
            found = os.fstat(handle)
            if last and found.st_uid == os.geteuid() and found.st_mode & 0o022:
                os.fchmod(handle, 0o700)  # an earlier version created it with the umask's mode
                found = os.fstat(handle)
            _check_folder(found, path, last)
        yield handle
    finally:
        os.close(handle)


def _check_folder(found: os.stat_result, path: Path, own: bool) -> None:
    if found.st_uid not in ((os.geteuid(),) if own else (os.geteuid(), 0)):
        raise NotTrusted(f"{path} belongs to another user")
    if found.st_mode & 0o022 and (own or not found.st_mode & stat.S_ISVTX):
        raise NotTrusted(f"{path} can be written by other users")
