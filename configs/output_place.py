"""Output paths: checks before work begins, and clear errors for paths that cannot be written."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path


def prepare_folder(folder: str | Path) -> None:
    """Create an output folder with its parents, and check that files can be created in it.

    Raises:
        OSError: of the same class as the system's error; one line with the folder, the reason and what to do.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error.errno, is_folder=True) from None


def prepare_file(path: str | Path) -> None:
    """Create the folder of an output file with its parents, and check that the file can be written.

    Raises:
        OSError: as `prepare_folder`; also if the path is a folder or its name is too long.
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
    """Build the error for output that cannot be written: the request, the reason, what to do.

    Args:
        path: the output path.
        number: errno of the system.
        is_folder: whether the path is a folder for output files.
    """
    path = Path(path)
    number = number or errno.EIO
    places = [path, *path.parents] if is_folder else [*path.parents]
    found = next((place for place in places if os.path.lexists(place)), Path("."))
    if number == errno.EISDIR:
        reason = "a folder of that name exists; name a file"
    elif number == errno.ENAMETOOLONG:
        reason = f"the name is too long ({len(os.fsencode(path.name))} bytes); choose a shorter one"
    elif number == errno.ELOOP:
        reason = "its symbolic links form a loop; choose another path"
    elif number in (errno.EEXIST, errno.ENOTDIR) and not found.is_dir():
        reason = f"'{found}' is not a folder; choose another path"
    elif number in (errno.EACCES, errno.EPERM):
        reason = f"no permission to write in the folder '{found}'; choose another path"
    elif number == errno.EROFS:
        reason = f"the folder '{found}' is read-only; choose another path"
    elif number == errno.ENOENT:
        reason = f"no file can be created in the folder '{found}'; choose another path"
    else:
        reason = f"{os.strerror(number).lower()}; choose another path"
    error = type(OSError(number, ""))(f"{path}: cannot be written: {reason}")  # Python's exception class for this errno
    error.errno = number
    return error
