"""Image encoder and decoder `transposed`: one global token per channel instead of one token per position.

    encoder   images ──► inner network ──► [B, positions, tokens] ──► transpose ──► linear over positions ──► latents
    decoder   the inverse

Every token then contributes one map over the whole image, weighted by its code like a coefficient of a global basis.
Source: the quantized global autoencoder, arXiv:2407.11913.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config
from .base import ImageShape
from .convolutional import ConvolutionalConfig, ConvolutionalDecoder, ConvolutionalEncoder
from .vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder

INNER = {
    "convolutional": (ConvolutionalEncoder, ConvolutionalDecoder),
    "vqgan": (VQGANEncoder, VQGANDecoder),
}


class TransposedConfig(Config):
    """One side of the network."""

    kind: Literal["transposed"] = "transposed"
    tokens: PositiveInt = 32
    """Codes per image: the channels of the inner network's grid."""
    part: Annotated[ConvolutionalConfig | VQGANConfig, Field(discriminator="kind")] = ConvolutionalConfig()
    """Inner network, from images to a grid of channels or back."""

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """One row of tokens; ValueError if the inner network does not fit the tokenizer."""
        self.part.grid(shape)
        return 1, self.tokens

    def inner(self, shape: ImageShape) -> tuple[ImageShape, int]:
        """Sizes of the tokenizer for the inner network, and the number of positions of its grid."""
        rows, columns = self.part.grid(shape)
        return shape.model_copy(update={"latent_dim": self.tokens}), rows * columns


class TransposedEncoder(nn.Module):
    """Encoder with global tokens: images to latents."""

    def __init__(self, config: TransposedConfig, shape: ImageShape):
        super().__init__()
        inner, places = config.inner(shape)
        self.part = INNER[config.part.kind][0](config.part, inner)  # pyright: ignore[reportArgumentType]
        self.turn = nn.Linear(places, shape.latent_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, tokens, latent_dim]."""
        return self.turn(self.part(images).transpose(1, 2))


class TransposedDecoder(nn.Module):
    """Decoder with global tokens: latents to images."""

    def __init__(self, config: TransposedConfig, shape: ImageShape):
        super().__init__()
        inner, places = config.inner(shape)
        self.turn = nn.Linear(shape.latent_dim, places)
        self.part = INNER[config.part.kind][1](config.part, inner)  # pyright: ignore[reportArgumentType]

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, tokens, latent_dim] -> images [B, C, height, width], float32."""
        return self.part(self.turn(latents).transpose(1, 2))
