"""A codec of one channel used for each channel of stereo audio, and back: tokenizers with networks `per_channel`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...configs.schema import check_config
from ..audio.networks import AudioTokenizerConfig
from ..audio.per_channel import PerChannelConfig
from ..base import Tokenizer
from ..kinds import FROZEN, empty_net
from ..quantizers.combinators.grouped import GroupConfig
from .tensor_map import CannotWrite

RENAMED = {"encoder.part.": "encoder.", "decoder.part.": "decoder.", "quantizer.groups.0.": "quantizer."}
"""Prefixes of the tensors of a tokenizer `per_channel`, and of one channel."""


def for_channels(tokenizer: Tokenizer, channels: int) -> Tokenizer:
    """A tokenizer of several channels that encodes and decodes each as `tokenizer`, of mono audio, does.

    Its codes are level by level, the channels of a level side by side: left 0, right 0, left 1, right 1, ...
    """
    config = tokenizer.config
    assert isinstance(config, AudioTokenizerConfig) and config.channels == 1
    described = config.model_dump(mode="json")
    changed = {
        "name": f"{config.name}-stereo" if channels == 2 else f"{config.name}-{channels}",
        "channels": channels,
        "latent_dim": channels * config.latent_dim,
        "encoder": {"kind": "per_channel", "part": described["encoder"]},
        "decoder": {"kind": "per_channel", "part": described["decoder"]},
        "quantizer": {
            "kind": "group",
            "groups": channels,
            "shared": True,
            "order": "levels",
            "quantizer": described["quantizer"],
        },
    }
    names = {ours: name for name, ours in RENAMED.items()}
    return _rebuilt(tokenizer, described | changed, names)


def of_one_channel(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of mono audio that `for_channels` made the given one of; another tokenizer is returned as it is.

    Raises:
        CannotWrite: its networks are for each channel, but its codes are not those of `for_channels`.
    """
    config = tokenizer.config
    if not isinstance(config, AudioTokenizerConfig) or not isinstance(config.encoder, PerChannelConfig):
        return tokenizer
    quantizer = config.quantizer
    found = (quantizer.groups, quantizer.shared, quantizer.order) if isinstance(quantizer, GroupConfig) else None
    if found != (config.channels, True, "levels") or not isinstance(config.decoder, PerChannelConfig):
        raise CannotWrite(
            f"the tokenizer '{config.name}' has a network for each channel, which needs a decoder of kind per_channel "
            f"and a quantizer of kind group with groups {config.channels}, shared true and order levels"
        )
    described = config.model_dump(mode="json")
    changed = {
        "name": config.name.removesuffix("-stereo"),
        "channels": 1,
        "latent_dim": config.latent_dim // config.channels,
        "encoder": described["encoder"]["part"],
        "decoder": described["decoder"]["part"],
        "quantizer": described["quantizer"]["quantizer"],
    }
    return _rebuilt(tokenizer, described | changed, RENAMED)


def _rebuilt(tokenizer: Tokenizer, described: dict[str, Any], names: dict[str, str]) -> Tokenizer:
    """A tokenizer with another config and the same tensors under other names."""
    config = check_config(described, AudioTokenizerConfig, "tokenizer")
    net = empty_net(config)
    tensors: dict[str, Tensor] = {}
    for name, tensor in tokenizer.net.state_dict().items():
        before = next(prefix for prefix in names if name.startswith(prefix))
        tensors[names[before] + name.removeprefix(before)] = tensor
    net.load_state_dict(tensors)
    return FROZEN[config.kind](config, net, tokenizer.storage)
