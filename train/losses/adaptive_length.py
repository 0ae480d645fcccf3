"""What teaches the head of a `halting` quantizer which tokens a picture does not need.

    picture ──► tokens ──► halt after L, drawn ──► reconstruction ──► its error e
                  └──► head(token, e) ──► is it after L?  binary cross-entropy

A picture with L tokens has error e: so whoever is content with e needs L tokens, and not those after. Over many draws
the head learns at which error a token of this picture stops being needed. Source: KARL, arXiv:2507.07995, which
measures e in a pass with L tokens and teaches in a second one with all of them and e at the input; tokens here know
nothing of e, so both passes are the same.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ...tokenize.quantizers.combinators.adaptive_length import HaltingQuantizer
from .base import LatentLoss, LatentLossInputs, LossConfig, LossContext


class HaltingTermConfig(LossConfig):
    """Binary cross-entropy of the halt, in nats per token that may halt."""

    kind: Literal["halting"] = "halting"


class HaltingLoss(LatentLoss):
    """See the head of this file; it has no layers of its own, the head is part of the tokenizer."""

    needs_codes = True
    needs_found = True

    def __init__(self, config: HaltingTermConfig, context: LossContext, where: str):
        super().__init__()

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See InnerTerm."""
        quantizer = view.quantizer
        assert isinstance(quantizer, HaltingQuantizer) and view.quantized is not None and view.found is not None
        odds = quantizer.halting(view.latents, absolute_error(view.found, view.batch.media))
        absent = ~quantizer.present(view.quantized.codes)
        losses = F.binary_cross_entropy_with_logits(odds, absent.to(odds.dtype), reduction="none")
        return losses[:, quantizer.config.shortest :].mean(1).float()


def absolute_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Of pictures [B, C, height, width], cut to [-1, 1] as a frozen tokenizer gives them -> [B]."""
    return (found.clamp(-1, 1) - wanted).abs().flatten(1).mean(1)
