"""`tessera encode`: encodes media files to codes."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...configs.printable import say

if TYPE_CHECKING:
    from ...tokenize.compression.integer_network import CoderNet
    from ...tokenize.data.codes_file import CodesItem
    from ...tokenize.spec import TokenSpec


class FitChoice(str, Enum):
    """See `read_image`."""

    exact = "exact"
    crop = "crop"
    stretch = "stretch"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(encode)


def encode(
    media: Annotated[list[Path], typer.Argument(help="Audio or image files, or folders of them.")],
    tokenizer: Annotated[str, typer.Option(help="Directory of a tokenizer or a model, or a bundled model's name.")],
    output: Annotated[
        Path, typer.Option("-o", "--out", help="File of codes to write (.safetensors; with --compress .tsc).")
    ],
    compress: Annotated[bool, typer.Option("--compress", help="Write a smaller file: arithmetic coding.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="With --compress: directory of a coder or a model that has one, or a bundled model."),
    ] = None,
    fit: Annotated[FitChoice, typer.Option(help="How to treat images of another size.")] = FitChoice.exact,
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
        raise ValueError(f"{', '.join(map(str, media))}: no audio or image files found")
    if not items:
        raise ValueError(f"no codes were written to {output}: none of {len(skipped)} files could be used")
    written = _write(output, opened.spec, items, compress, coder)
    frames = [item.codes.shape[1] for item in items]
    if as_json:
        listed = [{"name": item.name, "frames": length} for item, length in zip(items, frames, strict=True)]
        written |= {"file": str(output), "spec": opened.spec.model_dump(), "items": listed, "skipped": skipped}
        print(json.dumps(written))
    what = f"{len(items)} items, {sum(frames)} frames of {opened.spec.num_codebooks} codes"
    say(f"{output}: {what} of tokenizer {opened.spec.name}")


def _write(
    output: Path, spec: TokenSpec, items: list[CodesItem], compress: bool, coder: CoderNet | None
) -> dict[str, Any]:
    """Write the codes; returns what --json prints about compression."""
    if not compress:
        from ...tokenize.data.codes_file import write_codes

        write_codes(output, spec, items)
        return {}
    from ...tokenize.compression.file_format import write_compressed

    found = write_compressed(output, spec, items, coder)
    share = 8 * found.size / found.nominal_bits
    say(f"{found.size} bytes, {share:.1%} of fixed-length codes, by the {found.model} model")
    return {"compressed": asdict(found)}
