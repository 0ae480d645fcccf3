"""Audio encoder and decoder `mel2d`: 2-D convolutions over a mel spectrogram that downsample only the frequency axis.

    encoder   log mel bands [T, bands] ──► convolutions ──► [T, rows] cells of `latent_dim / rows` channels
    decoder   cells ──► convolutions ──► [T, bands] ──► linear ──► inverse spectrum

Each row of a frame gives one code. Rows are concatenated in the latents, so `group` with as many groups and one shared
codebook quantizes the cells. Norms are per cell, so a frame depends only on the receptive field of the convolutions.
Source: SpecVQGAN, arXiv:2110.08791 (which also downsamples time, and uses a separate vocoder).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, LayerCount
from ..layers.stft import frame_signal, mel_filters
from .base import AudioShape
from .streaming import StreamingLayer, window_stage
from .vocos import frames_of_spectra


class Mel2DConfig(Config):
    """One side of the network."""

    kind: Literal["mel2d"] = "mel2d"
    bands: PositiveInt = 80
    """Mel bands of the spectrogram."""
    rows: PositiveInt = 5
    """Codes per frame, along frequency; bands must be rows times a power of 2."""
    channels: PositiveInt = 64
    """Channels of the hidden layers."""
    blocks: LayerCount = 1
    """Residual blocks at each frequency resolution."""
    chunk: PositiveInt = 32
    """Frames per call when frozen."""

    @property
    def halvings(self) -> int:
        """Number of times the frequency axis is halved."""
        return (self.bands // self.rows).bit_length() - 1

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless this network fits the tokenizer."""
        if shape.window < shape.hop or shape.window % 2:
            raise ValueError(f"window {shape.window} must be even and at least hop {shape.hop}")
        if self.rows * 2**self.halvings != self.bands:
            raise ValueError(f"{self.bands} bands cannot be halved to {self.rows} rows; use rows times a power of 2")
        if shape.latent_dim % self.rows:
            raise ValueError(f"latent_dim {shape.latent_dim} is not a multiple of rows {self.rows}; change one of them")


class CellNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, channels, T, height] -> the same shape."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """x + conv(silu(conv(silu(norm(x)))))."""

    reach = 2

    def __init__(self, channels: int):
        super().__init__()
        self.norm = CellNorm(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """[B, channels, T, height], inside [B, 1, T, 1] -> the same shape."""
        h = self.conv1(F.silu(self.norm(x)) * inside)
        return x + self.conv2(F.silu(h) * inside)


class Step(nn.Module):
    """Convolution that keeps, doubles (by repeating first) or halves (by its stride) the height."""

    reach = 1

    def __init__(self, inputs: int, outputs: int, height: float = 1):
        super().__init__()
        self.grow = height == 2
        kernel, stride = ((3, 4), (1, 2)) if height == 0.5 else ((3, 3), (1, 1))
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """[B, inputs, T, height], inside [B, 1, T, 1] -> [B, outputs, T, other height]."""
        x = x.repeat_interleave(2, dim=3) if self.grow else x
        return self.conv(x * inside)


class _Stack(nn.Module):
    """Sequence of `Step` and `Block` layers."""

    def __init__(self, layers: list[Block | Step]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.reach = sum(layer.reach for layer in layers)

    def run(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, C, T, height], mask [B, T] -> [B, C, T, height] of the last layer."""
        inside = mask[:, None, :, None].to(x.dtype)
        for layer in self.layers:
            x = layer(x, inside)
        return x


class Mel2DEncoder(_Stack):
    """Mel encoder: samples to latents. Each input frame holds its whole STFT window."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: Mel2DConfig, shape: AudioShape):
        width, layers = config.channels, [Step(shape.channels, config.channels)]
        for _ in range(config.halvings):
            layers += [*(Block(width) for _ in range(config.blocks)), Step(width, width, 0.5)]
        super().__init__([*layers, *(Block(width) for _ in range(config.blocks))])
        self.norm = CellNorm(width)
        self.leave = nn.Conv2d(width, shape.latent_dim // config.rows, 1)
        self.hop, self.channels = shape.hop, shape.channels
        self.register_buffer("window", torch.hann_window(shape.window), persistent=False)
        filters = mel_filters(shape.sample_rate, shape.window, config.bands)
        self.register_buffer("filters", filters, persistent=False)

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, window]."""
        return frame_signal(samples, self.window.numel(), self.hop)

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * window] -> latents [B, T, latent_dim], row by row."""
        return [window_stage(self, self.reach, self.reach)]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Framed samples [B, T, C * window], mask [B, T] -> latents [B, T, latent_dim]."""
        magnitude = torch.fft.rfft(x.unflatten(2, (self.channels, -1)) * self.window, dim=-1).abs()
        cells = self.run(torch.log(magnitude @ self.filters + 1e-3).transpose(1, 2), mask)
        return self.leave(F.silu(self.norm(cells))).permute(0, 2, 3, 1).flatten(2)


class Mel2DDecoder(_Stack):
    """Mel decoder: latents to samples."""

    window: Tensor
    lost = 0

    def __init__(self, config: Mel2DConfig, shape: AudioShape):
        width = config.channels
        layers: list[Block | Step] = [Step(shape.latent_dim // config.rows, width)]
        for _ in range(config.halvings):
            layers += [*(Block(width) for _ in range(config.blocks)), Step(width, width, 2)]
        super().__init__([*layers, *(Block(width) for _ in range(config.blocks))])
        self.rows, self.hop, self.channels = config.rows, shape.hop, shape.channels
        self.norm = CellNorm(width)
        self.leave = nn.Linear(width * config.bands, shape.channels * (shape.window + 2))
        self.register_buffer("window", torch.hann_window(shape.window), persistent=False)
        # Frames whose windows overlap a frame's hop.
        self.reach += -(-((shape.window - shape.hop) // 2) // shape.hop)

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]."""
        return [window_stage(self, self.reach, self.reach)]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Latents [B, T, latent_dim], mask [B, T] -> samples [B, T, C * hop]."""
        cells = self.run(x.unflatten(2, (self.rows, -1)).permute(0, 3, 1, 2), mask)
        bands = F.silu(self.norm(cells)).permute(0, 2, 3, 1).flatten(2)
        return frames_of_spectra(self.leave(bands).float(), mask, self.window, self.hop, self.channels)
