"""Audio networks `per_channel`: one network of mono audio, used for each channel.

    left   ──► network ──► latents of left   ──┐
                  the same weights             ├──► latents [B, T, C * D], channel by channel
    right  ──► network ──► latents of right  ──┘

With the quantizer `group` of as many groups as channels, shared, in order `levels`, a frame has the codes of all
channels, coarse first: level 0 of left, level 0 of right, level 1 of left, ...
Source: the stereo models of MusicGen (arXiv:2306.05284, facebookresearch/audiocraft).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...configs.schema import Config
from .base import AudioShape
from .dual_encoder import PLAIN_ENCODERS, PlainPartConfig
from .streaming import StreamingLayer


class PerChannelConfig(Config):
    """One network of mono audio for each channel."""

    kind: Literal["per_channel"] = "per_channel"
    part: PlainPartConfig
    """Network of one channel; its latents have `latent_dim` / `channels` channels."""

    @property
    def chunk(self) -> int:
        """Frames per call when frozen."""
        return self.part.chunk

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless the network fits one channel of the tokenizer."""
        if shape.latent_dim % shape.channels:
            raise ValueError(f"latent_dim {shape.latent_dim} is not a multiple of channels {shape.channels}")
        try:
            self.part.check_shape(one_channel(shape))
        except ValueError as error:
            raise ValueError(f"part: {error}") from None


def one_channel(shape: AudioShape) -> AudioShape:
    """The sizes of one channel."""
    return shape.model_copy(update={"channels": 1, "latent_dim": shape.latent_dim // shape.channels})


class PerChannelEncoder(nn.Module):
    """The encoder of one channel, applied to each: samples to latents."""

    def __init__(self, config: PerChannelConfig, shape: AudioShape):
        super().__init__()
        self.channels = shape.channels
        self.part = PLAIN_ENCODERS[config.part.kind](config.part, one_channel(shape))  # pyright: ignore

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, F]."""
        return self.part.frame(samples)

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * F] -> latents [B, T, latent_dim]."""
        return for_each_channel(self.part.stages(), self.channels)


def for_each_channel(stages: Sequence[StreamingLayer], channels: int) -> list[StreamingLayer]:
    """Stages of frames [B, T, C * F] from those of one channel [B, T, F], with [B, T, C, ...] between them; the
    channels are rows of a batch."""
    last = len(stages) - 1
    return [_folded(stage, channels, n == 0, n == last) for n, stage in enumerate(stages)]


def _folded(stage: StreamingLayer, channels: int, first: bool, last: bool) -> StreamingLayer:
    def split(frames: Tensor) -> Tensor:
        return (frames.unflatten(2, (channels, -1)) if first else frames).movedim(2, 1).flatten(0, 1)

    def join(found: Tensor) -> Tensor:
        found = found.unflatten(0, (-1, channels)).movedim(1, 2)
        return found.flatten(2) if last else found

    def run(frames: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
        found, state = stage.run(split(frames), mask.repeat_interleave(channels, dim=0), state)
        return join(found), state

    def extend(frames: Tensor, mask: Tensor, state: list[Any] | None) -> tuple[Tensor, list[Any]]:
        assert stage.extend is not None
        pairs = zip(split(frames).split(1), state or [None] * channels, strict=True)  # each channel has its state
        found, after = zip(*(stage.extend(part, mask, past) for part, past in pairs), strict=True)
        return join(torch.cat(found)), list(after)

    return replace(stage, run=run, extend=None if stage.extend is None else extend)
