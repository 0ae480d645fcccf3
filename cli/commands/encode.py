"""`tessera encode`: encodes media files to codes."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ...configs.printable import say


class FitChoice(str, Enum):
    """See `read_image`."""

    exact = "exact"
    crop = "crop"
    stretch = "stretch"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(encode)


def encode(
    media: Annotated[list[Path], typer.Argument(help="Sound or picture files, or folders of them.")],
    tokenizer: Annotated[str, typer.Option(help="Directory of a tokenizer or a model, or a bundled model's name.")],
    output: Annotated[
        Path, typer.Option("-o", "--out", help="File of codes to write (.safetensors; with --compress .tsc).")
    ],
    compress: Annotated[bool, typer.Option("--compress", help="Write a smaller file: arithmetic coding.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="With --compress: directory of a coder or a model that has one, or a bundled model."),
    ] = None,
    fit: Annotated[FitChoice, typer.Option(help="What to do with pictures of another size.")] = FitChoice.exact,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")] = False,
) -> None:
    """Encode media files to codes.

    Example: tessera encode one.wav two.flac --tokenizer speech -o codes.safetensors

    Compression is lossless. Without --model it uses only code frequencies, and any tessera decode reads the file; with
    it the same --model is needed there.
    Example: tessera encode recordings --tokenizer speech --compress --model speech -o codes.tsc

    Unusable files are listed and skipped; the exit code is 2 only if all are unusable.
    """
    from ...configs.output_place import prepare_file
    from ...tokenize.bundled import shipped_path
    from ...tokenize.data.codes_file import write_codes
    from ...tokenize.data.transcode import encode_files
    from ..resolve import open_coder, open_tokenizer, report_skipped

    suffix = ".tsc" if compress else ".safetensors"
    if output.suffix != suffix:
        raise ValueError(f"-o {output}: name a file that ends in {suffix}")
    if model is not None and not compress:
        raise ValueError("--model: it is for --compress; give both or neither")
    opened = open_tokenizer(tokenizer)
    prepare_file(output)
    coder = None if model is None else open_coder(model, opened.spec)
    items, skipped = encode_files([shipped_path(path) for path in media], opened, fit.value, progress=True)
    report_skipped(skipped, len(items) + len(skipped))
    if not items and not skipped:
        raise ValueError(f"{', '.join(map(str, media))}: no sound or picture files are there")
    if not items:
        raise ValueError(f"no codes were written to {output}: none of {len(skipped)} files could be used")
    found: dict = {}
    if compress:
        from ...tokenize.compression.file_format import write_compressed

        wrote = write_compressed(output, opened.spec, items, coder)
        found = {"compressed": asdict(wrote)}
        share = 8 * wrote.size / wrote.nominal_bits
        say(f"{wrote.size} bytes, {share:.1%} of fixed-length codes, by the {wrote.model} model")
    else:
        write_codes(output, opened.spec, items)
    frames = [item.codes.shape[1] for item in items]
    if as_json:
        listed = [{"name": item.name, "frames": length} for item, length in zip(items, frames, strict=True)]
        found |= {"file": str(output), "spec": opened.spec.model_dump(), "items": listed, "skipped": skipped}
        print(json.dumps(found))
    what = f"{len(items)} items, {sum(frames)} frames of {opened.spec.num_codebooks} codes"
    say(f"{output}: {what} of tokenizer {opened.spec.name}")
