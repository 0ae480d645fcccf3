"""One line about a path that is not the public model that was asked for: what it is instead, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...configs.recognize import describe_wrong, folder_kind
from ...tokenize.bundled import bundled_models
from ...tokenize.public.checkpoint import open_checkpoint
from ...tokenize.public.folder import PublicFolder, has_pickles_alone
from ...tokenize.public.registry import PUBLIC_CODECS, recognize_codec
from .text_lm import TEXT_LMS, is_text_lm


def refuse_unknown(path: str | Path, wanted: str, models: Iterable[str]) -> Exception:
    """The error for a path that is no public model.

    Args:
        wanted: what is needed, with its article: "a model".
        models: values of model_type of the language models that are known.
    Returns:
        FileNotFoundError if there is nothing to read, else ValueError. An error of reading config.json or the weights
        (damaged, a pickle of more than tensors) is returned as it is.
    """
    path = Path(path)
    if not path.exists():
        bundled = f"; models that come with Tessera: {', '.join(bundled_models())}" if len(path.parts) == 1 else ""
        return FileNotFoundError(
            f"{path}: no such file or folder; name a public checkpoint, or a Tessera model or tokenizer{bundled}"
        )
    known = describe_known(path, wanted)
    if known is not None:
        return ValueError(known)
    if path.is_file() and (path.parent / "config.json").is_file():
        return ValueError(
            f"{path}: this is a file of its folder, {wanted} is needed here; name the folder: {path.parent}"
        )
    opened = PublicFolder(path)
    try:
        kind = opened.config.get("model_type")
        if path.is_file() or has_pickles_alone(path):
            open_checkpoint(path)
    except (ValueError, OSError) as error:
        return error
    if folder_kind(path) not in (None, "foreign"):
        return ValueError(describe_wrong(path, wanted))
    supported = (
        f"known are the language models {', '.join(models)}, the tokenizers {', '.join(PUBLIC_CODECS)} "
        f"and, as init.from of tessera train, the text models {', '.join(TEXT_LMS)}"
    )
    if path.is_file() or has_pickles_alone(path):
        return ValueError(f"{path}: its tensors are of no system that is known here; {supported}")
    if opened.config:
        return ValueError(f"{opened.config_path}: model_type is {str(kind)[:80]!r}; {supported}")
    return FileNotFoundError(
        describe_wrong(path, wanted)
        or f"{path}: no model, tokenizer or checkpoint here (config.json is missing); name a folder with config.json "
        "and model.safetensors, or a file of weights"
    )


def describe_known(path: str | Path, wanted: str) -> str | None:
    """One line about a public checkpoint that is known, but has another use; None if it is none."""
    codec = recognize_codec(path)
    if codec is not None:
        return (
            f"{path}: this is a public tokenizer ({codec}), {wanted} is needed here; use it with: tessera encode FILES "
            f"--tokenizer {path}"
        )
    try:
        text = is_text_lm(path)
    except (ValueError, OSError):
        return None
    if text:
        return (
            f"{path}: this is a text language model without codes, {wanted} is needed here; its blocks can be the "
            f"backbone of a model: init: {{from: {path}}} in the config of tessera train"
        )
    return None
