"""Reconstruction metrics: distances between an item and its reconstruction, one table per kind of media.

A metric returns None if it is undefined for an item (silence, too short), and raises ImportError if its package is not
installed. It never substitutes an artificial worst value.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...tokenize.audio.resample import resample
from ...tokenize.spec import AudioGeometry, TokenSpec
from ..losses.stft import magnitudes, mel_filters

MEL_WINDOW, MEL_BANDS = 1024, 80
MS_SSIM_PIXELS = 176
"""For fewer pixels, the coarsest of five scales (1/16) has no full window of 11 pixels."""
MULTI_STFT_SAMPLES = 2048
"""FFT size of the longest window."""


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images [C, height, width] in [-1, 1] (a range of 2); at most 100."""
    error = (found.double() - wanted.double()).square().mean().item()
    return min(100.0, 10 * math.log10(4 / max(error, 1e-12)))


def ssim(found: Tensor, wanted: Tensor) -> float | None:
    """Structural similarity of images [C, height, width] in [-1, 1], mean over channels; windows of at most 7."""
    from skimage.metrics import structural_similarity

    smallest = min(wanted.shape[1:])
    window = min(7, smallest - 1 + smallest % 2)
    if window < 3:
        return None
    # In [0, 1]: with means of both signs, two errors in a negative image would cancel.
    a, b = ((image.double().cpu().numpy() + 1) / 2 for image in (found, wanted))
    similarity: Any = structural_similarity(a, b, win_size=window, data_range=1.0, channel_axis=0)
    return float(similarity)


def si_sdr(found: Tensor, wanted: Tensor, sample_rate: int) -> float | None:
    """Scale-invariant signal-to-distortion ratio in dB of samples [N], clamped to +-100. Source: arXiv:1811.02508."""
    found, wanted = found.double() - found.double().mean(), wanted.double() - wanted.double().mean()
    if is_silent(wanted):
        return None
    target = (found * wanted).sum() / wanted.square().sum() * wanted
    ratio = target.square().sum() / (found - target).square().sum().clamp_min(1e-30)
    return max(-100.0, min(100.0, 10 * math.log10(max(ratio.item(), 1e-30))))


def log_mel_distance(found: Tensor, wanted: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of log-mel spectra in nats (80 bands, windows of 1024, floor 1e-4), samples [N]."""
    filters = mel_filters(sample_rate, MEL_WINDOW, MEL_BANDS)
    both = magnitudes(torch.stack([found, wanted]).float().cpu(), MEL_WINDOW) @ filters
    a, b = torch.log(both + 1e-4)
    return (a - b).abs().mean().item()


def stoi(found: Tensor, wanted: Tensor, sample_rate: int) -> float | None:
    """Short-time objective intelligibility of speech [N], 0 to 1."""
    from pystoi import stoi as measure

    if is_silent(wanted):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi only warns about too little speech, and returns 1e-5
        try:
            return float(measure(wanted.double().cpu().numpy(), found.double().cpu().numpy(), sample_rate))
        except RuntimeWarning:
            return None


def pesq(found: Tensor, wanted: Tensor, sample_rate: int) -> float | None:
    """Perceptual evaluation of speech quality (P.862, wide band at 16 kHz) of speech [N], 1 to 4.6."""
    from pesq import PesqError
    from pesq import pesq as measure

    pair = torch.stack([wanted.float(), found.float()]).cpu()
    if is_silent(wanted) or is_silent(found):
        return None
    if sample_rate != 16000:
        pair = resample(pair, sample_rate, 16000)
    try:
        return float(measure(16000, pair[0].numpy(), pair[1].numpy(), "wb"))
    except PesqError:
        return None


def ms_ssim(found: Tensor, wanted: Tensor) -> float | None:
    """SSIM over five scales of images [C, height, width] in [-1, 1]; needs 176 pixels per side."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    if min(wanted.shape[1:]) < MS_SSIM_PIXELS:
        return None
    a, b = ((image.double().cpu()[None] + 1) / 2 for image in (found, wanted))
    similarity: Any = measure(a, b, data_range=1.0)
    return float(similarity)


def multi_stft(found: Tensor, wanted: Tensor, sample_rate: int) -> float | None:
    """Multi-resolution STFT distance of samples [N] (spectral convergence and log magnitude, windows of 240 to 1200).

    Source: Parallel WaveGAN, arXiv:1910.11480, with the settings of auraloss.
    """
    from auraloss.freq import MultiResolutionSTFTLoss

    if wanted.shape[-1] <= MULTI_STFT_SAMPLES or is_silent(wanted):
        return None
    a, b = (samples.double().cpu()[None, None] for samples in (found, wanted))
    return float(MultiResolutionSTFTLoss()(a, b))


def is_silent(samples: Tensor) -> bool:
    """Whether no sample exceeds the last bit of a 16-bit file."""
    return samples.abs().max().item() < 2.0**-15


IMAGE_MEASURES: dict[str, Callable[[Tensor, Tensor], float | None]] = {
    "psnr_db": psnr,
    "ssim": ssim,
    "ms_ssim": ms_ssim,
}
AUDIO_MEASURES: dict[str, Callable[[Tensor, Tensor, int], float | None]] = {
    "si_sdr_db": si_sdr,
    "log_mel": log_mel_distance,
    "multi_stft": multi_stft,
    "stoi": stoi,
    "pesq": pesq,
}


@dataclass(frozen=True)
class Measured:
    """Result of one metric."""

    mean: float | None
    """Mean over the items where it is defined; None: not measured."""
    items: int
    note: str = ""
    """Why it is missing, or for how many items it is undefined."""


class Scores:
    """Collects every metric over all items, and records missing packages."""

    def __init__(self, spec: TokenSpec):
        self.spec = spec
        self.values: dict[str, list[float | None]] = {name: [] for name in self._measures()}
        self.missing: dict[str, str] = {}

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Add one item and its reconstruction."""
        for name, measure in self._measures().items():
            if name in self.missing:
                continue
            try:
                if isinstance(self.spec.geometry, AudioGeometry):
                    value = self._of_channels(measure, found[:, : wanted.shape[-1]], wanted)
                else:
                    value = measure(found, wanted)
                self.values[name].append(value)
            except ImportError as error:
                self.missing[name] = f"not measured: package '{error.name}' is not installed (extra 'eval')"

    def _of_channels(self, measure: Callable[..., float | None], found: Tensor, wanted: Tensor) -> float | None:
        """Mean over the channels [C, N] where it is defined."""
        assert isinstance(self.spec.geometry, AudioGeometry)
        values = [measure(a, b, self.spec.geometry.sample_rate) for a, b in zip(found, wanted, strict=True)]
        defined = [value for value in values if value is not None]
        return sum(defined) / len(defined) if defined else None

    def _measures(self) -> dict[str, Callable[..., float | None]]:
        return AUDIO_MEASURES if self.spec.geometry.kind == "audio" else IMAGE_MEASURES

    def result(self) -> dict[str, Measured]:
        """Means by name."""
        measured = {}
        for name, values in self.values.items():
            defined = [value for value in values if value is not None]
            undefined = len(values) - len(defined)
            note = self.missing.get(name, f"not defined for {undefined} items" if undefined else "")
            measured[name] = Measured(sum(defined) / len(defined) if defined else None, len(defined), note)
        return measured
