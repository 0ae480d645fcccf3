"""Logits to media. The functions take a language model and a tokenizer; a `Model` has both."""

from .decoding.custom_lm import OwnLM
from .model import Model, load
from .pipeline import generate
from .result import Result
from .streaming.audio import stream_audio
from .streaming.image import stream_pictures

__all__ = ["Model", "OwnLM", "Result", "generate", "load", "stream_audio", "stream_pictures"]
