"""Public codecs by name: how a folder is recognized, read and written.

To add one, write a file with the three functions and add a line here. Systems are asked in this order; the first that
recognizes a folder reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...configs.schema import nearest_name
from ..base import Tokenizer
from .encodec import is_encodec, read_encodec, write_encodec
from .encodec_native import (
    is_audiocraft,
    is_encodec_package,
    read_audiocraft,
    read_encodec_package,
    write_audiocraft,
    write_encodec_package,
)
from .folder import PublicFolder
from .mimi import is_mimi, read_mimi, write_mimi
from .moshi import is_moshi, read_moshi, write_moshi


@dataclass(frozen=True)
class PublicCodec:
    """The layout of one public codec."""

    recognize: Callable[[PublicFolder], bool]
    """Whether a folder is one, by config.json or the names of its tensors."""
    read: Callable[[PublicFolder, int | None], Tokenizer]
    """read(folder, codebooks); codebooks None: all."""
    write: Callable[[Path, Tokenizer], None]
    """write(folder, tokenizer); CannotWrite if the layout cannot represent the tokenizer."""


PUBLIC_CODECS = {
    "encodec": PublicCodec(is_encodec, read_encodec, write_encodec),
    "mimi": PublicCodec(is_mimi, read_mimi, write_mimi),
    "moshi": PublicCodec(is_moshi, read_moshi, write_moshi),
    "audiocraft": PublicCodec(is_audiocraft, read_audiocraft, write_audiocraft),
    "encodec-package": PublicCodec(is_encodec_package, read_encodec_package, write_encodec_package),
}


def recognize_codec(path: str | Path) -> str | None:
    """Name of the public codec in a folder or file, None if it is none that is known."""
    folder = PublicFolder(path)
    for name, codec in PUBLIC_CODECS.items():
        try:
            if codec.recognize(folder):
                return name
        except (ValueError, OSError):
            continue
    return None


def read_public_codec(path: str | Path, codebooks: int | None = None) -> Tokenizer:
    """Read a public codec as a frozen tokenizer.

    Args:
        path: a folder, or one file of weights.
        codebooks: number of codebooks, coarse first; None: all that the file has.
    Raises:
        ValueError: it is no codec that is known, or one that is not supported; the message says what was found.
    """
    name = recognize_codec(path)
    if name is None:
        raise ValueError(f"{path}: no public codec that is known here; known are {', '.join(PUBLIC_CODECS)}")
    return PUBLIC_CODECS[name].read(PublicFolder(path), codebooks)


def write_public_codec(name: str, folder: str | Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer in the layout of a public codec; CannotWrite if that cannot represent it."""
    if name not in PUBLIC_CODECS:
        raise ValueError(f"no public codec '{name}'; {nearest_name(name, PUBLIC_CODECS)}")
    PUBLIC_CODECS[name].write(Path(folder), tokenizer)
