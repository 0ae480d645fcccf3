"""Alignments of the items of a corpus, from beside the media or from a folder that `tessera align` wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..alignment.alignment import TimedUnits
from ..alignment.alignment_file import EXTENSIONS, MAX_FILE_BYTES, read_alignment
from .corpus_items import Corpus
from .media import MediaError, open_regular


def alignment_path(folder: Path, item_id: str) -> Path:
    """The file of an item in a folder of alignments: of "a/b.wav" it is a/b.align."""
    return folder / PurePosixPath(item_id).with_suffix(EXTENSIONS[0])


class ItemAlignments:
    """Alignments by item.

    Args:
        folder: folder of alignments, None: those that the corpus has itself.
    Raises:
        FileNotFoundError: no such folder.
    """

    def __init__(self, corpus: Corpus, folder: str | None):
        self.corpus, self.ids = corpus, corpus.ids()
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of alignments; tessera align CONFIG writes one")

    def read(self, number: int) -> TimedUnits | None:
        """The alignment of an item; None if the corpus has none for it. Raises MediaError if it is unusable, or missing
        in the folder."""
        if self.folder is None:
            return self.corpus.alignment(number)
        path = alignment_path(self.folder, self.ids[number])
        try:
            with open_regular(path) as file:
                return read_alignment(file.read(MAX_FILE_BYTES + 1), path.suffix)
        except FileNotFoundError:
            raise MediaError(f"{path}: no such file; run tessera align for this recording") from None
        except ValueError as error:
            raise error if isinstance(error, MediaError) else MediaError(f"{path}: {error}") from None

    def digest(self, numbers: Sequence[int]) -> str | None:
        """SHA-256 of the alignments of these items; None if none has one. It does not depend on paths."""
        digest, found = hashlib.sha256(), False
        for number in numbers:
            try:
                timed = self.read(number)
            except MediaError:
                found = True
                digest.update(b'["unusable"]')
                continue
            found |= timed is not None
            digest.update(json.dumps(None if timed is None else [timed.units, timed.boundaries]).encode())
        return digest.hexdigest() if found else None
