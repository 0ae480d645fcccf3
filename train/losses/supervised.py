"""Supervised heads on chosen levels: what the codes must predict. Heads are trained with the tokenizer, then dropped.

    ctc        characters of the transcript, one prediction per token (CosyVoice, GLM-4-Voice: tokens from recognition)
    caption    characters of the transcript, autoregressive, with cross-attention to the tokens (QDAC)
    label      the item's label, from the mean over the tokens

Recognition needs the whole item: partial excerpts do not count, so set `train.crop_seconds` to the length of most
items. Sources: CTC, doi:10.1145/1143844.1143891; CosyVoice, arXiv:2407.05407.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import ConfigError, LayerCount, LayerCountOrNone
from ...tokenize.layers.convnext import ConvNeXtStack
from .base import LatentLoss, LatentLossInputs, LossConfig, LossContext, check_levels, mean_over
from .decoder_blocks import check_heads, make_decoder_blocks
from .distillation import Levels


class CTCConfig(LossConfig):
    """Speech recognition, one prediction per token."""

    kind: Literal["ctc"] = "ctc"
    levels: Levels = (0,)
    """Levels that predict: codebook numbers, "all" for quantized latents, or "latents" for those before the
    quantizer."""
    width: PositiveInt = 128
    """Channels of the ConvNeXt blocks."""
    blocks: LayerCountOrNone = 2
    """ConvNeXt blocks before the output layer."""


class CaptionConfig(LossConfig):
    """Speech recognition, character by character."""

    kind: Literal["caption"] = "caption"
    levels: Levels = (0,)
    """Levels that predict: codebook numbers, "all" for quantized latents, or "latents" for those before the
    quantizer."""
    width: PositiveInt = 128
    """Width of the head's hidden states, a multiple of heads."""
    heads: LayerCount = 4
    """Attention heads of each transformer block."""
    blocks: LayerCount = 2
    """Transformer blocks."""
    max_characters: PositiveInt = 256
    """Longer transcripts are ignored."""


class LabelHeadConfig(LossConfig):
    """Classification."""

    kind: Literal["label"] = "label"
    levels: Levels = (0,)
    """Levels that predict: codebook numbers, "all" for quantized latents, or "latents" for those before the
    quantizer."""


class CTCLoss(LatentLoss):
    """See CTCConfig. Nats per character."""

    def __init__(self, config: CTCConfig, context: LossContext, where: str):
        super().__init__()
        check_text(config.levels, context, where)
        self.config, self.alphabet = config, context.alphabet
        outputs = 1 + len(context.alphabet)  # 0 is the blank
        self.head = ConvNeXtStack(context.latent_dim, config.width, outputs, config.blocks, 5, causal=False)

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        values, mask = view.values(self.config.levels), view.mask
        chances = self.head(values, mask).float().log_softmax(-1)
        ids, lengths = spell(view, self.alphabet)
        losses = F.ctc_loss(
            chances.transpose(0, 1), ids + 1, mask.sum(1), lengths, reduction="none", zero_infinity=True
        )
        # A text too long for the number of tokens has infinite loss; zero_infinity ignores it.
        return torch.where(lengths > 0, losses / lengths.clamp_min(1), 0.0)


class CaptionLoss(LatentLoss):
    """See CaptionConfig. Nats per character, counting the end symbol."""

    def __init__(self, config: CaptionConfig, context: LossContext, where: str):
        super().__init__()
        check_text(config.levels, context, where)
        check_heads(config.width, config.heads, where)
        self.config, self.alphabet = config, context.alphabet
        self.end = len(context.alphabet)  # also the start symbol
        self.read = nn.Linear(context.latent_dim, config.width)
        self.characters = nn.Embedding(len(context.alphabet) + 1, config.width)
        self.places = nn.Parameter(0.02 * torch.randn(config.max_characters + 1, config.width))
        self.blocks = make_decoder_blocks(config.width, config.heads, config.blocks)
        self.norm = nn.LayerNorm(config.width)
        self.guess = nn.Linear(config.width, len(context.alphabet) + 1)

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        memory, mask = self.read(view.values(self.config.levels)), view.mask
        ids, lengths = spell(view, self.alphabet)
        lengths = torch.where(lengths > self.config.max_characters, 0, lengths)
        longest = int(lengths.max())
        ids = F.pad(ids[:, :longest], (0, 1), value=self.end)
        ids = torch.where(torch.arange(longest + 1, device=ids.device) < lengths[:, None], ids, self.end)
        h = self.characters(F.pad(ids[:, :-1], (1, 0), value=self.end)) + self.places[: longest + 1]
        ahead = torch.ones(longest + 1, longest + 1, dtype=torch.bool, device=ids.device).triu(1)
        for block in self.blocks:
            h = block(h, memory, tgt_mask=ahead, memory_key_padding_mask=~mask)
        logits = self.guess(self.norm(h)).float()
        losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        counted = torch.arange(longest + 1, device=ids.device) <= lengths[:, None]
        return mean_over(losses, counted & (lengths > 0)[:, None])


class LabelLoss(LatentLoss):
    """See LabelHeadConfig. Nats per example; examples without a label are ignored."""

    def __init__(self, config: LabelHeadConfig, context: LossContext, where: str):
        super().__init__()
        check_levels(config.levels, context.num_codebooks, where)
        if not context.labels:
            raise ConfigError(f"{where}.kind: 'label' needs labels, but the corpus in data has none")
        self.config = config
        self.guess = nn.Linear(context.latent_dim, len(context.labels))

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        values, inside = view.values(self.config.levels), view.mask[..., None]
        mean = (values * inside).sum(1) / inside.sum(1).clamp_min(1)
        labels = view.batch.labels
        losses = F.cross_entropy(self.guess(mean).float(), labels.clamp_min(0), reduction="none")
        return torch.where(labels >= 0, losses, 0.0)


def check_text(levels: str | tuple[int, ...], context: LossContext, where: str) -> None:
    """Raise ConfigError if the corpus has no transcripts or a level does not exist."""
    check_levels(levels, context.num_codebooks, where)
    if not context.alphabet:
        raise ConfigError(f"{where}.kind: recognition needs transcripts, but the corpus in data has none")


def spell(view: LatentLossInputs, alphabet: str) -> tuple[Tensor, Tensor]:
    """Character indices of the transcripts, [B, longest] long, and their lengths [B]; length 0 for an example without a
    transcript or with a partial excerpt."""
    number = {character: place for place, character in enumerate(alphabet)}
    batch, device = view.batch, view.latents.device
    rows = [
        [number[character] for character in text or ""] if whole else []
        for text, whole in zip(batch.texts, batch.whole.tolist(), strict=True)
    ]
    ids = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = torch.tensor(found, dtype=torch.long)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)
