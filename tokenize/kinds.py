"""Kinds of tokenizers: the config, the network and the frozen tokenizer of each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .audio.networks import AudioNet, AudioTokenizerConfig
from .audio.tokenizer import AudioTokenizer
from .hub.config import TransformersCodecConfig
from .hub.network import HubNet
from .hub.tokenizer import TransformersTokenizer
from .image.networks import ImageNet, ImageTokenizerConfig
from .image.tokenizer import ImageTokenizer
from .layers.unfilled import Unfilled
from .layers.weight_norm import folded_norms

TokenizerConfig = Annotated[AudioTokenizerConfig | ImageTokenizerConfig, Field(discriminator="kind")]
"""Kinds that are trained here."""
FrozenConfig = Annotated[
    AudioTokenizerConfig | ImageTokenizerConfig | TransformersCodecConfig, Field(discriminator="kind")
]
"""Kinds of frozen tokenizers."""

NETS: dict[str, Any] = {"audio": AudioNet, "picture": ImageNet, "transformers": HubNet}
FROZEN: dict[str, Any] = {"audio": AudioTokenizer, "picture": ImageTokenizer, "transformers": TransformersTokenizer}


def empty_net(config: FrozenConfig) -> Any:
    """The network of a frozen tokenizer, whose weights are still to be set; nothing is read from files."""
    if config.kind == "transformers":  # its class computes tables from what it draws
        return HubNet(config)
    with Unfilled(), folded_norms():
        return NETS[config.kind](config, read_files=False)
