"""Logits to media. The functions take a language model and a tokenizer; a `Model` has both."""

from .growing import stream_pictures
from .model import Model, load
from .own_lm import OwnLM
from .result import Result
from .stream import stream_audio
from .whole import generate

__all__ = ["Model", "OwnLM", "Result", "generate", "load", "stream_audio", "stream_pictures"]
