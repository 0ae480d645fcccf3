"""`tessera encode`: media files to codes."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class FitChoice(str, Enum):
    """See `read_picture`."""

    exact = "exact"
    crop = "crop"
    stretch = "stretch"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(encode)


def encode(
    media: Annotated[list[Path], typer.Argument(help="Sound or picture files, or folders of them.")],
    tokenizer: Annotated[str, typer.Option(help="Directory of a tokenizer or a model, or a bundled model's name.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="File of codes to write (.safetensors).")],
    fit: Annotated[FitChoice, typer.Option(help="What to do with pictures of another size.")] = FitChoice.exact,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")] = False,
) -> None:
    """Turn media files into codes.

    Example: tessera encode one.wav two.flac --tokenizer speech -o codes.safetensors

    Files that cannot be used are listed and left out; the exit code is 2 only if none could be used.
    """
    from ..tokenize.codes_file import write_codes
    from ..tokenize.transcode import encode_files
    from .tokenizers import open_tokenizer, report_skipped

    if output.suffix != ".safetensors":
        raise ValueError(f"-o {output}: name a file that ends in .safetensors")
    opened = open_tokenizer(tokenizer)
    items, skipped = encode_files(media, opened, fit.value, progress=True)
    report_skipped(skipped, len(items) + len(skipped))
    if not items:
        raise ValueError(f"no codes were written to {output}: none of {len(skipped)} files could be used")
    write_codes(output, opened.spec, items)
    frames = [item.codes.shape[1] for item in items]
    if as_json:
        listed = [{"name": item.name, "frames": length} for item, length in zip(items, frames, strict=True)]
        print(json.dumps({"file": str(output), "spec": opened.spec.model_dump(), "items": listed, "skipped": skipped}))
    what = f"{len(items)} items, {sum(frames)} frames of {opened.spec.num_codebooks} codes"
    print(f"{output}: {what} of tokenizer {opened.spec.name}", file=sys.stderr)
