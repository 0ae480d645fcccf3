"""Stability of codes: where they must not change, and how many change when the media change slightly.

must not change    the item in a batch with others, with noise after its length, under autocast
may change         shifted by one frame, with noise 40 dB below, decoded and encoded again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ...tokenize.spec import AudioGeometry, ImageGeometry
from ...tokenize.tokenizer import Tokenizer

NOISE_DB = 40.0
"""Signal-to-noise ratio of the added noise."""


@dataclass(frozen=True)
class Stability:
    """Fraction of codes that differ from those of the item encoded alone."""

    items: int
    codes: int
    """Codes compared in each test."""
    batch: float
    """In a batch with others, in two orders. Any value above 0 is a defect of the tokenizer."""
    padding: float | None
    """With noise after the item's length, likewise; None for images, which have one size."""
    autocast: float
    """With bfloat16 autocast around the call, likewise."""
    shift: list[float] | None
    """[K] shifted by one frame (images: by one cell to the right), compared with equally shifted codes; None if frames
    are not the cells of a single grid over the image."""
    noise: list[float]
    """[K] with white noise 40 dB below the item."""
    again: list[float]
    """[K] decoded and encoded again."""

    @property
    def stable(self) -> bool:
        """True if no code changed where none may."""
        return not (self.batch or self.padding or self.autocast)


def code_stability(tokenizer: Tokenizer, media: Sequence[Tensor], progress: bool = False) -> Stability:
    """Compare codes of items encoded alone with those of the same items under other conditions.

    Args:
        media: items [1, N] of any length, or images [C, height, width].
    """
    audio = tokenizer.spec.geometry.kind == "audio"
    batch, lengths = _pad(media) if audio else (torch.stack(list(media)), None)
    backwards = torch.arange(len(media)).flip(0)
    bar = tqdm(total=(7 + audio) * len(media), desc="code stability", unit="item", disable=not progress, leave=False)

    def encode(chosen: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        encoded = tokenizer.encode(chosen, lengths)
        bar.update(len(chosen))
        return [codes[:, :length].cpu() for codes, length in zip(encoded.codes, encoded.lengths.tolist(), strict=True)]

    alone = [encode(item[None])[0] for item in media]
    forwards = encode(batch, lengths)
    reversed_ = encode(batch[backwards], None if lengths is None else lengths[backwards])[::-1]
    with torch.autocast(tokenizer.device.type, dtype=torch.bfloat16):
        autocast = [encode(item[None])[0] for item in media]
    padding = None
    if audio:
        padded = [
            encode(torch.cat([item, _noise_like(item)], -1)[None], torch.tensor([item.shape[-1]]))[0] for item in media
        ]
        padding = changed_share(padded, alone)
    shift = None
    if _can_move(tokenizer.spec.geometry):
        moved = [_moved(tokenizer, item, codes) for item, codes in zip(media, alone, strict=True)]
        shifted = [(encode(item[None])[0][:, there], codes[:, here]) for item, codes, here, there in moved]
        shift = changed_by_codebook(*zip(*shifted, strict=True))
    noisy = [encode(_with_noise(item, number)[None])[0] for number, item in enumerate(media)]
    decoded = [tokenizer.decode(codes[None])[0].cpu() for codes in alone]
    cut = [found[..., : item.shape[-1]] for found, item in zip(decoded, media, strict=True)]
    again = [encode(item[None])[0] for item in cut]
    bar.close()
    return Stability(
        items=len(media),
        codes=sum(codes.numel() for codes in alone),
        batch=changed_share([*forwards, *reversed_], [*alone, *alone]),
        padding=padding,
        autocast=changed_share(autocast, alone),
        shift=shift,
        noise=changed_by_codebook(noisy, alone),
        again=changed_by_codebook(again, alone),
    )


def changed_share(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Fraction of codes that differ; all codes of an item with another length count as changed."""
    pairs = list(zip(found, wanted, strict=True))
    changed = sum(int((a != b).sum()) if a.shape == b.shape else b.numel() for a, b in pairs)
    return changed / max(1, sum(codes.numel() for codes in wanted))


def changed_by_codebook(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    """Changed fraction per codebook of items [K, T]."""
    return [changed_share([a[k] for a in found], [b[k] for b in wanted]) for k in range(wanted[0].shape[0])]


def _can_move(geometry: AudioGeometry | ImageGeometry) -> bool:
    """Audio, and images with a single grid of square cells; not several scales or tokens without a position."""
    if isinstance(geometry, AudioGeometry):
        return True
    whole = geometry.height % geometry.rows == 0 and geometry.width % geometry.columns == 0
    square = geometry.height * geometry.columns == geometry.width * geometry.rows
    return whole and square and not geometry.scales


def _moved(tokenizer: Tokenizer, item: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The item shifted by a frame, its original codes, and the compared frame numbers before and after."""
    geometry = tokenizer.spec.geometry
    frames = torch.arange(codes.shape[1])
    if isinstance(geometry, AudioGeometry):
        return torch.nn.functional.pad(item, (geometry.samples_per_frame, 0)), codes, frames, frames + 1
    pixels = geometry.width // geometry.columns
    moved = torch.cat([item[..., :1].expand(*item.shape[:-1], pixels), item[..., :-pixels]], dim=-1)
    here = frames[frames % geometry.columns < geometry.columns - 1]
    return moved, codes, here, here + 1


def _with_noise(item: Tensor, seed: int) -> Tensor:
    noise = torch.randn(item.shape, generator=torch.Generator().manual_seed(seed))
    level = item.square().mean().sqrt() * 10 ** (-NOISE_DB / 20)
    return (item + level * noise).clamp(-1, 1)


def _pad(media: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Items [1, N] -> [B, 1, longest] with noise after each, and their lengths."""
    lengths = torch.tensor([item.shape[-1] for item in media])
    batch = torch.stack([_noise_like(media[0], int(lengths.max())) for _ in media])
    for row, item in zip(batch, media, strict=True):
        row[:, : item.shape[-1]] = item
    return batch, lengths


def _noise_like(item: Tensor, length: int = 4321) -> Tensor:
    return torch.rand(item.shape[0], length, generator=torch.Generator().manual_seed(length)) * 2 - 1
