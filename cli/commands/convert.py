"""`tessera convert`: imports and exports checkpoints of public systems."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...configs.printable import say

if TYPE_CHECKING:
    from ...lm.checkpoints.weights_file import StorageName


class DtypeChoice(str, Enum):
    """See StorageName."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(convert)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a public checkpoint or a Tessera model.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; it must not contain a model.")],
    to: Annotated[
        str | None, typer.Option(help="Layout to write a Tessera model in: musicgen, llamagen.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer of the codes: a directory, or a model's. Without it, DST is only a language model."
        ),
    ] = None,
    dtype: Annotated[DtypeChoice, typer.Option(help="Storage of the weights.")] = DtypeChoice.float32,
) -> None:
    """Convert a public checkpoint to a Tessera model, or a Tessera model to a public format.

    Example: tessera convert musicgen-small out/musicgen

    Example: tessera convert out/musicgen out/back --to musicgen

    Supported are MusicGen of transformers (the decoder, alone or in a whole model) and LlamaGen's class-conditional
    models, both as config.json and model.safetensors; no pickle is read. Codecs and text encoders are not converted:
    without --tokenizer, DST holds only the language model, which tessera.lm.checkpoints.model_directory.load_lm reads.
    """
    from ...configs.folder_lock import lock_folder

    with lock_folder(target, "tessera convert"):
        if (target / "config.json").exists():
            raise FileExistsError(f"{target}: contains a model already; choose another folder")
        if _is_ours(source):
            _write_public(source, target, to, tokenizer, dtype.value)
        else:
            _read_public(source, target, to, tokenizer, dtype.value)


def _read_public(source: Path, target: Path, to: str | None, tokenizer: str | None, dtype: StorageName) -> None:
    from ...lm.checkpoints.model_directory import save_lm, save_model
    from ...lm.public.registry import layout_of, public_layout
    from ..resolve import open_tokenizer

    name = public_layout(source)
    if to is not None:
        raise ValueError(
            f"--to {to}: {source} is a {name} checkpoint, not a Tessera model; convert it without --to first"
        )
    layout, opened = layout_of(name), None if tokenizer is None else open_tokenizer(tokenizer)
    lm = layout.load(source, None if opened is None else opened.spec)
    labels = [str(i) for c in lm.config.conditions if c.kind == "label" for i in range(c.classes or 0)]
    defaults = layout.defaults
    if any(condition.dropout == 0 for condition in lm.config.conditions):  # guidance is impossible
        defaults = defaults.model_copy(update={"guidance": 1.0})
    made = f"Converted from a {name} checkpoint by `tessera convert`."
    if opened is None:
        card = f"# {target.name}\n\n{made} {layout.left_out.capitalize()} is not in it.\n"
        save_lm(target, lm, labels, defaults, card, dtype)
        read = f'tessera.lm.checkpoints.model_directory.load_lm("{target}")'
    else:
        save_model(target, lm, opened, None, labels, defaults, f"# {target.name}\n\n{made}\n", dtype)
        read = f'tessera.load("{target}")'
    size = f"{lm.num_parameters / 1e6:.1f} M parameters"
    say(f"{target}: {name}, {size}; left out: {layout.left_out}")
    say(f"load it with: {read}")


def _write_public(source: Path, target: Path, to: str | None, tokenizer: str | None, dtype: StorageName) -> None:
    from ...lm.checkpoints.model_directory import load_lm
    from ...lm.public.registry import PUBLIC, layout_of

    if to is None:
        raise ValueError(f"{source} is a Tessera model; choose the layout to write: --to {' or --to '.join(PUBLIC)}")
    if tokenizer is not None:
        raise ValueError(f"--tokenizer {tokenizer}: a {to} checkpoint cannot contain a Tessera tokenizer; leave it out")
    layout_of(to).save(target, load_lm(source), dtype)
    say(f"{target}: a {to} checkpoint")


def _is_ours(folder: Path) -> bool:
    """Whether a folder's config.json belongs to a Tessera model."""
    from ...configs.files import read_json

    path = folder / "config.json"
    if not path.is_file():
        return False
    described = read_json(path)
    return isinstance(described, dict) and described.get("format") == "tessera-model"
