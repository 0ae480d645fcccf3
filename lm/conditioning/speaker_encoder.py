"""A speaker encoder: from a recording to one vector.

    log mel spectrum ──► conv ──► blocks of grouped convolutions with squeeze-and-excitation ──► all blocks together
                     ──► conv ──► mean and deviation, weighted by attention ──► vector

Source: ECAPA-TDNN, arXiv:2005.07143; the sizes, the spectrum and the reflecting pads are those of Qwen3-TTS
(qwen-tts 0.1.1, Apache-2.0).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from ...configs.schema import Config

WINDOW, HOP = 1024, 256
"""Samples of a spectrum and between spectra."""
HIGHEST = 12000.0
"""Upper edge of the mel bands in Hz."""
Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=64)]


class SpeakerEncoderConfig(Config):
    """Sizes of the encoder: of the first convolution, of each block, and of the convolution over all blocks."""

    sample_rate: PositiveInt = 24000
    """Of the recordings, in Hz."""
    bands: PositiveInt = 128
    """Mel bands."""
    channels: Sizes = (512, 512, 512, 512, 1536)
    """Outputs."""
    kernels: Sizes = (5, 3, 3, 3, 1)
    """Kernels; odd."""
    dilations: Sizes = (1, 2, 3, 4, 1)
    """Dilations."""
    groups: PositiveInt = Field(default=8, ge=2)
    """Groups of channels in a block, each of which reads the one before."""
    squeeze: PositiveInt = 128
    """Channels between the two layers of squeeze-and-excitation."""
    attention: PositiveInt = 128
    """Channels of the attention over time."""

    @model_validator(mode="after")
    def _fits(self) -> SpeakerEncoderConfig:
        if not len(self.channels) == len(self.kernels) == len(self.dilations):
            raise ValueError("channels, kernels and dilations must have as many entries")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"kernels must be odd, found {list(self.kernels)}")
        inside = self.channels[:-1]
        if any(one % self.groups or one != inside[0] for one in inside):
            raise ValueError(f"blocks have equal channels, a multiple of groups {self.groups}, found {list(inside)}")
        if self.channels[-1] != sum(inside[1:]):
            raise ValueError(f"the last of channels reads all blocks, {sum(inside[1:])}, found {self.channels[-1]}")
        return self


class TimeConv(nn.Module):
    """relu(convolution) of the length of its input, which is reflected at its ends."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.edge = dilation * (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, T] -> [B, outputs, T]."""
        return F.relu(self.conv(F.pad(x, (self.edge, self.edge), mode="reflect") if self.edge else x))


