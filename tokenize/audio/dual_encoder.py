"""Audio encoder `fused`: two encoders of the same audio, combined by a linear layer.

    audio ──► acoustic ──┐
          └─► semantic ──┴──► concatenate ──► linear ──► latents            encoder only; works with any decoder

The semantic encoder can come from an already trained tokenizer (`init`) and stay fixed (`freeze`): it then acts
as a teacher that is part of the frozen tokenizer. Source: X-Codec, arXiv:2408.17175.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import PositiveInt, Tag
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError, kind_or
from .base import AudioShape
from .dac import DACConfig, DACEncoder
from .mel_2d import Mel2DConfig, Mel2DEncoder
from .seanet import SEANetConfig, SEANetEncoder
from .streaming import StreamingLayer, run_stages, window_stage
from .vocos import AudioStackConfig, SpectrumEncoder

PlainPartConfig = Annotated[
    Annotated[AudioStackConfig, Tag("spectrum")]
    | Annotated[SEANetConfig, Tag("seanet")]
    | Annotated[DACConfig, Tag("dac")]
    | Annotated[Mel2DConfig, Tag("mel2d")],
    kind_or("spectrum"),  # older files have no kind
]
PLAIN_ENCODERS = {"spectrum": SpectrumEncoder, "seanet": SEANetEncoder, "dac": DACEncoder, "mel2d": Mel2DEncoder}


class FusedConfig(Config):
    """Two stateless encoders (no LSTM, no transformer), both of which process windows."""

    kind: Literal["fused"] = "fused"
    acoustic: PlainPartConfig
    """Encoder with `latent_dim` output channels."""
    semantic: PlainPartConfig
    """Encoder with `semantic_dim` output channels."""
    semantic_dim: PositiveInt
    """Output channels of the semantic encoder."""
    chunk: PositiveInt = 32
    """Frames per call when frozen; the `chunk` of the two encoders is ignored."""

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless both encoders fit the tokenizer."""
        for name, part in (("acoustic", self.acoustic), ("semantic", self.semantic)):
            try:
                part.check_shape(shape)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if isinstance(part, SEANetConfig) and part.last_frame == "padded":
                raise ValueError(f"{name}: last_frame padded is not supported inside fused encoders; use zeros")


class FusedEncoder(nn.Module):
    """Acoustic and semantic encoders combined: samples to latents."""

    def __init__(self, config: FusedConfig, shape: AudioShape):
        super().__init__()
        other = shape.model_copy(update={"latent_dim": config.semantic_dim})
        self.acoustic = PLAIN_ENCODERS[config.acoustic.kind](config.acoustic, shape)  # pyright: ignore
        self.semantic = PLAIN_ENCODERS[config.semantic.kind](config.semantic, other)  # pyright: ignore
        self.channels = shape.channels
        self.join = nn.Linear(shape.latent_dim + config.semantic_dim, shape.latent_dim)
        self.widths = [part.frame(torch.zeros(shape.hop)).shape[-1] for part in (self.acoustic, self.semantic)]
        for name, part in (("acoustic", self.acoustic), ("semantic", self.semantic)):
            if any(stage.memory for stage in part.stages()):
                raise ConfigError(
                    f"encoder.{name}: it is recurrent, but fused encoders read windows; leave out "
                    "its LSTM and the transformer of its bottleneck"
                )

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, F], concatenated for both encoders."""
        return torch.cat([self.acoustic.frame(samples), self.semantic.frame(samples)], dim=-1)

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * F] -> latents [B, T, latent_dim]."""
        chains = self.acoustic.stages(), self.semantic.stages()

        def run(frames: Tensor, mask: Tensor) -> Tensor:
            # Split every channel's frame into the parts of the two encoders.
            parts = (part.flatten(2) for part in frames.unflatten(2, (self.channels, -1)).split(self.widths, dim=-1))
            found = [run_stages(chain, part, mask) for chain, part in zip(chains, parts, strict=True)]
            return self.join(torch.cat(found, dim=-1))

        back = max(sum(stage.back for stage in chain) for chain in chains)
        ahead = max(sum(stage.ahead for stage in chain) for chain in chains)
        return [window_stage(run, back, ahead)]
