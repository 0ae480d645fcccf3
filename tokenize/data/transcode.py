"""Encoding of media files to codes, and decoding of codes to media files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from ...configs.names import output_stems
from ..spec import AudioGeometry
from ..tokenizer import Tokenizer
from .codes_file import CodesItem
from .corpus_items import find_media, spell
from .media import (
    DEFAULT_LIMITS,
    Fit,
    MediaError,
    MediaLimits,
    Notes,
    print_notes,
    read_audio,
    read_image,
    write_audio,
    write_image,
)


def encode_files(
    paths: Iterable[str | Path],
    tokenizer: Tokenizer,
    fit: Fit = "exact",
    limits: MediaLimits = DEFAULT_LIMITS,
    progress: bool = False,
) -> tuple[list[CodesItem], list[str]]:
    """Encode media files; unusable files are skipped.

    Args:
        paths: files, and folders whose media files are all encoded.
        fit: handling of images of another size (see `read_image`).
        progress: show a progress bar on stderr.
    Returns:
        the items in file order, and one line for each skipped file.
    Raises:
        FileNotFoundError: a path does not exist.
    """
    notes = Notes()
    files = list_media(paths, notes)
    geometry, items, skipped = tokenizer.spec.geometry, [], []
    for path in tqdm(files, desc="encoding", unit="file", file=sys.stderr, disable=None if progress else True):
        try:
            if isinstance(geometry, AudioGeometry):
                media = read_audio(path, geometry.sample_rate, geometry.channels, limits, notes)
            else:
                media = read_image(path, geometry.height, geometry.width, geometry.channels, limits, fit, notes)
        except (MediaError, OSError) as error:  # deleted since it was listed
            skipped.append(str(error))
            continue
        samples = media.shape[-1] if isinstance(geometry, AudioGeometry) else None
        items.append(CodesItem(spell(path.name), tokenizer.encode(media[None]).codes[0].cpu(), samples))
    print_notes(notes, progress)
    return items, skipped


def list_media(paths: Iterable[str | Path], notes: Notes | None = None) -> list[Path]:
    """The given files, and the media files of the given folders, in order. FileNotFoundError: no such path.

    Links that lead out of a given folder are not followed; `notes` collects them and files of other kinds.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [path / name for name in find_media(path, notes=notes)]
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file")
    return files


def decode_to_files(
    items: Sequence[CodesItem], tokenizer: Tokenizer, out: str | Path, extension: str = ".wav", progress: bool = False
) -> list[Path]:
    """Decode items into a folder.

    Args:
        out: folder, created if missing. x.flac becomes out/x.wav; a second x becomes out/x-1.wav.
        extension: of audio files, .wav or .flac; images are .png.
        progress: show a progress bar on stderr.
    Returns:
        the files written, in item order.
    """
    geometry = tokenizer.spec.geometry
    ending = extension if isinstance(geometry, AudioGeometry) else ".png"
    paths = [Path(out) / f"{stem}{ending}" for stem in output_stems(item.name for item in items)]
    bar = tqdm(total=len(items), desc="decoding", unit="file", file=sys.stderr, disable=None if progress else True)
    with bar:
        for item, path in zip(items, paths, strict=True):
            media = tokenizer.decode(item.codes[None])[0].cpu()
            if isinstance(geometry, AudioGeometry):
                write_audio(path, media[:, : item.num_samples], geometry.sample_rate)
            else:
                write_image(path, media)
            bar.update(1)
    return paths
