"""What a codec class does, measured on a short noise: samples per frame, codebooks, and the lengths that it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import MOST_FRAMES, TransformersCodecConfig
from .network import HubNet

FRAMES = (8, 13)
"""Frames that are decoded: two numbers tell the samples per frame from those that are lost at the end."""
FEWEST_SAMPLES = 8192


@dataclass(frozen=True)
class Probed:
    """The measured settings of `TransformersCodecConfig`."""

    all_codebooks: int
    codebook_size: int
    sample_rate: int
    encoder_rate: int
    hop: int
    lost: int
    whole_frames: bool
    shortest: int


def probe(net: HubNet, codebooks: int | None = None) -> Probed:
    """Measure a codec, and compare with what its config states.

    Args:
        codebooks: number that is in use; None: all.
    Raises:
        ValueError: the config states another frame rate, number of codebooks or size of them than the class gives; the
            class gives other codes at a second call; or it cannot decode that many codebooks.
    """
    name, rate, encoder_rate = f"'{net.model_type}'", net.sample_rate, net.encoder_rate
    noise = _noise(max(encoder_rate // 2, FEWEST_SAMPLES), net)
    codes = net.encode(noise)
    size, number = net.codebook_size, len(codes)
    stated = getattr(net.model.config, "num_quantizers", None)
    if isinstance(stated, int) and stated != number:
        raise ValueError(f"config of {name}: num_quantizers is {stated}, but the class encodes {number} codebooks")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise ValueError(f"config of {name}: codebook_size is {size}, but the class gives code {int(codes.max())}")
    used = number if codebooks is None else codebooks
    if not 1 <= used <= number:
        raise ValueError(f"{used} codebooks were asked for, {name} has {number}")
    hop, lost = _samples_per_frame(net, used, size)
    stated = getattr(net.model.config, "hop_length", None)
    if isinstance(stated, int) and stated != hop:
        raise ValueError(f"config of {name}: hop_length is {stated}, but a frame is decoded to {hop} samples")
    if hop * encoder_rate % rate:
        raise ValueError(
            f"config of {name}: a frame is decoded to {hop} samples at {rate} Hz, which is no whole number of samples "
            f"at the encoder's {encoder_rate} Hz"
        )
    encoder_hop = hop * encoder_rate // rate
    expected = len(noise) / encoder_hop
    if abs(codes.shape[1] - expected) > 2:
        raise ValueError(
            f"config of {name}: {len(noise)} samples at {encoder_rate} Hz must be {expected:.1f} frames, as a frame is "
            f"decoded to {hop} samples at {rate} Hz, but the class encodes {codes.shape[1]}"
        )
    if not torch.equal(codes, net.encode(noise)):
        raise ValueError(f"{name} gives other codes for the same audio each time; it cannot be a frozen tokenizer")
    shortest = _shortest(net, encoder_hop)
    before = max(shortest, FRAMES[0]) * encoder_hop
    whole = any(_frames(net, before + more) * encoder_hop < before + more for more in (1, encoder_hop - 1) if more)
    return Probed(number, size, rate, encoder_rate, hop, lost, whole, shortest)


def check_probed(config: TransformersCodecConfig, net: HubNet) -> None:
    """Raise ValueError unless a config states what `probe` measures; names the first setting that differs."""
    for name, found in vars(probe(net, config.codebooks)).items():
        if getattr(config, name) != found:
            raise ValueError(
                f"tokenizer '{config.name}': {name} is {getattr(config, name)} in its config, but "
                f"'{net.model_type}' gives {found}; convert the public model again"
            )


def _samples_per_frame(net: HubNet, codebooks: int, size: int) -> tuple[int, int]:
    """Samples per frame, and by how many decoded audio is shorter than its frames."""
    found = []
    for frames in FRAMES:
        codes = torch.arange(codebooks * frames, device=_device(net)).view(codebooks, frames) % size
        codes[:, -1] = size - 1
        samples = net.decode(codes)
        if not bool(samples.isfinite().all()):
            raise ValueError(f"'{net.model_type}' decodes {codebooks} codebooks to NaN or infinite samples")
        if frames == FRAMES[0] and not torch.equal(samples, net.decode(codes)):
            raise ValueError(f"'{net.model_type}' decodes to other audio each time; it cannot be a frozen tokenizer")
        found.append(samples.shape[1])
    hop, rest = divmod(found[1] - found[0], FRAMES[1] - FRAMES[0])
    if rest or hop < 1:
        raise ValueError(
            f"'{net.model_type}' decodes {FRAMES[0]} frames to {found[0]} samples and {FRAMES[1]} to {found[1]}: "
            "frames of unequal length are not supported"
        )
    return hop, FRAMES[0] * hop - found[0]


def _shortest(net: HubNet, encoder_hop: int) -> int:
    frames = 1
    while _frames(net, frames * encoder_hop) < frames:
        frames *= 2
        if frames > MOST_FRAMES:
            return_ = net.encode(_noise(MOST_FRAMES * encoder_hop, net)).shape[1]  # raises where the class does
            raise ValueError(
                f"'{net.model_type}' encodes {MOST_FRAMES} frames of {encoder_hop} samples to {return_} frames; frames "
                "of another length than decoded ones are not supported"
            )
    return frames


def _frames(net: HubNet, samples: int) -> int:
    """Frames that this many samples are encoded to, 0 if the class cannot."""
    try:
        return net.encode(_noise(samples, net)).shape[1]
    except ValueError:
        return 0


def _noise(samples: int, net: HubNet) -> Tensor:
    made = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    return (0.1 * made).to(_device(net))


def _device(net: HubNet) -> torch.device:
    return next(net.parameters()).device
