"""What a term of a tokenizer's loss is given, and what it gives: the loss of each item, [B].

The loss of a batch is the mean over its items. So the shares of micro-batches and processes add up to the loss of the
whole, whatever the cut. There are two places for a term:

    output   looks at the reconstruction; has no weights of its own, and its gradient goes through the balance
    inner    looks at latents and codes; may have layers that are trained along, and is added as it is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ...tokenize.quantizers.registry import Quantized, Quantizer
from ...tokenize.spec import AudioGeometry, ImageGeometry
from ..discriminators.registry import Discriminators


class LossConfig(Config):
    """What all terms have; each has a `kind` besides."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,100}$")
    """What metrics, stages and balances call it; null: its kind."""
    weight: NonNegativeFloat = 1.0

    @property
    def key(self) -> str:
        """Its name."""
        return self.name or vars(self)["kind"]


@dataclass(frozen=True)
class MediaBatch:
    """A batch, or a micro-batch of it."""

    media: Tensor
    """[B, N] samples (of several channels [B, C, N]), N a multiple of hop, or [B, C, height, width]; in [-1, 1]."""
    sample_mask: Tensor | None
    """[B, N] bool, False on padding; None for pictures."""
    frame_mask: Tensor | None
    """[B, T] bool; None for pictures."""
    whole: Tensor
    """[B] bool, True where the excerpt is the whole item."""
    labels: Tensor
    """[B] long, -1 where there is none."""
    texts: Sequence[str | None]
    batch_items: int
    """Items of the whole batch, of all micro-batches and processes."""
    batch_frames: int
    """Frames that hold sound in the whole batch; 0 for pictures."""
    batch_labels: Tensor
    """[batch_items] long, of the whole batch, as labels."""
    batch_texts: Sequence[str | None]
    """Of the whole batch."""

    def to(self, device: torch.device) -> MediaBatch:
        """On another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class LossContext:
    """What terms are made from, beside their config."""

    geometry: AudioGeometry | ImageGeometry
    latent_dim: int
    num_codebooks: int
    alphabet: str = ""
    """All characters of the corpus' transcripts, sorted."""
    labels: Sequence[str] = ()
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules given in Python."""


@dataclass(frozen=True)
class LatentLossInputs:
    """What inner terms look at."""

    batch: MediaBatch
    latents: Tensor
    """[B, T, D] float32, of the encoder."""
    quantized: Quantized | None
    """None in a stage whose latents go on as they are."""
    quantizer: Quantizer
    geometry: AudioGeometry | ImageGeometry
    found: Tensor | None = None
    """The reconstruction, as batch.media and without gradients; there where a term that is on needs it."""

    @property
    def mask(self) -> Tensor:
        """[B, T] bool, True on frames that exist."""
        found = self.batch.frame_mask
        return torch.ones_like(self.latents[..., 0], dtype=torch.bool) if found is None else found

    @property
    def places(self) -> tuple[int, ...]:
        """How the T latents lie: (T,), or (rows, columns) of a picture."""
        geometry, count = self.geometry, self.latents.shape[1]
        if isinstance(geometry, ImageGeometry) and geometry.rows * geometry.columns == count:
            return geometry.rows, geometry.columns
        return (count,)

    def values(self, levels: str | tuple[int, ...]) -> Tensor:
        """Latents [B, T, D] of some levels.

        "latents": as the encoder gives them. "all": quantized. Otherwise the sum of the code vectors of these levels,
        with a gradient of exactly 1 to the encoder. Where nothing is quantized, all of them are the latents.
        """
        if levels == "latents" or self.quantized is None:
            return self.latents
        if levels == "all":
            return self.quantized.values
        kept = torch.full_like(self.quantized.codes, -1)
        chosen = [int(level) for level in levels]
        kept[..., chosen] = self.quantized.codes[..., chosen]
        vectors = self.quantizer.decode(kept)
        return vectors + (self.latents - self.latents.detach())


@dataclass(frozen=True)
class ReconstructionLossInputs:
    """What output terms look at. Sound of several channels comes as V sounds an item, one after another in the batch:
    the channels, and of stereo their sum and difference (see `sounds`)."""

    batch: MediaBatch
    found: Tensor
    """The reconstruction, as batch.media, or [B * V, N]; silent on padding."""
    wanted: Tensor
    """What it should be, likewise."""
    judges: Discriminators | None = None
    excerpt: slice = field(default_factory=lambda: slice(None))
    """Samples that the judges look at; the whole of pictures."""

    def judged(self) -> tuple[Tensor, Tensor]:
        """Real and reconstructed media, as the judges see them: of sound of several channels each by itself."""
        media = self.batch.media
        if media.dim() == 4:
            return self.wanted, self.found
        channels = media.shape[1] if media.dim() == 3 else 1
        pair = (sound.unflatten(0, (len(media), -1))[:, :channels].flatten(0, 1) for sound in (self.wanted, self.found))
        wanted, found = (sound[:, self.excerpt] for sound in pair)
        return wanted, found

    @cached_property
    def verdict(self) -> tuple[Tensor, Tensor]:
        """The adversarial term and the distance of features, each [B]; see Judges.fool."""
        assert self.judges is not None
        return self.judges.fool(*self.judged())


def sounds(media: Tensor) -> Tensor:
    """What is listened to: [B, N] as it is; [B, C, N] -> [B * V, N], each channel, and of stereo also half the sum and
    half the difference, without which left and right may fit each by itself but not together."""
    if media.dim() == 2:
        return media
    if media.shape[1] == 2:
        left, right = media.unbind(1)
        media = torch.stack([left, right, (left + right) / 2, (left - right) / 2], 1)
    return media.flatten(0, 1)


def mixed(media: Tensor) -> Tensor:
    """Sound as one channel: [B, N] as it is, the mean of [B, C, N]; pictures as they are."""
    return media.mean(1) if media.dim() == 3 else media


class ReconstructionLoss:
    """Base of terms at the output."""

    judged = False
    """Whether it needs judges."""

    def __call__(self, view: ReconstructionLossInputs) -> Tensor:
        """The loss of each item, [B] float32; or of each sound, [B * V]."""
        raise NotImplementedError


class LatentLoss(nn.Module):
    """Base of terms inside the network."""

    needs_codes = False
    """Whether it has no meaning where latents are not quantized."""
    needs_found = False
    """Whether it looks at the reconstruction."""

    def forward(self, view: LatentLossInputs) -> Tensor:
        """The loss of each item, [B] float32."""
        raise NotImplementedError


def check_levels(levels: str | tuple[int, ...], num_codebooks: int, where: str) -> None:
    """Raise ConfigError where a level does not exist."""
    for level in () if isinstance(levels, str) else levels:
        if not 0 <= level < num_codebooks:
            raise ConfigError(
                f"{where}.levels: there is no level {level}; the quantizer has {num_codebooks}, from 0 to "
                f"{num_codebooks - 1}"
            )


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places [B, T] of a mask, for each item [B]; 0 where the mask is empty."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp_min(1)
