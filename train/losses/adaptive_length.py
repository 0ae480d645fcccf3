"""Loss of the head of a `halting` quantizer, which predicts the tokens an image does not need.

    image ──► tokens ──► halt after L, drawn ──► reconstruction ──► its error e
                └──► head(token, e) ──► is it after L?  binary cross-entropy

An image with L tokens has error e: to accept e, L tokens suffice and the later ones are not needed. Over many draws the
head learns the error above which each token of an image can be dropped. Source: KARL, arXiv:2507.07995, which measures
e in a pass with L tokens and trains in a second pass with all tokens and e as an input; here tokens do not depend on e,
so one pass does both.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ...tokenize.quantizers.combinators.adaptive_length import HaltingQuantizer
from .base import LatentLoss, LatentLossInputs, LossConfig, LossContext


class HaltingTermConfig(LossConfig):
    """Binary cross-entropy of halting, in nats per token that may halt."""

    kind: Literal["halting"] = "halting"


class HaltingLoss(LatentLoss):
    """See HaltingTermConfig; it has no layers, since the head is part of the tokenizer."""

    needs_codes = True
    needs_found = True

    def __init__(self, config: HaltingTermConfig, context: LossContext, where: str):
        super().__init__()

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        quantizer = view.quantizer
        assert isinstance(quantizer, HaltingQuantizer) and view.quantized is not None and view.found is not None
        odds = quantizer.halting(view.latents, absolute_error(view.found, view.batch.media))
        absent = ~quantizer.present(view.quantized.codes)
        losses = F.binary_cross_entropy_with_logits(odds, absent.to(odds.dtype), reduction="none")
        return losses[:, quantizer.config.shortest :].mean(1).float()


def absolute_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of images [B, C, height, width], clamped to [-1, 1] like the output of a frozen tokenizer ->
    [B]."""
    return (found.clamp(-1, 1) - wanted).abs().flatten(1).mean(1)
