"""Media files before decoding: known formats, limits, and safe opening."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import PositiveFloat, PositiveInt

from ...configs.printable import one_line, printable, say
from ...configs.schema import Config

AUDIO_FORMATS = {
    ".wav": ("WAV", "WAVEX", "RF64"),
    ".flac": ("FLAC",),
    ".ogg": ("OGG",),
    ".oga": ("OGG",),
    ".opus": ("OGG",),
    ".mp3": ("MP3", "MPEG"),
    ".aif": ("AIFF",),
    ".aiff": ("AIFF",),
    ".aifc": ("AIFF",),
}
"""Extension -> libsndfile format names that its content may have."""
CONTAINER_FORMATS = {
    ".flac": "flac",
    ".mp3": "mp3",
    ".ogg": "ogg",
    ".oga": "ogg",
    ".opus": "ogg",
    ".m4a": "mov",
    ".m4b": "mov",
    ".mp4": "mov",
    ".m4v": "mov",
    ".mov": "mov",
    ".3gp": "mov",
    ".aac": "aac",
    ".wma": "asf",
    ".wmv": "asf",
    ".webm": "matroska",
    ".mkv": "matroska",
    ".mka": "matroska",
    ".avi": "avi",
}
"""Extension -> the only FFmpeg demuxer that is tried. A guessed demuxer could be that of a playlist, which opens other
files."""
IMAGE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
}
"""Extension -> the only Pillow decoder that is tried."""
AUDIO_EXTENSIONS = (*AUDIO_FORMATS, *(name for name in CONTAINER_FORMATS if name not in AUDIO_FORMATS))
KIND_NAMES = {"audio": "an audio file", "picture": "an image"}
MEDIA_EXTENSIONS = (*AUDIO_EXTENSIONS, *IMAGE_FORMATS)


class MediaError(ValueError):
    """An unusable media file; the message is one line with the file and the reason, safe to print and store."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class MediaLimits(Config):
    """Limits for media files; checked against headers before decoding, and against the decoded content."""

    max_seconds: PositiveFloat = 1800.0
    """Longest duration of an audio file."""
    min_sample_rate: PositiveInt = 4000
    """Lowest sample rate of an audio file."""
    max_sample_rate: PositiveInt = 192_000
    """Highest sample rate of an audio file."""
    max_channels: PositiveInt = 16
    """Most channels of an audio file."""
    max_pixels: PositiveInt = 32_000_000
    """Most pixels of an image, width times height."""


DEFAULT_LIMITS = MediaLimits()


class Notes:
    """Notes for the user, for example about channels that were mixed down: files are counted, and each kind of note is
    one line."""

    def __init__(self):
        self.added: list[str] = []
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def say(self, line: str) -> None:
        """Add a line."""
        self.added.append(printable(line))

    def add(self, what: str, path: str | Path) -> None:
        """Count a file. what: continues "3 files", for example "with several channels: they are mixed down"."""
        self.counts[what] += 1
        self.first.setdefault(what, printable(path))

    def lines(self) -> list[str]:
        """All notes, one per line."""
        counted = [
            f"{count} {'file' if count == 1 else 'files'} {what} ({self.first[what]}{', ...' if count > 1 else ''})"
            for what, count in self.counts.items()
        ]
        return [*self.added, *counted]


def print_notes(notes: Notes, show: bool = True) -> None:
    """Print notes on stderr, one per line."""
    for line in notes.lines() if show else ():
        say(f"note: {line}")


def media_kind(path: str | Path) -> Literal["audio", "picture"]:
    """Audio or image, by the extension; MediaError if it is neither."""
    extension = Path(path).suffix.lower()
    if extension in AUDIO_EXTENSIONS:
        return "audio"
    if extension in IMAGE_FORMATS:
        return "picture"
    raise MediaError(
        f"{path}: '{extension}' is not a supported media file type; use one of {' '.join(MEDIA_EXTENSIONS)}"
    )


def open_media(path: Path, kind: str) -> BinaryIO:
    """Open a media file of the given kind.

    Raises:
        MediaError: another kind, empty, or not a regular file. FileNotFoundError: no such file.
    """
    if media_kind(path) != kind:
        raise MediaError(
            f"{path}: {KIND_NAMES[kind]} is needed here, '{path.suffix}' is {KIND_NAMES[media_kind(path)]}"
        )
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise MediaError(f"{path}: the file is empty")
    return file


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; pipes (which would block), sockets and devices are rejected.

    Raises:
        MediaError: not a regular file, or no permission. FileNotFoundError: no such file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | OPEN_FLAGS)
    except FileNotFoundError:
        raise FileNotFoundError(f"{printable(path)}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MediaError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise MediaError(f"{path}: not a file, but a folder, pipe, socket or device")
    return os.fdopen(handle, "rb")


OPEN_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
_SILENCING = threading.Lock()


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress stderr around calls to C libraries that write errors there that they also raise, or harmless messages.

    It affects the whole process, so use it only around such calls.
    """
    with _SILENCING:
        try:
            kept = os.dup(2)
        except OSError:  # stderr is closed
            yield
            return
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(null)
            os.close(kept)


def reason(error: BaseException) -> str:
    """The error message of a decoder in one line, without the path."""
    described = getattr(error, "strerror", None)  # PyAV's errors are OSErrors
    text = one_line(described or error) or type(error).__name__
    return text.removeprefix("Error opening ").rsplit(": ", 1)[-1][:200]
