"""Tessera: autoregressive generation over multi-codebook tokens.

`import tessera` does not import torch; the public names are loaded on first use (PEP 562).

    model = tessera.load("digits")
    model.generate(label=7, n=16, seed=0).save("out/")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .generate.loading import load as load
    from .generate.model import Model as Model
    from .tokenize.tokenizer import Tokenizer as Tokenizer
    from .tokenize.tokenizer import load_tokenizer as load_tokenizer

__version__ = "0.1.0"

_HOMES = {
    "load": ".generate.loading",
    "Model": ".generate.model",
    "Tokenizer": ".tokenize.tokenizer",
    "load_tokenizer": ".tokenize.tokenizer",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'tessera' has no attribute '{name}'; it offers {', '.join(sorted(_HOMES))}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
