"""Registry of tokenizer losses by kind.

To add a loss: write one file with a config and a ReconstructionLoss or LatentLoss (base.py), and add an entry to the
union and the table here, and to the list in tests/train/test_terms.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...configs.schema import ConfigError
from .adaptive_length import HaltingLoss, HaltingTermConfig
from .base import (
    LatentLoss,
    LatentLossInputs,
    LossConfig,
    LossContext,
    ReconstructionLoss,
    ReconstructionLossInputs,
    mean_over,
)
from .contrastive import ContrastConfig, ContrastiveLoss
from .distillation import DistilConfig, DistillationLoss
from .perceptual import PerceptualConfig, PerceptualLoss
from .proxy_codes import ProxyCodesConfig, ProxyCodesLoss
from .reconstruction import (
    DifferenceLoss,
    MelConfig,
    MelLoss,
    PixelsConfig,
    SpectrumConfig,
    SpectrumLoss,
    WaveformConfig,
)
from .supervised import CaptionConfig, CaptionLoss, CTCConfig, CTCLoss, LabelHeadConfig, LabelLoss


class QuantizerLossConfig(LossConfig):
    """The quantizer's own losses (commitment, codebook, entropy, ...), with weights from its config."""

    kind: Literal["quantizer"] = "quantizer"


class NormalConfig(LossConfig):
    """Mean square of the latents: keeps the latents of a continuous autoencoder near the origin, for bins or centers
    that are fitted afterwards."""

    kind: Literal["normal"] = "normal"


class AdversarialConfig(LossConfig):
    """Adversarial (generator) loss of the tokenizer against the discriminators."""

    kind: Literal["adversarial"] = "adversarial"


class FeaturesConfig(LossConfig):
    """Relative distance of discriminator features (feature matching)."""

    kind: Literal["features"] = "features"


class QuantizerLoss(LatentLoss):
    """See QuantizerLossConfig. All tokens have equal weight, whichever example they belong to."""

    needs_codes = True

    def __init__(self, config: QuantizerLossConfig, context: LossContext, where: str):
        super().__init__()

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        total = sum_losses(view)
        batch = view.batch
        if batch.frame_mask is None:
            return total.mean(1)
        return (total * batch.frame_mask).sum(1) * (batch.batch_items / max(1, batch.batch_frames))


class NormalLoss(LatentLoss):
    """See NormalConfig."""

    def __init__(self, config: NormalConfig, context: LossContext, where: str):
        super().__init__()

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        return mean_over(view.latents.square().mean(2), view.mask)


class AdversarialLoss(ReconstructionLoss):
    """See AdversarialConfig and FeaturesConfig."""

    needs_discriminators = True

    def __init__(self, config: AdversarialConfig | FeaturesConfig, context: LossContext, where: str):
        self.place = 0 if config.kind == "adversarial" else 1

    def __call__(self, view: ReconstructionLossInputs) -> Tensor:
        """See ReconstructionLoss."""
        return view.verdict[self.place]


AnyLossConfig = Annotated[
    MelConfig
    | SpectrumConfig
    | WaveformConfig
    | PixelsConfig
    | PerceptualConfig
    | AdversarialConfig
    | FeaturesConfig
    | QuantizerLossConfig
    | NormalConfig
    | DistilConfig
    | CTCConfig
    | CaptionConfig
    | LabelHeadConfig
    | ContrastConfig
    | ProxyCodesConfig
    | HaltingTermConfig,
    Field(discriminator="kind"),
]

AUDIO, IMAGES = ("audio",), ("picture",)
BOTH = AUDIO + IMAGES
TERMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "mel": (MelLoss, AUDIO),
    "spectrum": (SpectrumLoss, AUDIO),
    "waveform": (DifferenceLoss, AUDIO),
    "pixels": (DifferenceLoss, IMAGES),
    "perceptual": (PerceptualLoss, BOTH),
    "adversarial": (AdversarialLoss, BOTH),
    "features": (AdversarialLoss, BOTH),
    "quantizer": (QuantizerLoss, BOTH),
    "normal": (NormalLoss, BOTH),
    "distil": (DistillationLoss, BOTH),
    "ctc": (CTCLoss, AUDIO),
    "caption": (CaptionLoss, BOTH),
    "label": (LabelLoss, BOTH),
    "contrast": (ContrastiveLoss, BOTH),
    "codes": (ProxyCodesLoss, IMAGES),
    "halting": (HaltingLoss, IMAGES),
}
"""Kind -> loss class and supported media."""


def make_losses(configs: Sequence[LossConfig], context: LossContext) -> dict[str, ReconstructionLoss | LatentLoss]:
    """Build the losses, by name.

    Raises:
        ConfigError: a loss is for other media or does not fit; the message begins with its position, such as "terms.2".
    """
    made: dict[str, ReconstructionLoss | LatentLoss] = {}
    for number, config in enumerate(configs):
        where = f"terms.{number}"
        kind: str = vars(config)["kind"]
        make, media = TERMS[kind]
        if context.geometry.kind not in media:
            found = context.geometry.kind
            raise ConfigError(f"{where}.kind: '{kind}' is for {media[0]}, this tokenizer is for {found}")
        made[config.key] = make(config, context, where)
    return made


def sum_losses(view: LatentLossInputs) -> Tensor:
    """Sum of the quantizer's own losses, [B, T]."""
    losses = [] if view.quantized is None else list(view.quantized.losses.values())
    return torch.stack(losses).sum(0) if losses else torch.zeros_like(view.latents[..., 0])
