"""Image encoder and decoder `vqgan`: residual blocks at every resolution, attention at the lowest.

    encoder   conv3; per resolution: blocks (with attention at the lowest), downsample;
              block, attention, block; norm, conv3, conv1 (or conv3)
    decoder   conv1 (or conv3), conv3; block, attention, block;
              per resolution: blocks + 1 (with attention at the lowest), upsample; norm, conv3

Source: VQGAN, arXiv:2012.09841 (taming-transformers, MIT), with the sizes of LlamaGen, arXiv:2406.06525.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import FingerprintedConfig, LayerCount
from .base import ImageShape
from .convolutional import halved_grid


class VQGANConfig(FingerprintedConfig):
    """One side of the network; the tokenizer's `downsamplings` must be the number of multipliers minus one."""

    added: ClassVar[frozenset[str]] = frozenset({"attention", "latent_kernel"})

    kind: Literal["vqgan"] = "vqgan"
    channels: PositiveInt = 128
    """Unit of the channel numbers in `multipliers`."""
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    """Channels at each resolution in units of `channels`, full resolution first."""
    blocks: LayerCount = 2
    """Residual blocks per resolution in the encoder; the decoder has one more."""
    inner_dim: PositiveInt = 256
    """Channels before the encoder's last layer and after the decoder's first layer."""
    norm_groups: PositiveInt = 32
    """Groups of the group normalization; must divide the channels at each resolution."""
    attention: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Resolutions with attention after each block, by number, 0 at full resolution; null: the lowest only. The middle
    always has attention."""
    latent_kernel: Literal[1, 3] = 1
    """Kernel of the encoder's last and the decoder's first layer; 3 in VAR, arXiv:2404.02905."""

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """Rows and columns of the codes; ValueError if the network does not fit the tokenizer."""
        if len(self.multipliers) != shape.downsamplings + 1:
            raise ValueError(
                f"{len(self.multipliers)} multipliers are {len(self.multipliers) - 1} halvings, but downsamplings is "
                f"{shape.downsamplings}; make them equal"
            )
        odd = [self.channels * m for m in self.multipliers if self.channels * m % self.norm_groups]
        if odd:
            raise ValueError(
                f"{odd[0]} channels are not a multiple of norm_groups {self.norm_groups}; change one of them"
            )
        if self.attention and max(self.attention) > shape.downsamplings:
            raise ValueError(
                f"attention at resolution {max(self.attention)}, but the last one is {shape.downsamplings}; choose a "
                f"lower number"
            )
        return halved_grid(shape)

    def has_attention(self, level: int) -> bool:
        """Whether attention follows the blocks of a resolution; 0 is full resolution."""
        return level in self.attention if self.attention is not None else level == len(self.multipliers) - 1

    def norm(self, channels: int) -> nn.GroupNorm:
        """The group norm of this network."""
        return nn.GroupNorm(self.norm_groups, channels, eps=1e-6)

    def latent_layer(self, inputs: int, outputs: int) -> nn.Conv2d:
        """The convolution beside the latents."""
        return nn.Conv2d(inputs, outputs, self.latent_kernel, padding=self.latent_kernel // 2)

    def middle(self, width: int) -> list[nn.Module]:
        """Block, attention, block at the lowest resolution."""
        return [Block(self, width, width), GridAttention(self, width), Block(self, width, width)]


class Block(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))); the shortcut is a conv1 if the channels change."""

    def __init__(self, config: VQGANConfig, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = config.norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = config.norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class GridAttention(nn.Module):
    """x + single-head self-attention over all cells."""

    def __init__(self, config: VQGANConfig, width: int):
        super().__init__()
        self.norm = config.norm(width)
        self.query, self.key, self.value, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape."""
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class Halve(nn.Conv2d):
    """Conv3 with stride 2, zero-padded only on the right and bottom."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, stride=2)

    def forward(self, input: Tensor) -> Tensor:
        """[B, width, h, w] -> [B, width, h / 2, w / 2]."""
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class VQGANEncoder(nn.Sequential):
    """VQGAN encoder: images to latents."""

    def __init__(self, config: VQGANConfig, shape: ImageShape):
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(shape.channels, width, 3, padding=1)]
        for level, wanted in enumerate(widths):
            for _ in range(config.blocks):
                layers.append(Block(config, width, wanted))
                width = wanted
                if config.has_attention(level):
                    layers.append(GridAttention(config, width))
            if level < len(widths) - 1:
                layers.append(Halve(width))
        layers += [*config.middle(width), config.norm(width), nn.SiLU()]
        layers.append(nn.Conv2d(width, config.inner_dim, 3, padding=1))
        layers.append(config.latent_layer(config.inner_dim, shape.latent_dim))
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim], raster order."""
        return super().forward(input).flatten(2).transpose(1, 2)


class VQGANDecoder(nn.Sequential):
    """VQGAN decoder: latents to images."""

    def __init__(self, config: VQGANConfig, shape: ImageShape):
        self.grid = config.grid(shape)
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        width = widths[-1]
        layers: list[nn.Module] = [config.latent_layer(shape.latent_dim, config.inner_dim)]
        layers += [nn.Conv2d(config.inner_dim, width, 3, padding=1), *config.middle(width)]
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                layers.append(Block(config, width, widths[level]))
                width = widths[level]
                if config.has_attention(level):
                    layers.append(GridAttention(config, width))
            if level:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, width, 3, padding=1)]
        layers += [config.norm(width), nn.SiLU(), nn.Conv2d(width, shape.channels, 3, padding=1)]
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width], float32, unbounded."""
        return super().forward(input.transpose(1, 2).unflatten(2, self.grid).contiguous()).float()
