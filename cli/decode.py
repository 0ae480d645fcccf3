"""`tessera decode`: codes to media files."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class SoundFormat(str, Enum):
    """How sound is written."""

    wav = "wav"
    flac = "flac"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(decode)


def decode(
    codes: Annotated[Path, typer.Argument(metavar="FILE", help="File of codes, as tessera encode writes it.")],
    tokenizer: Annotated[str, typer.Option(help="Directory of a tokenizer or a model, or a bundled model's name.")],
    output: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write the media to.")],
    sound: Annotated[SoundFormat, typer.Option("--format", help="Of sound; pictures are PNG.")] = SoundFormat.wav,
) -> None:
    """Turn codes back into sound or pictures, one file an item, named like the file it was made of.

    Example: tessera decode codes.safetensors --tokenizer speech -o decoded

    Codes of another tokenizer are refused. The paths written are printed on stdout.
    """
    from ..tokenize.codes_file import read_codes
    from ..tokenize.transcode import decode_to_files
    from .tokenizers import open_tokenizer

    opened = open_tokenizer(tokenizer)
    _, items = read_codes(codes, opened.spec)
    if output.is_file():
        raise ValueError(f"-o {output}: a file is in the way; name a folder")
    for path in decode_to_files(items, opened, output, f".{sound.value}", progress=True):
        print(path)
    print(f"{output}: {len(items)} files decoded by tokenizer {opened.spec.name}", file=sys.stderr)
