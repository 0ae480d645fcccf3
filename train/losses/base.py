"""Interfaces of tokenizer losses: their inputs, and their output, the loss of each example, [B].

The loss of a batch is the mean over its examples, so the shares of micro-batches and processes add up to the loss of
the whole batch, however it is split. There are two kinds of loss:

    output   compares the reconstruction with the target; has no weights, and its gradient passes through the balance
    inner    reads latents and codes; may have layers trained with the tokenizer, and is added without balancing
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
    """Fields common to all losses; each config also has a `kind`."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,100}$")
    """Name in metrics, stages and balances; null: the kind."""
    weight: NonNegativeFloat = 1.0
    """Weight of this loss in the sum (see `balance`)."""

    @property
    def key(self) -> str:
        """Name of the loss."""
        return self.name or vars(self)["kind"]


@dataclass(frozen=True)
class MediaBatch:
    """A batch or one of its micro-batches."""

    media: Tensor
    """[B, N] samples ([B, C, N] for multi-channel audio), N a multiple of hop, or [B, C, height, width]; in [-1, 1]."""
    sample_mask: Tensor | None
    """[B, N] bool, False on padding; None for images."""
    frame_mask: Tensor | None
    """[B, T] bool; None for images."""
    whole: Tensor
    """[B] bool, True where the excerpt covers the whole item."""
    labels: Tensor
    """[B] long, -1 for no label."""
    texts: Sequence[str | None]
    batch_items: int
    """Examples in the whole batch, over all micro-batches and processes."""
    batch_frames: int
    """Unpadded audio frames in the whole batch; 0 for images."""
    batch_labels: Tensor
    """[batch_items] long, labels of the whole batch."""
    batch_texts: Sequence[str | None]
    """Texts of the whole batch."""

    def to(self, device: torch.device) -> MediaBatch:
        """Copy to another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class LossContext:
    """What losses are built from, besides their config."""

    geometry: AudioGeometry | ImageGeometry
    latent_dim: int
    num_codebooks: int
    alphabet: str = ""
    """All characters in the transcripts of the corpus, sorted."""
    labels: Sequence[str] = ()
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules passed in Python."""


@dataclass(frozen=True)
class LatentLossInputs:
    """Inputs of inner losses."""

    batch: MediaBatch
    latents: Tensor
    """[B, T, D] float32, encoder output."""
    quantized: Quantized | None
    """None in a stage that does not quantize."""
    quantizer: Quantizer
    geometry: AudioGeometry | ImageGeometry
    found: Tensor | None = None
    """The reconstruction, shaped like batch.media, without gradients; present if an active loss needs it."""

    @property
    def mask(self) -> Tensor:
        """[B, T] bool, True on valid frames."""
        found = self.batch.frame_mask
        return torch.ones_like(self.latents[..., 0], dtype=torch.bool) if found is None else found

    @property
    def places(self) -> tuple[int, ...]:
        """Layout of the T latents: (T,), or (rows, columns) for an image."""
        geometry, count = self.geometry, self.latents.shape[1]
        if isinstance(geometry, ImageGeometry) and geometry.rows * geometry.columns == count:
            return geometry.rows, geometry.columns
        return (count,)

    def values(self, levels: str | tuple[int, ...]) -> Tensor:
        """Latents [B, T, D] of the given levels.

        "latents": the encoder output. "all": the quantized latents. Otherwise the sum of the code vectors of these
        levels, with a gradient of exactly 1 to the encoder. Without quantization, each of them is the encoder output.
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
    """Inputs of output losses. Multi-channel audio is expanded to V signals per example, consecutive in the batch: the
    channels and, for stereo, their sum and difference (see `loss_signals`)."""

    batch: MediaBatch
    found: Tensor
    """The reconstruction, shaped like batch.media or [B * V, N]; silent on padding."""
    wanted: Tensor
    """The target, same shape."""
    discriminators: Discriminators | None = None
    excerpt: slice = field(default_factory=lambda: slice(None))
    """Samples that the discriminators receive; all of an image."""

    def excerpts(self) -> tuple[Tensor, Tensor]:
        """Real and reconstructed media as the discriminators receive them: audio channels are separate examples."""
        media = self.batch.media
        if media.dim() == 4:
            return self.wanted, self.found
        channels = media.shape[1] if media.dim() == 3 else 1
        pair = (audio.unflatten(0, (len(media), -1))[:, :channels].flatten(0, 1) for audio in (self.wanted, self.found))
        wanted, found = (audio[:, self.excerpt] for audio in pair)
        return wanted, found

    @cached_property
    def verdict(self) -> tuple[Tensor, Tensor]:
        """The adversarial loss and the feature distance, each [B]; see Discriminators.fool."""
        assert self.discriminators is not None
        return self.discriminators.fool(*self.excerpts())


def loss_signals(media: Tensor) -> Tensor:
    """Signals that losses compare: [B, N] unchanged; [B, C, N] -> [B * V, N], each channel and, for stereo, also half
    the sum and half the difference. Without those, left and right may each fit while their combination does not."""
    if media.dim() == 2:
        return media
    if media.shape[1] == 2:
        left, right = media.unbind(1)
        media = torch.stack([left, right, (left + right) / 2, (left - right) / 2], 1)
    return media.flatten(0, 1)


def mixed(media: Tensor) -> Tensor:
    """Audio as one channel: [B, N] unchanged, the mean of [B, C, N]; images unchanged."""
    return media.mean(1) if media.dim() == 3 else media


class ReconstructionLoss:
    """Base class of output losses."""

    needs_discriminators = False
    """Whether it needs discriminators."""

    def __call__(self, view: ReconstructionLossInputs) -> Tensor:
        """The loss of each example, [B] float32, or of each signal, [B * V]."""
        raise NotImplementedError


class LatentLoss(nn.Module):
    """Base class of inner losses."""

    needs_codes = False
    """Whether it requires quantized latents."""
    needs_found = False
    """Whether it needs the reconstruction."""

    def forward(self, view: LatentLossInputs) -> Tensor:
        """The loss of each example, [B] float32."""
        raise NotImplementedError


def check_levels(levels: str | tuple[int, ...], num_codebooks: int, where: str) -> None:
    """Raise ConfigError if a level does not exist."""
    for level in () if isinstance(levels, str) else levels:
        if not 0 <= level < num_codebooks:
            raise ConfigError(
                f"{where}.levels: there is no level {level}; the quantizer has {num_codebooks} levels, from 0 to "
                f"{num_codebooks - 1}"
            )


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where the mask [B, T] is true, for each example [B]; 0 if the mask is empty."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp_min(1)
