"""Contrastive loss: matches the tokens of an example with its caption among those of the batch.

With z and t the normalized vectors of examples i and of the distinct captions j of the whole batch, and s, b learned:

    softmax   -log softmax_j(s z_i t_j) at the example's own caption     each example chooses among all captions
    sigmoid   mean_j -log sigmoid(+- (s z_i t_j + b))                    every pair: + where they match

A caption is the item's transcript, encoded by a small network, or its label. Every process encodes the captions of the
whole batch, so the loss does not depend on how the batch is split. Sources: contrast between tokens and captions, SEED,
arXiv:2307.08041, and QLIP, arXiv:2502.05178; the losses: CLIP, arXiv:2103.00020 (its image-to-caption half), and
SigLIP, arXiv:2303.15343.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import ConfigError, LayerCount
from ...tokenize.layers.convnext import ConvNeXtStack
from .base import LatentLoss, LatentLossInputs, LossConfig, LossContext, check_levels
from .distillation import Levels


class ContrastConfig(LossConfig):
    """Contrastive loss between examples and captions in a shared space."""

    kind: Literal["contrast"] = "contrast"
    caption: Literal["text", "label"] = "text"
    """What an example is matched with. text: its transcript. label: its label."""
    levels: Levels = "all"
    """Levels to match: codebook numbers, "all" for quantized latents, or "latents" for those before the quantizer."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: each example chooses among all captions of the batch (CLIP). sigmoid: every pair is classified
    (SigLIP)."""
    token: Literal["mean", "last"] = "mean"
    """Vector of an example: the mean over its tokens, or the last one (a causal encoder's last token covers the whole
    item)."""
    width: PositiveInt = 64
    """Width of the shared space and of the caption encoder."""
    blocks: LayerCount = 2
    """ConvNeXt blocks of the text encoder."""


class ContrastiveLoss(LatentLoss):
    """See ContrastConfig. Examples without a caption, or with a text but only a partial excerpt, are ignored."""

    def __init__(self, config: ContrastConfig, context: LossContext, where: str):
        super().__init__()
        check_levels(config.levels, context.num_codebooks, where)
        known = context.alphabet if config.caption == "text" else context.labels
        if not known:
            wanted = "transcripts" if config.caption == "text" else "labels"
            raise ConfigError(f"{where}.caption: contrast needs {wanted}, but the corpus in data has none")
        self.config = config
        self.number = {name: place for place, name in enumerate(known)}
        self.names = nn.Embedding(len(known), config.width)
        self.read = None
        if config.caption == "text":
            self.read = ConvNeXtStack(config.width, config.width, config.width, config.blocks, 5, causal=False)
        self.project = nn.Linear(context.latent_dim, config.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-math.log(10.0))) if config.loss == "sigmoid" else None

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        batch, device = view.batch, view.latents.device
        if self.read is None:
            own = [(label,) if label >= 0 else () for label in batch.labels.tolist()]
            others = [(label,) for label in batch.batch_labels.tolist() if label >= 0]
        else:
            read = zip(batch.texts, batch.whole.tolist(), strict=True)
            own = [self._spell(text) if whole else () for text, whole in read]
            others = [self._spell(text) for text in batch.batch_texts if text]
        captions = sorted(set(others))
        token = self._token(view)
        if not captions:
            return 0 * token.sum(-1)
        belongs = torch.tensor([[caption == mine for caption in captions] for mine in own], device=device)
        items = F.normalize(self.project(token).float(), dim=-1)
        found = self.log_scale.exp() * items @ F.normalize(self._captions(captions, device).float(), dim=-1).T
        if self.bias is None:
            losses = -torch.where(belongs, found.log_softmax(-1), 0.0).sum(-1)
        else:
            losses = -F.logsigmoid(torch.where(belongs, 1.0, -1.0) * (found + self.bias)).mean(-1)
        return torch.where(belongs.any(-1), losses, 0.0)

    def _token(self, view: LatentLossInputs) -> Tensor:
        """[B, D]."""
        values, mask = view.values(self.config.levels), view.mask
        if self.config.token == "last":
            last = (mask.sum(1) - 1).clamp_min(0)
            return values[torch.arange(len(values), device=values.device), last]
        inside = mask[..., None]
        return torch.where(inside, values, 0.0).sum(1) / inside.sum(1).clamp_min(1)

    def _spell(self, text: str | None) -> tuple[int, ...]:
        """Indices of its characters."""
        return tuple(self.number[character] for character in text or "")

    def _captions(self, captions: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
        """Character indices, or one label index each -> [captions, width]."""
        if self.read is None:
            return self.names(torch.tensor(captions, device=device))[:, 0]
        lengths = torch.tensor([len(caption) for caption in captions], device=device)
        ids = torch.zeros(len(captions), int(lengths.max()), dtype=torch.long)
        for row, caption in zip(ids, captions, strict=True):
            row[: len(caption)] = torch.tensor(caption)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        read = self.read(self.names(ids.to(device)), mask)
        return torch.where(mask[..., None], read, 0.0).sum(1) / lengths[:, None]
