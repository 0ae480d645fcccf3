"""Image encoder and decoder `magvit2`: residual blocks without attention; the decoder is modulated by the latents.

    encoder   conv3; per resolution: blocks, conv3 with stride 2; blocks; norm, conv1
    decoder   conv3; blocks; per resolution: norm(x) * gamma(deviation of the latents) + beta(their mean), blocks,
              conv3 to four times the channels, which become 2 x 2 pixels; norm, conv3

Deviation and mean are those of each latent channel over the positions. The blocks' convolutions have no bias.
Source: MAGVIT-2, arXiv:2310.05737, in the form of Open-MAGVIT2, arXiv:2409.04410 (TencentARC/SEED-Voken, Apache-2.0).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, LayerCount
from .base import ImageShape
from .convolutional import halved_grid

EPS = 1e-6


class Magvit2Config(Config):
    """One side of the network; the tokenizer's `downsamplings` must be the number of multipliers minus one."""

    kind: Literal["magvit2"] = "magvit2"
    channels: PositiveInt = 128
    """Unit of the channel numbers in `multipliers`."""
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    """Channels at each resolution in units of `channels`, full resolution first."""
    blocks: LayerCount = 4
    """Residual blocks per resolution, and between the lowest one and the latents."""
    norm_groups: PositiveInt = 32
    """Groups of the group normalization; must divide the channels at each resolution."""

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """Rows and columns of the codes; ValueError if the network does not fit the tokenizer."""
        if len(self.multipliers) != shape.downsamplings + 1:
            raise ValueError(
                f"{len(self.multipliers)} multipliers are {len(self.multipliers) - 1} halvings, but downsamplings is "
                f"{shape.downsamplings}; make them equal"
            )
        odd = [width for width in self.widths() if width % self.norm_groups]
        if odd:
            raise ValueError(
                f"{odd[0]} channels are not a multiple of norm_groups {self.norm_groups}; change one of them"
            )
        rows, columns = halved_grid(shape)
        if rows * columns < 2:
            raise ValueError("the deviation of one position is not defined; use larger images or fewer downsamplings")
        return rows, columns

    def widths(self) -> list[int]:
        """Channels at each resolution, full resolution first."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    def norm(self, channels: int, affine: bool = True) -> nn.GroupNorm:
        """The group norm of this network."""
        return nn.GroupNorm(self.norm_groups, channels, eps=EPS, affine=affine)


class Block(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))); the shortcut is a conv1 if the channels change."""

    def __init__(self, config: Magvit2Config, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = config.norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = config.norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Magvit2Encoder(nn.Sequential):
    """Encoder: images to latents."""

    def __init__(self, config: Magvit2Config, shape: ImageShape):
        widths, width = config.widths(), config.channels
        layers: list[nn.Module] = [nn.Conv2d(shape.channels, width, 3, padding=1, bias=False)]
        for level, wanted in enumerate(widths):
            for _ in range(config.blocks):
                layers.append(Block(config, width, wanted))
                width = wanted
            if level < len(widths) - 1:
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        layers += [Block(config, width, width) for _ in range(config.blocks)]
        super().__init__(*layers, config.norm(width), nn.SiLU(), nn.Conv2d(width, shape.latent_dim, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim], raster order."""
        return super().forward(input).flatten(2).transpose(1, 2)


class AdaptiveNorm(nn.Module):
    """Group norm, scaled and shifted per channel by the deviation and the mean of the latents over all positions."""

    def __init__(self, config: Magvit2Config, channels: int, latent_dim: int):
        super().__init__()
        self.norm = config.norm(channels, affine=False)
        self.gamma = nn.Linear(latent_dim, channels)
        self.beta = nn.Linear(latent_dim, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, channels, h, w] and latents [B, T, latent_dim] -> the shape of x."""
        scale = self.gamma((latents.var(dim=1) + EPS).sqrt())
        shift = self.beta(latents.mean(dim=1))
        return scale[..., None, None] * self.norm(x) + shift[..., None, None]


class Magvit2Decoder(nn.Module):
    """Decoder: latents to images."""

    def __init__(self, config: Magvit2Config, shape: ImageShape):
        super().__init__()
        self.grid = config.grid(shape)
        width = config.widths()[-1]
        self.enter = nn.Conv2d(shape.latent_dim, width, 3, padding=1)
        self.middle = nn.Sequential(*(Block(config, width, width) for _ in range(config.blocks)))
        self.norms, self.levels, self.grow = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for wanted in reversed(config.widths()):
            self.norms.append(AdaptiveNorm(config, width, shape.latent_dim))
            blocks = [Block(config, width if number == 0 else wanted, wanted) for number in range(config.blocks)]
            self.levels.append(nn.Sequential(*blocks))
            width = wanted
            if len(self.levels) < len(config.multipliers):
                self.grow.append(nn.Conv2d(width, 4 * width, 3, padding=1))
        self.leave_norm = config.norm(width)
        self.leave = nn.Conv2d(width, shape.channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width], float32, unbounded."""
        x = self.middle(self.enter(latents.transpose(1, 2).unflatten(2, self.grid).contiguous()))
        for number, (norm, level) in enumerate(zip(self.norms, self.levels, strict=True)):
            x = level(norm(x, latents))
            if number < len(self.grow):
                x = _pixels(self.grow[number](x))
        return self.leave(F.silu(self.leave_norm(x))).float()


def _pixels(x: Tensor) -> Tensor:
    """[B, 4 C, h, w] -> [B, C, 2 h, 2 w]: channel (2 i + j) C + c is channel c of the pixel in row i, column j."""
    parts = x.unflatten(1, (2, 2, -1))  # [B, i, j, C, h, w]
    return parts.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
