"""fingerprint.json of a model directory: size and SHA-256 of each of its files.

It is written with every model directory and compared on loading. It detects damage and mixed-up files, but does not
authenticate their origin. It contains its own SHA-256 (`write_sealed_json`), so damage to itself is detected as well.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt

from .files import DamagedFile, read_sealed_json, sha256_file, write_sealed_json
from .schema import Config, check_config

FINGERPRINT_FILE = "fingerprint.json"
WEIGHT_FILES = ("lm.safetensors", "coarse.safetensors", "text_encoder/model.safetensors")
MODEL_FILES = (
    *("config.json", *WEIGHT_FILES, "text.model", "text.json", "units.json", "english.zip", "lexicon.tsv"),
    *("tokenizer/config.json", "tokenizer/tokenizer.safetensors"),
    *("clusters/config.json", "clusters/clusters.safetensors"),
    *("coder/coder.json", "coder/coder.safetensors"),
    *("text_encoder/config.json", "text_encoder/tokenizer.json", "text_encoder/spiece.model"),
    *("text_encoder/tokenizer_config.json", "text_encoder/special_tokens_map.json", "text_encoder/added_tokens.json"),
)
"""All files that are read from a model directory."""

_warned: set[Path] = set()


class FileFingerprint(Config):
    """One file."""

    bytes: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelFingerprint(Config):
    """fingerprint.json."""

    format: Literal["tessera-fingerprint"] = "tessera-fingerprint"
    version: Literal[1] = 1
    files: dict[str, FileFingerprint]
    """Path relative to the model directory -> fingerprint."""


def write_fingerprint(folder: Path, pending: Mapping[str, bytes] | None = None) -> list[str]:
    """Write the fingerprint of a model directory in its current state.

    Args:
        pending: contents of files that will be written afterwards.
    Returns:
        Names of the files in the fingerprint.
    """
    pending = pending or {}
    files = {}
    for name in MODEL_FILES:
        if name in pending:
            digest = hashlib.sha256(pending[name]).hexdigest()
            files[name] = FileFingerprint(bytes=len(pending[name]), sha256=digest)
        elif (folder / name).is_file():
            files[name] = FileFingerprint(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
    write_sealed_json(folder / FINGERPRINT_FILE, ModelFingerprint(files=files).model_dump(mode="json"))
    return list(files)


def renew_part(part: Path) -> None:
    """Update the fingerprint after a part of a model directory, for example its coder/, was rewritten.

    Does nothing if `part` is not in a model directory with a fingerprint.
    """
    folder = part.parent
    names = [name for name in MODEL_FILES if name.startswith(f"{part.name}/")]
    if not names or not (folder / FINGERPRINT_FILE).is_file():
        return
    found = _read(folder)
    files = {name: entry for name, entry in found.files.items() if name not in names}
    for name in names:
        if (folder / name).is_file():
            files[name] = FileFingerprint(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
    renewed = ModelFingerprint(files={name: files[name] for name in MODEL_FILES if name in files})
    write_sealed_json(folder / FINGERPRINT_FILE, renewed.model_dump(mode="json"))


def check_model_files(folder: Path) -> dict[str, str]:
    """Compare the files of a model directory with its fingerprint; for weights, only the sizes.

    Returns:
        The expected SHA-256 of each file of WEIGHT_FILES, to be checked while reading it. Empty, with a one-line
        warning, if there is no fingerprint: earlier versions did not write one.
    Raises:
        FileNotFoundError, DamagedFile: a file is missing, not listed, or changed; the message names it.
    """
    path = folder / FINGERPRINT_FILE
    if not os.path.lexists(path):
        _warn(folder)
        return {}
    if not path.is_file():
        raise DamagedFile(
            f"{path}: no such file, or a broken link; copy the model again, or run: tessera seal {folder}"
        )
    files = _read(folder).files
    on_purpose = f"or, if it was changed on purpose, run: tessera seal {folder}"
    for name in MODEL_FILES:
        path, entry = folder / name, files.get(name)
        if entry is None:
            if path.is_file():
                raise DamagedFile(f"{path}: {FINGERPRINT_FILE} does not list it; remove it, {on_purpose}")
            continue
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file, but {FINGERPRINT_FILE} lists it; copy the model again, {on_purpose}"
            )
        size = path.stat().st_size
        if size != entry.bytes:
            raise DamagedFile(
                f"{path}: damaged or changed: it has {size} bytes, {FINGERPRINT_FILE} says {entry.bytes}; copy the "
                f"model again, {on_purpose}"
            )
        if name not in WEIGHT_FILES and (found := sha256_file(path)) != entry.sha256:
            raise DamagedFile(
                f"{path}: damaged or changed: its SHA-256 is {found[:12]}, {FINGERPRINT_FILE} says "
                f"{entry.sha256[:12]}; copy the model again, {on_purpose}"
            )
    return {name: files[name].sha256 for name in WEIGHT_FILES if name in files}


def _read(folder: Path) -> ModelFingerprint:
    path = folder / FINGERPRINT_FILE
    data = read_sealed_json(path, advice=f"copy the model again, or run: tessera seal {folder}")
    found = check_config(data, ModelFingerprint, str(path))
    unknown = sorted(found.files.keys() - set(MODEL_FILES))
    if unknown:
        raise ValueError(f"{path}: lists {unknown[0][:80]!r}, which is not a file of a model; copy the model again")
    return found


def _warn(folder: Path) -> None:
    """Warn about a missing fingerprint, once per directory and process."""
    if folder.resolve() not in _warned:
        _warned.add(folder.resolve())
        print(
            f"warning: {folder} has no {FINGERPRINT_FILE} (earlier versions wrote none), so damage to its files would "
            f"go unnoticed; write one with: tessera seal {folder}",
            file=sys.stderr,
        )
