"""How close is a reconstruction? Distances between one item and its copy; a table for each kind of media.

A measure gives None where it is not defined for an item (silence, too short), and raises ImportError when its package
is not installed. Nothing is replaced by a made-up worst value.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tokenize.resample import resample
from .spectra import magnitudes, mel_filters

MEL_WINDOW, MEL_BANDS = 1024, 80


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures [C, height, width] in [-1, 1] (a span of 2); at most 100."""
    error = (found.double() - wanted.double()).square().mean().item()
    return min(100.0, 10 * math.log10(4 / max(error, 1e-12)))


def ssim(found: Tensor, wanted: Tensor) -> float | None:
    """Structural similarity of pictures [C, height, width] in [-1, 1], mean over channels; windows of at most 7."""
    from skimage.metrics import structural_similarity

    smallest = min(wanted.shape[1:])
    window = min(7, smallest - 1 + smallest % 2)
    if window < 3:
        return None
    # From 0 to 1: with means of both signs, a negative picture's two faults would make a right.
    a, b = ((picture.double().cpu().numpy() + 1) / 2 for picture in (found, wanted))
    similarity: Any = structural_similarity(a, b, win_size=window, data_range=1.0, channel_axis=0)
    return float(similarity)


def si_sdr(found: Tensor, wanted: Tensor, sample_rate: int) -> float | None:
    """Scale-invariant signal-to-distortion ratio in dB of samples [N], within +-100. Source: arXiv:1811.02508."""
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
        warnings.simplefilter("error", RuntimeWarning)  # too little speech is only a warning there, and 1e-5 the answer
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


def is_silent(samples: Tensor) -> bool:
    """Nothing above a 16-bit file's last bit."""
    return samples.abs().max().item() < 2.0**-15


PICTURE_MEASURES: dict[str, Callable[[Tensor, Tensor], float | None]] = {"psnr_db": psnr, "ssim": ssim}
AUDIO_MEASURES: dict[str, Callable[[Tensor, Tensor, int], float | None]] = {
    "si_sdr_db": si_sdr,
    "log_mel": log_mel_distance,
    "stoi": stoi,
    "pesq": pesq,
}
