"""Kinds of tokenizers: the config, the network and the frozen tokenizer of each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .audio.networks import AudioNet, AudioTokenizerConfig
from .audio.tokenizer import AudioTokenizer
from .image.networks import ImageNet, ImageTokenizerConfig
from .image.tokenizer import ImageTokenizer

TokenizerConfig = Annotated[AudioTokenizerConfig | ImageTokenizerConfig, Field(discriminator="kind")]

NETS = {"audio": AudioNet, "picture": ImageNet}
FROZEN = {"audio": AudioTokenizer, "picture": ImageTokenizer}
