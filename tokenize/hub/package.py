"""The package transformers, which is optional; this is the only file that imports it."""

from __future__ import annotations

from typing import Any


def import_transformers(what: str) -> Any:
    """The package, for example for what "the text encoder of this model"; ImportError: it is not installed."""
    try:
        import transformers
    except ImportError:
        raise ImportError(f"{what} needs the package transformers: pip install 'tessera-lm[hub]'") from None
    return transformers
