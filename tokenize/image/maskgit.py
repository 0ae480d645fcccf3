"""MaskGIT-VQGAN's decoder, a grid of latents to images: residual blocks at every resolution, without attention.

    conv3; blocks; per resolution: blocks, upsample, conv3; norm, conv3

The blocks' convolutions have no bias. Where the channels change, the shortcut of a block reads the block's own output
in place of its input. `titok` (titok.py) ends with this decoder.
Source: MaskGIT, arXiv:2202.04200, as in bytedance/1d-tokenizer (Apache-2.0), modeling/modules/maskgit_vqgan.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, LayerCount


class MaskGITConfig(Config):
    """The decoder of a MaskGIT-VQGAN, and the sizes of its codebook."""

    codes: PositiveInt = 1024
    """Codes of the codebook."""
    code_dim: PositiveInt = 256
    """Dimension of a code vector."""
    channels: PositiveInt = 128
    """Unit of the channel numbers in `multipliers`."""
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    """Channels at each resolution in units of `channels`, full resolution first."""
    blocks: LayerCount = 2
    """Residual blocks per resolution, and before the lowest one."""
    norm_groups: PositiveInt = 32
    """Groups of the group normalization; must divide the channels at each resolution."""

    def check(self, patch: int) -> None:
        """Raise ValueError unless a cell of the grid becomes an image of this side in pixels."""
        made = 2 ** (len(self.multipliers) - 1)
        if made != patch:
            raise ValueError(
                f"{len(self.multipliers)} multipliers make {made} x {made} pixels of a cell, but patch is {patch}; "
                f"make them equal"
            )
        odd = [width for width in self.widths() if width % self.norm_groups]
        if odd:
            raise ValueError(
                f"{odd[0]} channels are not a multiple of norm_groups {self.norm_groups}; change one of them"
            )

    def widths(self) -> list[int]:
        """Channels at each resolution, full resolution first."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    def norm(self, channels: int) -> nn.GroupNorm:
        """The group norm of this network."""
        return nn.GroupNorm(self.norm_groups, channels, eps=1e-6)


class Block(nn.Module):
    """shortcut + h, where h = conv(silu(norm(conv(silu(norm(x)))))); the shortcut is x, or a conv1 of h if the channels
    change."""

    def __init__(self, config: MaskGITConfig, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = config.norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = config.norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(outputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w]."""
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.shortcut is None else self.shortcut(h))


class Resolution(nn.Module):
    """The blocks of a resolution; then twice the side, except at the full one."""

    def __init__(self, config: MaskGITConfig, inputs: int, outputs: int, grows: bool):
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(config, outputs if number else inputs, outputs) for number in range(config.blocks))
        )
        self.grow = nn.Conv2d(outputs, outputs, 3, padding=1) if grows else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, 2 h, 2 w], or h, w at the full resolution."""
        x = self.blocks(x)
        return x if self.grow is None else self.grow(F.interpolate(x, scale_factor=2, mode="nearest"))


class MaskGITDecoder(nn.Module):
    """Decoder: a grid of latents to images."""

    def __init__(self, config: MaskGITConfig, channels: int):
        super().__init__()
        widths = config.widths()
        self.enter = nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)
        self.middle = nn.Sequential(*(Block(config, widths[-1], widths[-1]) for _ in range(config.blocks)))
        below = [*widths[1:], widths[-1]]
        self.levels = nn.ModuleList(
            Resolution(config, inputs, outputs, grows=level > 0)
            for level, (inputs, outputs) in enumerate(zip(below, widths, strict=True))
        )
        self.leave_norm = config.norm(widths[0])
        self.leave = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        """Latents [B, code_dim, rows, columns] -> images [B, channels, height, width], about 0..1."""
        x = self.middle(self.enter(grid))
        for level in reversed(self.levels):
            x = level(x)
        return self.leave(F.silu(self.leave_norm(x)))
