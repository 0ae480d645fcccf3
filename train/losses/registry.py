"""The terms of a tokenizer's loss by kind: the table, and the one way to make them.

A new term is one file with a config and an OutputTerm or InnerTerm (base.py), one entry in the union and in the table
here, and one in the list of tests/train/test_terms.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...configs.schema import ConfigError
from .adaptive_length import HaltingTerm, HaltingTermConfig
from .base import InnerTerm, InnerView, OutputTerm, OutputView, TermConfig, TermContext, mean_over
from .contrastive import ContrastConfig, ContrastTerm
from .distillation import DistilConfig, DistilTerm
from .perceptual import PerceptualConfig, PerceptualTerm
from .proxy_codes import ProxyCodesConfig, ProxyCodesTerm
from .reconstruction import (
    DifferenceTerm,
    MelConfig,
    MelTerm,
    PixelsConfig,
    SpectrumConfig,
    SpectrumTerm,
    WaveformConfig,
)
from .supervised import CaptionConfig, CaptionTerm, CTCConfig, CTCTerm, LabelHeadConfig, LabelTerm


class QuantizerTermConfig(TermConfig):
    """The quantizer's own losses (commitment, codebook, entropy, ...), whose weights are set in its config."""

    kind: Literal["quantizer"] = "quantizer"


class NormalConfig(TermConfig):
    """Mean square of the latents: keeps those of a continuous autoencoder near the origin, for bins or centres that are
    fitted afterwards."""

    kind: Literal["normal"] = "normal"


class AdversarialConfig(TermConfig):
    """What the tokenizer must do to pass for real with the judges."""

    kind: Literal["adversarial"] = "adversarial"


class FeaturesConfig(TermConfig):
    """Relative distance of the judges' features."""

    kind: Literal["features"] = "features"


class QuantizerTerm(InnerTerm):
    """See QuantizerTermConfig. A token counts the same whatever its item."""

    needs_codes = True

    def __init__(self, config: QuantizerTermConfig, context: TermContext, where: str):
        super().__init__()

    def forward(self, view: InnerView) -> Tensor:
        """See InnerTerm."""
        total = sum_losses(view)
        batch = view.batch
        if batch.frame_mask is None:
            return total.mean(1)
        return (total * batch.frame_mask).sum(1) * (batch.batch_items / max(1, batch.batch_frames))


class NormalTerm(InnerTerm):
    """See NormalConfig."""

    def __init__(self, config: NormalConfig, context: TermContext, where: str):
        super().__init__()

    def forward(self, view: InnerView) -> Tensor:
        """See InnerTerm."""
        return mean_over(view.latents.square().mean(2), view.mask)


class AdversarialTerm(OutputTerm):
    """See AdversarialConfig and FeaturesConfig."""

    judged = True

    def __init__(self, config: AdversarialConfig | FeaturesConfig, context: TermContext, where: str):
        self.place = 0 if config.kind == "adversarial" else 1

    def __call__(self, view: OutputView) -> Tensor:
        """See OutputTerm."""
        return view.verdict[self.place]


LossConfig = Annotated[
    MelConfig
    | SpectrumConfig
    | WaveformConfig
    | PixelsConfig
    | PerceptualConfig
    | AdversarialConfig
    | FeaturesConfig
    | QuantizerTermConfig
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

SOUND, PICTURES = ("audio",), ("picture",)
BOTH = SOUND + PICTURES
TERMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "mel": (MelTerm, SOUND),
    "spectrum": (SpectrumTerm, SOUND),
    "waveform": (DifferenceTerm, SOUND),
    "pixels": (DifferenceTerm, PICTURES),
    "perceptual": (PerceptualTerm, BOTH),
    "adversarial": (AdversarialTerm, BOTH),
    "features": (AdversarialTerm, BOTH),
    "quantizer": (QuantizerTerm, BOTH),
    "normal": (NormalTerm, BOTH),
    "distil": (DistilTerm, BOTH),
    "ctc": (CTCTerm, SOUND),
    "caption": (CaptionTerm, BOTH),
    "label": (LabelTerm, BOTH),
    "contrast": (ContrastTerm, BOTH),
    "codes": (ProxyCodesTerm, PICTURES),
    "halting": (HaltingTerm, PICTURES),
}
"""Kind -> the term, and the media it is for."""


def make_terms(configs: Sequence[TermConfig], context: TermContext) -> dict[str, OutputTerm | InnerTerm]:
    """Terms by name.

    Raises:
        ConfigError: a term that is for other media, or does not fit; begins with its place, "terms.2".
    """
    made: dict[str, OutputTerm | InnerTerm] = {}
    for number, config in enumerate(configs):
        where = f"terms.{number}"
        kind: str = vars(config)["kind"]
        make, media = TERMS[kind]
        if context.geometry.kind not in media:
            found = context.geometry.kind
            raise ConfigError(f"{where}.kind: '{kind}' is for {media[0]}, this tokenizer is for {found}")
        made[config.key] = make(config, context, where)
    return made


def sum_losses(view: InnerView) -> Tensor:
    """The quantizer's own losses, added up by name: [B, T]."""
    losses = [] if view.quantized is None else list(view.quantized.losses.values())
    return torch.stack(losses).sum(0) if losses else torch.zeros_like(view.latents[..., 0])
