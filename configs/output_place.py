"""Places that output is written to: checked before the work begins, and described when they cannot be written."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path


def prepare_folder(folder: str | Path) -> None:
    """Make a folder for output, with its parents, and check that files can be made in it.

    Raises:
        OSError: of the class that the system's error has; one line that names the folder, what is in the way and what
            to do.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error.errno, is_folder=True) from None


def prepare_file(path: str | Path) -> None:
    """Make the folder of an output file, with its parents, and check that the file can be written.

    Raises:
        OSError: as `prepare_folder`; also where the path is a folder, or its name too long.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.lstat(path)  # raises for a name that is too long
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error.errno) from None


def cannot_write(path: str | Path, number: int | None, is_folder: bool = False) -> OSError:
    """The error for output that cannot be written: what was asked, what is in the way, what to do.

    Args:
        path: what was to be written.
        number: the system's errno.
        is_folder: the path is a folder for files.
    """
    path = Path(path)
    number = number or errno.EIO
    places = [path, *path.parents] if is_folder else [*path.parents]
    found = next((place for place in places if os.path.lexists(place)), Path("."))
    if number == errno.EISDIR:
        reason = "a folder of that name is in the way; name a file"
    elif number == errno.ENAMETOOLONG:
        reason = f"the name is too long ({len(os.fsencode(path.name))} bytes); name a shorter one"
    elif number == errno.ELOOP:
        reason = "its links lead in a circle; name another place"
    elif number in (errno.EEXIST, errno.ENOTDIR) and not found.is_dir():
        reason = f"'{found}' is no folder, and in the way; name another place"
    elif number in (errno.EACCES, errno.EPERM):
        reason = f"you may not write in the folder '{found}'; name another place"
    elif number == errno.EROFS:
        reason = f"the folder '{found}' can only be read; name another place"
    elif number == errno.ENOENT:
        reason = f"no file can be made in the folder '{found}'; name another place"
    else:
        reason = f"{os.strerror(number).lower()}; name another place"
    error = type(OSError(number, ""))(
        f"{path}: cannot be written: {reason}"
    )  # the class that Python has for the number
    error.errno = number
    return error
