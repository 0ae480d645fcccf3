"""Sound parts `spectrum`: log magnitudes -> ConvNeXt -> latents, and latents -> ConvNeXt -> inverse spectrum.

Everything runs at the frame rate (50 frames a second at hop 320), so it trains on a laptop. The encoder sees
magnitudes only: codes carry what is heard, the decoder makes up the phase (Vocos, arXiv:2306.00814; WavTokenizer,
arXiv:2408.16532). Waveform distances such as SI-SDR are therefore low by construction, spectral ones are what it is
trained for.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ...configs.schema import GrowingConfig, LayerCount
from ..layers.convnext import ConvNeXtStack
from .base import AudioShape
from .stft import frame_signal, inverse_spectrum
from .streaming import StreamingLayer, window_stage


class AudioStackConfig(GrowingConfig):
    """One ConvNeXt stack of the audio tokenizer, and the spectrum of the tokenizer's `window` before or after it."""

    added: ClassVar[frozenset[str]] = frozenset({"kind"})

    kind: Literal["spectrum"] = "spectrum"
    width: PositiveInt = 256
    layers: LayerCount = 6
    kernel: PositiveInt = 7
    """Frames each layer sees, odd."""
    causal: bool = False
    """No layer looks ahead; what remains is the overlap of the spectrum's windows, (window - hop) / 2 samples."""
    chunk: PositiveInt = 32
    """Frames worked on at a time when frozen: sets the delay of streaming, and fixes the shape all items share."""

    def check_sound(self, sound: AudioShape) -> None:
        """Raise ValueError unless this part fits the tokenizer."""
        if sound.window < sound.hop or sound.window % 2:
            raise ValueError(f"window {sound.window} must be even and at least hop {sound.hop}")


class SpectrumEncoder(ConvNeXtStack):
    """Samples to latents; see the head of this file. A frame of samples holds its whole window."""

    window: Tensor

    def __init__(self, config: AudioStackConfig, sound: AudioShape):
        super().__init__(
            sound.channels * (sound.window // 2 + 1),
            config.width,
            sound.latent_dim,
            config.layers,
            config.kernel,
            config.causal,
        )
        self.hop, self.channels = sound.hop, sound.channels
        self.register_buffer("window", torch.hann_window(sound.window), persistent=False)

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, window]."""
        return frame_signal(samples, self.window.numel(), self.hop)

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * window] -> latents [B, T, latent_dim]."""
        return [window_stage(self, self.reach_back, self.reach_ahead)]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Framed samples [B, T, C * window], mask [B, T] -> latents [B, T, latent_dim]."""
        magnitude = torch.fft.rfft(x.unflatten(2, (self.channels, -1)) * self.window, dim=-1).abs()
        return super().forward(torch.log(magnitude + 1e-3).flatten(2), mask)


class SpectrumDecoder(ConvNeXtStack):
    """Latents to samples; see the head of this file."""

    window: Tensor

    def __init__(self, config: AudioStackConfig, sound: AudioShape):
        outputs = sound.channels * (sound.window + 2)
        super().__init__(sound.latent_dim, config.width, outputs, config.layers, config.kernel, config.causal)
        self.hop, self.channels = sound.hop, sound.channels
        self.register_buffer("window", torch.hann_window(sound.window), persistent=False)
        # Frames of neighbouring windows that reach into a frame's own hop.
        overlap = -(-((sound.window - sound.hop) // 2) // sound.hop)
        self.reach_back, self.reach_ahead = self.reach_back + overlap, self.reach_ahead + overlap

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]."""
        return [window_stage(self, self.reach_back, self.reach_ahead)]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Latents [B, T, latent_dim], mask [B, T] -> samples [B, T, C * hop]."""
        return frames_of_spectra(super().forward(x, mask).float(), mask, self.window, self.hop, self.channels)


def frames_of_spectra(outputs: Tensor, mask: Tensor, window: Tensor, hop: int, channels: int) -> Tensor:
    """What a decoder says of each frame [B, T, C * (window + 2)], log magnitudes and phases -> samples [B, T, C * hop].

    mask: [B, T], True on frames that exist.
    """
    # [B, T, C * F] -> [B * C, T, F]: channels are sounds of their own from here on
    apart = outputs.unflatten(2, (channels, -1)).transpose(1, 2).flatten(0, 1)
    log_magnitude, phase = apart.chunk(2, dim=-1)
    # exp(6) is far above any sample's spectrum; it keeps bf16 steps finite
    magnitude = torch.exp(log_magnitude.clamp(max=6.0))
    samples = inverse_spectrum(torch.polar(magnitude, phase), mask.repeat_interleave(channels, 0), window, hop)
    return samples.reshape(len(mask), channels, -1, hop).transpose(1, 2).flatten(2)
