"""Audio encoder and decoder `spectrum`: log magnitudes -> ConvNeXt -> latents, latents -> ConvNeXt -> inverse STFT.

Everything runs at the frame rate (50 frames per second at hop 320, 16 kHz), so it trains on a laptop. The encoder's
input is magnitudes only: codes carry what is audible, and the decoder generates the phase (Vocos, arXiv:2306.00814;
WavTokenizer, arXiv:2408.16532). Waveform metrics such as SI-SDR are therefore low by construction; training targets
spectral metrics.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from ...configs.schema import FingerprintedConfig, LayerCount
from ..layers.convnext import ConvNeXtStack
from ..layers.stft import frame_signal, inverse_spectrum
from .base import AudioShape
from .streaming import StreamingLayer, window_stage


class AudioStackConfig(FingerprintedConfig):
    """One ConvNeXt stack of the audio tokenizer; an STFT with the tokenizer's `window` precedes or follows it."""

    added: ClassVar[frozenset[str]] = frozenset({"kind", "spectra"})

    kind: Literal["spectrum"] = "spectrum"
    width: PositiveInt = 256
    """Channels of the ConvNeXt blocks."""
    layers: LayerCount = 6
    """Number of ConvNeXt blocks."""
    kernel: PositiveInt = 7
    """Kernel size in frames, odd."""
    causal: bool = False
    """true: no layer looks ahead; only the overlap of the STFT windows does, by (window - hop) / 2 samples."""
    chunk: PositiveInt = 32
    """Frames per call when frozen: sets the streaming latency and the fixed input shape. The later calls of a causal
    decoder take up to four times as many."""
    spectra: PositiveInt = 1
    """Spectra per frame: the STFT has a hop of hop / spectra samples. With long frames, more and shorter windows follow
    fast changes better, at little cost: the blocks still run once a frame."""

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless this network fits the tokenizer."""
        if shape.hop % self.spectra:
            raise ValueError(f"hop {shape.hop} must be a multiple of spectra {self.spectra}")
        step = shape.hop // self.spectra
        if shape.window < step or shape.window % 2:
            least = f"hop {step}" if self.spectra == 1 else f"hop / spectra {step}"
            raise ValueError(f"window {shape.window} must be even and at least {least}")


class SpectrumEncoder(ConvNeXtStack):
    """Spectrum encoder: samples to latents. Each input frame holds its whole STFT window."""

    window: Tensor

    def __init__(self, config: AudioStackConfig, shape: AudioShape):
        super().__init__(
            shape.channels * config.spectra * (shape.window // 2 + 1),
            config.width,
            shape.latent_dim,
            config.layers,
            config.kernel,
            config.causal,
        )
        self.hop, self.channels, self.spectra = shape.hop, shape.channels, config.spectra
        self.register_buffer("window", torch.hann_window(shape.window), persistent=False)

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, spectra * window]."""
        windows = frame_signal(samples, self.window.numel(), self.hop // self.spectra)
        return windows.unflatten(-2, (-1, self.spectra)).flatten(-2)

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * spectra * window] -> latents [B, T, latent_dim]."""
        return [window_stage(self, self.reach_back, self.reach_ahead)]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Framed samples [B, T, C * spectra * window], mask [B, T] -> latents [B, T, latent_dim]."""
        windows = x.unflatten(2, (self.channels * self.spectra, -1))
        magnitude = torch.fft.rfft(windows * self.window, dim=-1).abs()
        return super().forward(torch.log(magnitude + 1e-3).flatten(2), mask)


class CausalState(NamedTuple):
    """What a causal decoder keeps of the frames so far."""

    blocks: list[Tensor]
    """See `ConvNeXtStack.extend`."""
    outputs: Tensor
    """[B, n, ...]: spectra of the last frames, whose windows overlap later frames."""
    valid: Tensor
    """[B, n] bool, the mask of these frames."""


class SpectrumDecoder(ConvNeXtStack):
    """Spectrum decoder: latents to samples."""

    window: Tensor
    lost = 0

    def __init__(self, config: AudioStackConfig, shape: AudioShape):
        outputs = shape.channels * config.spectra * (shape.window + 2)
        super().__init__(shape.latent_dim, config.width, outputs, config.layers, config.kernel, config.causal)
        self.hop, self.channels, self.spectra = shape.hop, shape.channels, config.spectra
        self.register_buffer("window", torch.hann_window(shape.window), persistent=False)
        # Frames whose windows overlap a frame's hop.
        self.overlap = -(-((shape.window - shape.hop // config.spectra) // 2) // shape.hop)
        self.reach_back, self.reach_ahead = self.reach_back + self.overlap, self.reach_ahead + self.overlap
        self.causal = config.causal

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]. A causal decoder is stateful: in windows it would run
        all frames it looks back to again for every chunk."""
        if self.causal:
            return [StreamingLayer(self.extend_samples, 0, self.overlap, memory=True, grows=True)]
        return [window_stage(self, self.reach_back, self.reach_ahead)]

    def extend_samples(self, x: Tensor, mask: Tensor, state: CausalState | None) -> tuple[Tensor, CausalState]:
        """`forward` after earlier frames. The last `overlap` frames of a call come again as the first ones of the next:
        their spectra are in the state by then."""
        new = 0 if state is None else self.overlap
        outputs, blocks = self.extend(x[:, new:], mask[:, new:], None if state is None else state.blocks)
        outputs, valid = outputs.float(), mask[:, new:]
        if state is not None:
            outputs, valid = torch.cat([state.outputs, outputs], dim=1), torch.cat([state.valid, valid], dim=1)
        samples = frames_of_spectra(outputs, valid, self.window, self.hop, self.channels, self.spectra)
        kept = max(0, outputs.shape[1] - 2 * self.overlap)
        return samples[:, samples.shape[1] - x.shape[1] :], CausalState(blocks, outputs[:, kept:], valid[:, kept:])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Latents [B, T, latent_dim], mask [B, T] -> samples [B, T, C * hop]."""
        outputs = super().forward(x, mask).float()
        return frames_of_spectra(outputs, mask, self.window, self.hop, self.channels, self.spectra)


def frames_of_spectra(
    outputs: Tensor, mask: Tensor, window: Tensor, hop: int, channels: int, spectra: int = 1
) -> Tensor:
    """Decoder outputs per frame, log magnitudes and phases -> samples [B, T, C * hop].

    outputs: [B, T, C * spectra * (window + 2)]. mask: [B, T], True for valid frames. spectra: per frame, hop / spectra
    samples apart.
    """
    # [B, T, C * R * F] -> [B * C, T * R, F]: from here on channels are processed independently
    apart = outputs.unflatten(2, (channels, -1)).transpose(1, 2).unflatten(3, (spectra, -1)).flatten(2, 3).flatten(0, 1)
    log_magnitude, phase = apart.chunk(2, dim=-1)
    # exp(6) is far above the spectrum of any audio; it keeps bf16 training steps finite
    magnitude = torch.exp(log_magnitude.clamp(max=6.0))
    valid = mask.repeat_interleave(channels, 0).repeat_interleave(spectra, 1)
    samples = inverse_spectrum(torch.polar(magnitude, phase), valid, window, hop // spectra)
    return samples.reshape(len(mask), channels, -1, hop).transpose(1, 2).flatten(2)
