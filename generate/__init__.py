"""Logits to media. The functions take a language model and a tokenizer; a `Model` has both."""

from .growing import stream_pictures
from .model import Model, load
from .result import Result
from .stream import stream_audio
from .whole import generate

__all__ = ["Model", "Result", "generate", "load", "stream_audio", "stream_pictures"]
