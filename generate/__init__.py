"""Logits to media. `generate` and `stream_audio` take a language model and a tokenizer; a `Model` has both."""

from .model import Model, load
from .result import Result
from .stream import stream_audio
from .whole import generate

__all__ = ["Model", "Result", "generate", "load", "stream_audio"]
