"""Discriminators of tokenizer reconstructions: the registry of kinds, and the adversarial losses.

All losses are per example [B]; the loss of a batch is their mean. A kind consists of one file with networks that map
media to a score map (high: real) and a list of features, and one line in `DISCRIMINATORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config
from ..distributed.process_group import ProcessGroup
from ..engines.base import Trainable
from .multi_band import BandDiscriminatorConfig, make_band_discriminators
from .multi_period import PeriodDiscriminatorConfig, make_period_discriminators
from .multi_scale_stft import STFTDiscriminatorConfig, make_stft_discriminators
from .patch import PatchDiscriminatorConfig, make_patch_discriminators

DiscriminatorConfig = Annotated[
    STFTDiscriminatorConfig | PeriodDiscriminatorConfig | BandDiscriminatorConfig | PatchDiscriminatorConfig,
    Field(discriminator="kind"),
]

DISCRIMINATORS = {
    "stft": (make_stft_discriminators, "audio"),
    "period": (make_period_discriminators, "audio"),
    "bands": (make_band_discriminators, "audio"),
    "patch": (make_patch_discriminators, "picture"),
}
"""Kind -> factory of its networks, and their media."""

LECAM_DECAY = 0.999


class DiscriminatorsConfig(Config):
    """The discriminators, their loss and their schedule."""

    nets: tuple[DiscriminatorConfig, ...] = Field(min_length=1)
    """The discriminators; they are trained together, and their losses are averaged."""
    loss: Literal["hinge", "non_saturating", "least_squares"] = "hinge"
    """Adversarial loss: hinge (EnCodec), non_saturating (arXiv:1406.2661) or least_squares (arXiv:1611.04076)."""
    lecam: NonNegativeFloat = 0.0
    """Weight of the regularizer that keeps the scores of real (fake) media near the average of fake (real) ones
    (arXiv:2104.03310)."""
    first_step: NonNegativeInt = 0
    """Step of the run at which the discriminators start."""
    every: PositiveInt = 1
    """Use the discriminators every so many steps; they cost more than everything else together."""
    seconds: PositiveFloat = 0.5
    """Length of the audio excerpt that the discriminators receive."""
    lr: PositiveFloat | None = None
    """Peak learning rate of the discriminators; null: that of the tokenizer."""


GAMES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake), lambda fake: F.relu(1 - fake)),
    "non_saturating": (lambda real: F.softplus(-real), F.softplus, lambda fake: F.softplus(-fake)),
    "least_squares": (lambda real: (1 - real).square(), torch.square, lambda fake: (1 - fake).square()),
}
"""Loss -> discriminator loss on real scores, discriminator loss on fake scores, tokenizer loss on fake scores. Hinge as
in EnCodec; non-saturating, arXiv:1406.2661; least squares, arXiv:1611.04076."""


class Discriminators(Trainable):
    """All discriminator networks of a config.

    Args:
        channels: of the media.
    """

    averages: Tensor

    def __init__(self, config: DiscriminatorsConfig, channels: int = 1):
        super().__init__()
        self.config = config
        self.nets = nn.ModuleList(net for each in config.nets for net in DISCRIMINATORS[each.kind][0](each, channels))
        # Mean scores of real and fake media, for LeCam.
        self.register_buffer("averages", torch.zeros(2, len(self.nets)))
        self._seen: Tensor | None = None

    @property
    def body(self) -> nn.Module:
        """The module itself."""
        return self

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Discriminator loss [B] for media [B, ...]; detaches `fake`."""
        on_real, on_fake, _ = GAMES[self.config.loss]
        terms, means = [], []
        for number, net in enumerate(self.nets):
            scores, _ = net(torch.cat([real, fake.detach()]))
            real_scores, fake_scores = scores.float().flatten(1).chunk(2)
            terms.append(on_real(real_scores).mean(1) + on_fake(fake_scores).mean(1))
            if self.config.lecam:
                average_real, average_fake = self.averages[:, number]
                above = F.relu(real_scores - average_fake).square().mean(1)
                below = F.relu(average_real - fake_scores).square().mean(1)
                terms[-1] = terms[-1] + self.config.lecam * (above + below)
            means.append(torch.stack([real_scores.detach().mean(1), fake_scores.detach().mean(1)]).sum(1))
        seen = torch.cat([torch.stack(means, 1).flatten(), real.new_full((1,), len(real))])
        self._seen = seen if self._seen is None else self._seen + seen
        return torch.stack(terms).mean(0)

    def fool(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the tokenizer: the adversarial loss and the relative feature distance, both [B]."""
        wish = GAMES[self.config.loss][2]
        adversarial, distances = [], []
        for net in self.nets:
            with torch.no_grad():
                _, wanted = net(real)
            scores, found = net(fake)
            adversarial.append(wish(scores.float()).flatten(1).mean(1))
            distances += [
                (a.float() - b.float()).abs().flatten(1).mean(1) / b.float().abs().flatten(1).mean(1).clamp_min(1e-3)
                for a, b in zip(found, wanted, strict=True)
            ]
        return torch.stack(adversarial).mean(0), torch.stack(distances).mean(0)

    @torch.no_grad()
    def update(self, world: ProcessGroup) -> None:
        """Update the score averages with the scores of all processes since the last call."""
        seen = torch.zeros(self.averages.numel() + 1, device=self.averages.device) if self._seen is None else self._seen
        *_, count = seen = world.add(seen)
        if bool(seen.isfinite().all()) and float(count) > 0:
            self.averages.lerp_((seen[:-1] / count).view_as(self.averages), 1 - LECAM_DECAY)
        self._seen = None
