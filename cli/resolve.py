"""Code shared by encode, decode and shards: find a tokenizer, report skipped files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..configs.printable import say

if TYPE_CHECKING:
    from ..lm.models.base import LanguageModel
    from ..tokenize.compression.integer_network import CoderNet
    from ..tokenize.spec import TokenSpec
    from ..tokenize.tokenizer import Tokenizer

MAX_LISTED = 20


def open_tokenizer(name: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: a tokenizer directory, a model directory (for its tokenizer), or the name of a bundled model.
    Raises:
        FileNotFoundError: none of these. ValueError: a damaged tokenizer.
    """
    from ..tokenize.tokenizer import load_tokenizer

    return load_tokenizer(name)


def open_coder(name: str | Path, spec: TokenSpec) -> CoderNet:
    """Load the entropy coding network for the codes of a tokenizer.

    Args:
        name: a coder directory, a model directory with a coder in coder/, or the name of a bundled model.
    Raises:
        FileNotFoundError: none of these. ValueError: a damaged coder, or one for another tokenizer.
    """
    from ..tokenize.compression.integer_network import FILES, load_coder
    from ..tokenize.spec import check_same_tokenizer

    folder = _folder(name)
    inside = folder / "coder"
    net = load_coder(inside if (inside / FILES[0]).is_file() else folder)
    check_same_tokenizer(spec, net.spec, f"coder {name}")
    return net


def open_code_model(name: str | Path, spec: TokenSpec) -> CoderNet | LanguageModel:
    """Like `open_coder`, but returns the language model if a model directory has no coder.

    Raises ValueError for a language model that does not generate frame by frame.
    """
    from ..generate.loading import load
    from ..tokenize.compression.integer_network import FILES
    from ..tokenize.spec import check_same_tokenizer

    folder = _folder(name)
    if (folder / "lm.safetensors").is_file() and not (folder / "coder" / FILES[0]).is_file():
        lm = load(folder).lm
        check_same_tokenizer(spec, lm.spec, f"model {name}")
        if lm.decode_plan.decoder == "coarse_to_fine":
            raise ValueError(f"{name}: a {type(lm).__name__} does not predict codes from previous codes")
        return lm
    return open_coder(name, spec)


def coder_finder(model: str | None, tokenizer: str, spec: TokenSpec) -> Callable[[str], CoderNet]:
    """A function that finds the network of a compressed file: that of --model, by default the one beside the
    tokenizer."""

    def find(fingerprint: str) -> CoderNet:
        try:
            net = open_coder(model or tokenizer, spec)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the codes were compressed with coder {fingerprint[:12]}; --model: {error}"
            ) from None
        if net.fingerprint != fingerprint:
            raise ValueError(
                f"the codes were compressed with coder {fingerprint[:12]}, '{model or tokenizer}' has "
                f"{net.fingerprint[:12]}; pass the right one as --model"
            )
        return net

    return find


def _folder(name: str | Path) -> Path:
    """A directory, the model of a finished run, or the directory of a bundled model."""
    from ..configs.recognize import run_model
    from ..tokenize.bundled import bundled_model, shipped_path

    folder = shipped_path(name)
    return run_model(folder) or (folder if folder.exists() else bundled_model(name) or folder)


def report_skipped(reasons: Sequence[str], total: int) -> None:
    """Print on stderr which of `total` files were skipped, one line for each of the first ones."""
    from ..configs.printable import printable  # reasons in shards from elsewhere are untrusted text

    if not reasons:
        return
    for reason in reasons[:MAX_LISTED]:
        say(f"skipped: {printable(reason)}")
    if len(reasons) > MAX_LISTED:
        say(f"skipped: {len(reasons) - MAX_LISTED} more")
    say(f"tessera: {len(reasons)} of {total} items could not be used")
