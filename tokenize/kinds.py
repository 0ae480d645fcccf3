"""Kinds of tokenizers: the config, the network and the frozen tokenizer of each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .audio.masked_conv import fold_norms
from .audio.networks import AudioNet, AudioTokenizerConfig
from .audio.tokenizer import AudioTokenizer
from .hub.config import TransformersCodecConfig
from .hub.network import HubNet
from .hub.tokenizer import TransformersTokenizer
from .image.networks import ImageNet, ImageTokenizerConfig
from .image.tokenizer import ImageTokenizer

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
    net = NETS[config.kind](config, read_files=False)
    if config.kind != "transformers":
        fold_norms(net)
    return net
