"""`tessera convert`: imports and exports checkpoints of public systems."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...configs.printable import say

if TYPE_CHECKING:
    from ...lm.checkpoints.weights_file import StorageName
    from ...tokenize.base import Tokenizer


class DtypeChoice(str, Enum):
    """See StorageName."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


TAKES = {
    "Tessera model": ("to", "dtype"),
    "Tessera tokenizer": ("to",),
    "public language model": ("tokenizer", "text-encoder", "dtype"),
    "public tokenizer": ("codebooks", "image-size"),
}
"""What a source may be -> the options that it takes."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(convert)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Public checkpoint (folder or file), Tessera model or tokenizer.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write, new or empty.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="Layout to write SRC in, if it is a Tessera model (musicgen, musicgen-audiocraft, parler, csm, "
            "qwen3-tts, llamagen, var) or tokenizer (encodec, ...).",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Of a public language model without its tokenizer: a directory, or a model's. Without it, DST is only "
            "a language model."
        ),
    ] = None,
    codebooks: Annotated[
        int | None,
        typer.Option(help="Of a public codec, the number of codebooks to keep, coarse first.", show_default="all"),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of a public image tokenizer, the side of the images in pixels.", show_default="as published"
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(help="Directory of the T5 text encoder of a public model whose own directory has none."),
    ] = None,
    dtype: Annotated[
        DtypeChoice | None, typer.Option(help="Storage of a language model's weights.", show_default="float32")
    ] = None,
) -> None:
    """Convert a public checkpoint to a Tessera model or tokenizer, or one of Tessera's to a public format.

    Example: tessera convert encodec_24khz out/encodec --codebooks 8

    Example: tessera convert musicgen-small out/musicgen

    Example: tessera convert out/musicgen out/back --to musicgen

    docs/public-models.md lists what is supported. Pickles are read if they hold only tensors and plain containers; a
    file that asks for more is refused, and nothing of it runs.
    """
    from ...configs.folder_lock import lock_folder

    _check_target(source, target)
    given = {
        "to": to,
        "tokenizer": tokenizer,
        "codebooks": codebooks,
        "image-size": image_size,
        "text-encoder": text_encoder,
        "dtype": None if dtype is None else dtype.value,
    }
    storage = "float32" if dtype is None else dtype.value
    with lock_folder(target, "tessera convert"):
        kind = _kind(source)
        for option, value in given.items():
            if value is not None and option not in TAKES[kind]:
                hint = "convert it without --to first, and its result with it" if option == "to" else "leave it out"
                raise ValueError(f"--{option} {value}: {source} is a {kind}, which this option is not for; {hint}")
        if kind == "Tessera model":
            _write_public(source, target, to, storage)
        elif kind == "Tessera tokenizer":
            _write_codec(source, target, to)
        elif kind == "public tokenizer":
            _read_codec(source, target, codebooks, image_size)
        else:
            _read_public(source, target, tokenizer, text_encoder, storage)


def _kind(source: Path) -> str:
    """What the source is, a key of TAKES; raises as `public_layout` if it is nothing that is known."""
    from ...configs.recognize import folder_kind
    from ...lm.public.registry import public_layout, recognize_model
    from ...tokenize.public.registry import recognize_codec

    own = folder_kind(source)
    if own in ("model", "tokenizer"):
        return f"Tessera {own}"
    if recognize_model(source) is None and recognize_codec(source) is not None:
        return "public tokenizer"
    public_layout(source)
    return "public language model"


def _check_target(source: Path, target: Path) -> None:
    """Raise unless the target is a new or empty folder apart from the source: nothing of the user's is overwritten."""
    if os.path.isdir(target) and any(target.iterdir()):  # a name that is too long is for lock_folder to say
        raise FileExistsError(f"{target}: is not empty; choose another folder")
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if here in there.parents or there in here.parents:
        raise ValueError(f"{target}: lies inside {source}, or the other way round; choose another folder")


def _read_codec(source: Path, target: Path, codebooks: int | None, image_size: int | None) -> None:
    from ...tokenize.public.registry import read_public_codec, recognize_codec

    opened = read_public_codec(source, codebooks, image_size)
    opened.save(target)
    spec = opened.spec
    shown = f"{spec.num_codebooks} codebooks of {max(spec.cardinalities)} codes, {_rate(opened)}"
    say(f"{target}: {recognize_codec(source)}, {shown}")
    say(f'load it with: tessera.load_tokenizer("{target}")')


def _rate(tokenizer: Tokenizer) -> str:
    from ...tokenize.spec import AudioGeometry

    geometry = tokenizer.spec.geometry
    if isinstance(geometry, AudioGeometry):
        return f"{geometry.frame_rate:g} frames a second of {geometry.sample_rate} Hz"
    return f"{geometry.num_frames} frames an image of {geometry.height} x {geometry.width}"


def _write_codec(source: Path, target: Path, to: str | None) -> None:
    from ...tokenize.public.registry import PUBLIC_CODECS, write_public_codec
    from ...tokenize.tokenizer import load_tokenizer

    if to is None:
        raise ValueError(f"{source} is a Tessera tokenizer; choose the layout: --to {' or --to '.join(PUBLIC_CODECS)}")
    write_public_codec(to, target, load_tokenizer(source))
    say(f"{target}: a tokenizer in the layout of {to}")


def _read_public(
    source: Path, target: Path, tokenizer: str | None, text_encoder: str | None, dtype: StorageName
) -> None:
    from ...lm.checkpoints.model_directory import save_lm, save_model
    from ...lm.conditioning.text_encoder import open_text_encoder
    from ...lm.public.registry import public_layout, read_public_model
    from ..resolve import open_tokenizer

    name = public_layout(source)
    opened = None if tokenizer is None else open_tokenizer(tokenizer)
    encoder = None if text_encoder is None else open_text_encoder(text_encoder)
    model = read_public_model(source, opened, encoder)
    lm, labels = model.lm, model.labels
    left_out = " and ".join(model.missing)
    card = f"# {target.name}\n\nConverted from a {name} checkpoint by `tessera convert`."
    card += f" {left_out.capitalize()} {'are' if len(model.missing) > 1 else 'is'} not in it.\n" if left_out else "\n"
    if model.tokenizer is None:
        save_lm(target, lm, labels, model.defaults, card, dtype)
        read = f'tessera.lm.checkpoints.model_directory.load_lm("{target}")'
    else:
        save_model(target, lm, model.tokenizer, model.text, labels, model.defaults, card, dtype, model.text_encoder)
        read = f'tessera.load("{target}")'
    size = f"{lm.num_parameters / 1e6:.1f} M parameters"
    say(f"{target}: {name}, {size}{f'; left out: {left_out}' if left_out else ''}")
    say(f"load it with: {read}")


def _write_public(source: Path, target: Path, to: str | None, dtype: StorageName) -> None:
    from ...lm.checkpoints.model_directory import load_lm, load_model
    from ...lm.public.registry import PUBLIC, layout_of

    if to is None:
        raise ValueError(f"{source} is a Tessera model; choose the layout to write: --to {' or --to '.join(PUBLIC)}")
    layout = layout_of(to)
    if layout.save_whole is not None and (source / "tokenizer").is_dir():
        layout.save_whole(target, load_model(source), dtype)
    else:
        layout.save(target, load_lm(source), dtype)
    say(f"{target}: a {to} checkpoint")
