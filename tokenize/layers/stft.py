"""STFT whose frames are exactly the tokenizer's frames: frame t is centered on samples [t*hop, (t+1)*hop).

    samples   |---hop---|---hop---|---hop---|
    frame 0  <----- window ----->                 starts (window - hop)/2 samples before its hop
    frame 1            <----- window ----->

N samples (N a multiple of hop) give N/hop frames, and the inverse returns N samples ("same" framing, as in Vocos,
arXiv:2306.00814). Masked frames contribute neither signal nor window weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def frame_signal(samples: Tensor, window: int, hop: int) -> Tensor:
    """Split samples [..., N] (N a multiple of hop) into frames [..., N / hop, window], zero-padded at the ends."""
    edge = (window - hop) // 2
    return F.pad(samples, (edge, window - hop - edge)).unfold(-1, window, hop)


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Overlap-add frames [B, T, window] -> [B, T * hop + window - hop] samples."""
    batch, count, window = frames.shape
    length = count * hop + window - hop
    folded = F.fold(frames.transpose(1, 2), (1, length), (1, window), stride=(1, hop))
    return folded.reshape(batch, length)


def inverse_spectrum(spectrum: Tensor, mask: Tensor, window: Tensor, hop: int) -> Tensor:
    """Least-squares inverse of windowed spectra by overlap-add.

    Args:
        spectrum: complex [B, T, window/2 + 1].
        mask: [B, T], True for valid frames.
        window: analysis and synthesis window, float [window].
    Returns:
        samples [B, T * hop].
    Source: Griffin and Lim 1984, equation 6.
    """
    size = window.numel()
    present = mask[..., None].to(window.dtype)
    frames = torch.fft.irfft(spectrum, n=size, dim=-1) * window * present
    weights = (window * window * present).expand(-1, -1, size)
    edge = (size - hop) // 2
    span = slice(edge, edge + mask.shape[1] * hop)
    return overlap_add(frames, hop)[:, span] / overlap_add(weights, hop)[:, span].clamp_min(1e-5)


def mel_filters(sample_rate: int, size: int, bands: int) -> Tensor:
    """Triangular mel filters [size / 2 + 1, bands], equally spaced on the mel scale (2595 log10(1 + f / 700)), each
    with sum 1."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    width = sample_rate / size  # a filter narrower than a bin would be empty: widen it to one bin
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2]).clamp_min(width)
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1]).clamp_min(width)
    filters = torch.minimum(rising, falling).clamp_min(0)
    return (filters / filters.sum(0).clamp_min(1e-9)).float()
