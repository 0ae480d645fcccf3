"""Picture parts `transposed`: a token for each channel of the whole picture, in place of one for each place.

    encoder   pictures ──► inner part ──► [B, places, tokens] ──► turned: [B, tokens, places] ──► linear ──► latents
    decoder   the way back

Every token then adds one map, spread over all of the picture, with weights that are its code: a coefficient of a global
basis. Source: the quantized global autoencoder, arXiv:2407.11913.
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
    """Codes of a picture: channels of the inner part's grid."""
    part: Annotated[ConvolutionalConfig | VQGANConfig, Field(discriminator="kind")] = ConvolutionalConfig()
    """What turns pictures into a grid of channels, or back."""

    def grid(self, picture: ImageShape) -> tuple[int, int]:
        """One row of tokens; ValueError where the inner part does not fit the tokenizer."""
        self.part.grid(picture)
        return 1, self.tokens

    def inner(self, picture: ImageShape) -> tuple[ImageShape, int]:
        """The tokenizer as the inner part sees it, and the places of its grid."""
        rows, columns = self.part.grid(picture)
        return picture.model_copy(update={"latent_dim": self.tokens}), rows * columns


class TransposedEncoder(nn.Module):
    """Pictures to latents; see the head of this file."""

    def __init__(self, config: TransposedConfig, picture: ImageShape):
        super().__init__()
        inner, places = config.inner(picture)
        self.part = INNER[config.part.kind][0](config.part, inner)  # pyright: ignore[reportArgumentType]
        self.turn = nn.Linear(places, picture.latent_dim)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, height, width] in [-1, 1] -> latents [B, tokens, latent_dim]."""
        return self.turn(self.part(pictures).transpose(1, 2))


class TransposedDecoder(nn.Module):
    """Latents to pictures; see the head of this file."""

    def __init__(self, config: TransposedConfig, picture: ImageShape):
        super().__init__()
        inner, places = config.inner(picture)
        self.turn = nn.Linear(picture.latent_dim, places)
        self.part = INNER[config.part.kind][1](config.part, inner)  # pyright: ignore[reportArgumentType]

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, tokens, latent_dim] -> pictures [B, C, height, width], float32."""
        return self.part(self.turn(latents).transpose(1, 2))
