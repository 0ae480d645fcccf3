"""From logits to media. The functions take a language model and a tokenizer; a `Model` holds both."""

from .decoding.custom_lm import CustomLM
from .loading import load
from .model import Model
from .pipeline import generate
from .result import Result
from .streaming.audio import stream_audio
from .streaming.image import stream_images

stream_pictures = stream_images
"""Earlier name of `stream_images`."""

__all__ = ["CustomLM", "Model", "Result", "generate", "load", "stream_audio", "stream_images", "stream_pictures"]