class Block(nn.Module):
    """x + gates * conv(groups(conv(x))): the groups of channels one after another, then a gate for each channel."""

    def __init__(self, config: SpeakerEncoderConfig, number: int):
        super().__init__()
        width, part = config.channels[number], config.channels[number] // config.groups
        self.enter = TimeConv(width, width)
        self.parts = nn.ModuleList(
            TimeConv(part, part, config.kernels[number], config.dilations[number]) for _ in range(config.groups - 1)
        )
        self.leave = TimeConv(width, width)
        self.squeeze = nn.Conv1d(width, config.squeeze, 1)
        self.excite = nn.Conv1d(config.squeeze, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, T] -> the same shape."""
        first, *others = self.enter(x).chunk(len(self.parts) + 1, dim=1)
        found = [first]
        for number, (part, group) in enumerate(zip(self.parts, others, strict=True)):
            found.append(part(group + found[-1] if number else group))
        h = self.leave(torch.cat(found, dim=1))
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean(dim=2, keepdim=True)))))
        return x + h * gates


class SpeakerEncoder(nn.Module):
    """The encoder; `width` is that of its vectors."""

    def __init__(self, config: SpeakerEncoderConfig, width: int):
        super().__init__()
        self.config = config
        channels, last = config.channels, config.channels[-1]
        self.first = TimeConv(config.bands, channels[0], config.kernels[0], config.dilations[0])
        self.blocks = nn.ModuleList(Block(config, number) for number in range(1, len(channels) - 1))
        self.join = TimeConv(last, last, config.kernels[-1], config.dilations[-1])
        self.attend = TimeConv(3 * last, config.attention)
        self.weigh = nn.Conv1d(config.attention, last, 1)
        self.out = nn.Conv1d(2 * last, width, 1)

    @property
    def shortest(self) -> int:
        """Fewest samples of a recording: reflections need spectra."""
        pads = zip(self.config.kernels, self.config.dilations, strict=True)
        spectra = 1 + max(dilation * (kernel - 1) // 2 for kernel, dilation in pads)
        return max(spectra * HOP, WINDOW)

    def forward(self, mel: Tensor) -> Tensor:
        """Log mel spectra [B, T, bands] -> vectors [B, width]."""
        x = self.first(mel.transpose(1, 2))
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        x = self.join(torch.cat(found, dim=1))
        T = x.shape[2]
        mean, deviation = _statistics(x, torch.full_like(x[:, :1], 1 / T))
        context = [part.unsqueeze(2).expand(-1, -1, T) for part in (mean, deviation)]
        weights = self.weigh(torch.tanh(self.attend(torch.cat([x, *context], dim=1)))).softmax(dim=2)
        return self.out(torch.cat(_statistics(x, weights), dim=1).unsqueeze(2)).squeeze(2)

    @torch.no_grad()
    def of(self, samples: Tensor) -> Tensor:
        """The vector [width] of a recording, samples [N] at the config's rate, in float32 on the CPU.

        Raises:
            ValueError: it is too short, or not finite.
        """
        if len(samples) < self.shortest:
            raise ValueError(f"the voice has {len(samples)} samples, its speaker needs {self.shortest} or more")
        if not bool(samples.isfinite().all()):
            raise ValueError("the voice holds NaN or infinite values")
        device = self.out.weight.device
        dtype = self.out.weight.dtype
        mel = log_mel(samples.float().cpu(), self.config.sample_rate, self.config.bands)
        with torch.autocast(device.type, enabled=False):
            if dtype == torch.float32:
                return self(mel[None].to(device))[0].cpu()
            exact = SpeakerEncoder(self.config, self.out.out_channels).to(device)
            exact.load_state_dict(self.state_dict())
            return exact(mel[None].to(device))[0].cpu()


def _statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation over time, [B, C] each, of x [B, C, T]."""
    mean = (weights * x).sum(dim=2)
    deviation = (weights * (x - mean.unsqueeze(2)).square()).sum(dim=2)
    return mean, deviation.clamp(min=1e-12).sqrt()


def log_mel(samples: Tensor, sample_rate: int, bands: int) -> Tensor:
    """Logarithms of the mel spectra of samples [N], [T, bands] with T = N / HOP rounded down."""
    edge = (WINDOW - HOP) // 2
    padded = F.pad(samples[None, None], (edge, edge), mode="reflect")[0, 0]
    window = torch.hann_window(WINDOW)
    spectra = torch.stft(padded, WINDOW, HOP, WINDOW, window, center=False, return_complex=True)
    magnitudes = (spectra.real.square() + spectra.imag.square() + 1e-9).sqrt()
    return (slaney_filters(sample_rate, WINDOW, bands, HIGHEST) @ magnitudes).clamp(min=1e-5).log().T


def slaney_filters(sample_rate: int, window: int, bands: int, highest: float) -> Tensor:
    """Triangular filters [bands, window / 2 + 1] of equal area on Slaney's mel scale: linear up to 1000 Hz (15 mel),
    then logarithmic, with 27 mel for a factor of 6.4. Source: Auditory Toolbox, 1998."""
    top = 3 * highest / 200 if highest < 1000 else 15 + 27 * math.log(highest / 1000) / math.log(6.4)
    mels = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    low, middle, high = (edges[i : i + bands, None] for i in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()
