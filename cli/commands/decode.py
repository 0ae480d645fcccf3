"""`tessera decode`: decodes codes to media files."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ...configs.printable import say


class AudioFormat(str, Enum):
    """File format of audio."""

    wav = "wav"
    flac = "flac"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(decode)


def decode(
    codes: Annotated[Path, typer.Argument(metavar="FILE", help="File of codes, as tessera encode writes it.")],
    tokenizer: Annotated[str, typer.Option(help="Directory of a tokenizer or a model, or a bundled model's name.")],
    output: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write the media to.")],
    model: Annotated[
        str | None, typer.Option(help="The coder a compressed file was written with; default: the tokenizer's own.")
    ] = None,
    audio_format: Annotated[AudioFormat, typer.Option("--format", help="Of audio; images are PNG.")] = AudioFormat.wav,
) -> None:
    """Decode codes to audio or images, one file per item, named like its source file.

    Example: tessera decode codes.safetensors --tokenizer speech -o decoded

    Codes of another tokenizer are refused. The paths written are printed on stdout. If a compressed file has damaged
    chunks, the rest is decoded with gaps; each damaged chunk is named on stderr, and the exit code is 1.
    """
    from ...tokenize.compression.file_format import DecoderDisagrees, is_compressed, read_compressed
    from ...tokenize.data.codes_file import read_codes
    from ...tokenize.data.transcode import decode_to_files
    from ..output_files import prepare_outputs, say_older
    from ..resolve import coder_finder, open_tokenizer

    opened = open_tokenizer(tokenizer)
    damage: list[str] = []
    if is_compressed(codes):
        try:
            restored = read_compressed(codes, opened.spec, coder_finder(model, tokenizer, opened.spec))
        except DecoderDisagrees as error:
            say(f"tessera: {error}")
            raise typer.Exit(1) from None
        items, damage = restored.items, restored.damage
    elif model is not None:
        raise ValueError(f"--model: {codes} is not compressed; leave --model out")
    else:
        _, items = read_codes(codes, opened.spec)
    if os.path.isfile(output):
        raise ValueError(f"-o {output}: is an existing file; name a folder")
    before = prepare_outputs([output / "0"])
    written = []
    for path in decode_to_files(items, opened, output, f".{audio_format.value}", progress=True):
        written.append(path)
        print(path)
    say_older(before, written)
    say(f"{output}: {len(items)} files decoded by tokenizer {opened.spec.name}")
    for line in damage:
        say(f"tessera: {codes}: {line}")
    if damage:
        raise typer.Exit(1)
