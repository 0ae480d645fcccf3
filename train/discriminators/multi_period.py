"""Audio discriminator that folds the waveform by a period p, so that samples p apart share a column.

    period 3     s0 s1 s2
                 s3 s4 s5     convolutions run down the columns only
                 ...

Source: multi-period discriminator of HiFi-GAN, arXiv:2010.05646, section 2.3.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ...configs.schema import Config, LayerCount


class PeriodDiscriminatorConfig(Config):
    """One network per period."""

    kind: Literal["period"] = "period"
    periods: tuple[PositiveInt, ...] = (2, 3, 5, 7, 11)
    """Samples per row; primes overlap least."""
    channels: PositiveInt = 32
    """Channels of the first layer; they quadruple with each layer, up to 32 times this."""
    layers: LayerCount = 4
    """Layers that shorten the columns by a factor of three."""


class PeriodDiscriminator(nn.Module):
    """Discriminator for one period."""

    def __init__(self, period: int, channels: int, layers: int):
        super().__init__()
        self.period = period
        widths = [1] + [channels * min(4**layer, 32) for layer in range(layers)]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0))) for a, b in pairwise(widths)
        )
        self.layers.append(weight_norm(nn.Conv2d(widths[-1], widths[-1], (5, 1), padding=(2, 0))))
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, media: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Samples [B, N] -> score map [B, 1, rows, period] (high: real) and the features of each layer."""
        h = F.pad(media, (0, -media.shape[1] % self.period)).unflatten(1, (-1, self.period))[:, None]
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.1)
            features.append(h)
        return self.last(h), features


def make_period_discriminators(config: PeriodDiscriminatorConfig, channels: int) -> list[nn.Module]:
    """Build the networks of a config."""
    return [PeriodDiscriminator(period, config.channels, config.layers) for period in config.periods]
