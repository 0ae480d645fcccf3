"""The audio tokenizer's network: log spectrum -> ConvNeXt -> quantizer -> ConvNeXt -> inverse spectrum.

Everything runs at the frame rate (50 frames a second at hop 320), so it trains on a laptop. The encoder sees
magnitudes only: codes carry what is heard, the decoder makes up the phase (Vocos, arXiv:2306.00814; WavTokenizer,
arXiv:2408.16532). Waveform distances such as SI-SDR are therefore low by construction, spectral ones are what it is
trained for.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from .config import Config
from .convnext import ConvNeXtStack
from .quantizer import Quantized, QuantizerConfig, make_quantizer
from .spec import AudioGeometry
from .spectrum import frame_signal, inverse_spectrum


class AudioStackConfig(Config):
    """One ConvNeXt stack of the audio tokenizer."""

    width: PositiveInt = 256
    layers: PositiveInt = 6
    kernel: PositiveInt = 7
    """Frames each layer sees, odd."""
    causal: bool = False
    """No layer looks ahead; what remains is the overlap of the spectrum's windows, (window - hop) / 2 samples."""
    chunk: PositiveInt = 32
    """Frames worked on at a time when frozen: sets the delay of streaming, and fixes the shape all items share."""


class AudioTokenizerConfig(Config):
    """Mono audio to residual codes and back."""

    kind: Literal["audio"] = "audio"
    name: str
    sample_rate: PositiveInt = 16000
    hop: PositiveInt = 320
    """Samples per frame."""
    window: PositiveInt = 1280
    """Samples of the spectrum's window; even, at least hop."""
    latent_dim: PositiveInt = 128
    encoder: AudioStackConfig = Field(default_factory=AudioStackConfig)
    decoder: AudioStackConfig = Field(default_factory=AudioStackConfig)
    quantizer: QuantizerConfig

    @property
    def geometry(self) -> AudioGeometry:
        """What one frame of codes stands for."""
        return AudioGeometry(sample_rate=self.sample_rate, channels=1, samples_per_frame=self.hop)


class AudioNet(nn.Module):
    """Trainable audio tokenizer; `tokenizer.py` freezes it. N is a multiple of hop everywhere, T = N / hop."""

    window: Tensor

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        if config.window < config.hop or config.window % 2:
            raise ValueError(f"window {config.window} must be even and at least hop {config.hop}")
        self.config = config
        bins = config.window // 2 + 1
        encoder, decoder = config.encoder, config.decoder
        self.encoder = ConvNeXtStack(
            bins, encoder.width, config.latent_dim, encoder.layers, encoder.kernel, encoder.causal
        )
        self.quantizer = make_quantizer(config.quantizer, config.latent_dim)
        self.decoder = ConvNeXtStack(
            config.latent_dim, decoder.width, 2 * bins, decoder.layers, decoder.kernel, decoder.causal
        )
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        # Frames of neighbouring windows that reach into a frame's own hop.
        self.overlap = -(-((config.window - config.hop) // 2) // config.hop)

    def features(self, frames: Tensor) -> Tensor:
        """Log magnitudes of framed samples: [..., T, window] -> [..., T, window/2 + 1]."""
        magnitude = torch.fft.rfft(frames * self.window, dim=-1).abs()
        return torch.log(magnitude + 1e-3)

    def encode_frames(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Framed samples [B, T, window] -> latents [B, T, latent_dim]."""
        return self.encoder(self.features(frames), mask)

    def decode_latents(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> samples [B, T * hop]."""
        log_magnitude, phase = self.decoder(latents, mask).float().chunk(2, dim=-1)
        # exp(6) is far above any sample's spectrum; it keeps bf16 steps finite
        magnitude = torch.exp(log_magnitude.clamp(max=6.0))
        return inverse_spectrum(torch.polar(magnitude, phase), mask, self.window, self.config.hop)

    def forward(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct a batch, for training.

        Args:
            samples: [B, N] float.
            mask: [B, T] bool, True on frames that hold sound (not padding).
        Returns:
            reconstruction [B, N] and the quantizer's result with codes [B, T, K].
        """
        frames = frame_signal(samples, self.config.window, self.config.hop)
        quantized = self.quantizer(self.encode_frames(frames, mask).float(), mask)
        return self.decode_latents(quantized.values, mask), quantized
