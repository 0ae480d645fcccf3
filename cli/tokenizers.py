"""What encode, decode and shards share: find a tokenizer, say what was left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tokenize.tokenizer import Tokenizer

MAX_LISTED = 20


def open_tokenizer(name: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: a tokenizer's directory, a model's directory (its own tokenizer is taken), or the name of a bundled model.
    Raises:
        FileNotFoundError: none of these. ValueError: a damaged tokenizer.
    """
    from ..generate.model import BUNDLED, bundled_models
    from ..tokenize.tokenizer import load_tokenizer

    folder = Path(name)
    if not folder.exists() and str(name) in bundled_models():
        folder = BUNDLED / str(name)
    inside = folder / "tokenizer"
    return load_tokenizer(inside if (inside / "config.json").is_file() else folder)


def report_skipped(reasons: Sequence[str], total: int) -> None:
    """Say on stderr which of `total` files were left out, the first of them one a line."""
    if not reasons:
        return
    for reason in reasons[:MAX_LISTED]:
        print(f"skipped: {reason}", file=sys.stderr)
    if len(reasons) > MAX_LISTED:
        print(f"skipped: {len(reasons) - MAX_LISTED} more", file=sys.stderr)
    print(f"tessera: {len(reasons)} of {total} items could not be used", file=sys.stderr)
