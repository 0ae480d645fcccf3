"""Network of the image tokenizer: an encoder, a quantizer and a decoder, each selected by `kind`.

To add a kind, write one file with a config, an encoder and a decoder, add one line to the union and to each table here,
and one entry to the list in tests/tokenize/test_image_networks.py. Any encoder can be combined with any decoder that
has the same number of frames. Between them are latents [B, T, latent_dim]: the cells of a grid in raster order, or
tokens without positions, which count as one row.

    encoder   config, shape -> (images [B, C, height, width]) -> latents [B, T, latent_dim]
    decoder   config, shape -> (latents [B, T, latent_dim]) -> images [B, C, height, width], float32, about -1..1
    config    .grid(shape) -> (rows, columns), or ValueError if the network does not fit the tokenizer's size
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from ...configs.names import ShownName
from ...configs.schema import FingerprintedConfig, LayerCount
from ..quantizers.registry import Quantized, QuantizerConfig, make_quantizer
from ..spec import ImageGeometry
from .convolutional import ConvolutionalConfig, ConvolutionalDecoder, ConvolutionalEncoder
from .global_tokens import TransposedConfig, TransposedDecoder, TransposedEncoder
from .magvit2 import Magvit2Config, Magvit2Decoder, Magvit2Encoder
from .movq import ConditionedConfig, ConditionedDecoder, ConditionedEncoder
from .titok import TiTokConfig, TiTokDecoder, TiTokEncoder
from .token_merging import MergedConfig, MergedDecoder, MergedEncoder
from .vit import ViTConfig, ViTDecoder, ViTEncoder
from .vit_1d import ViT1DConfig, ViT1DDecoder, ViT1DEncoder
from .vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder

ImagePartConfig = Annotated[
    ConvolutionalConfig
    | ConditionedConfig
    | VQGANConfig
    | Magvit2Config
    | ViTConfig
    | ViT1DConfig
    | TiTokConfig
    | MergedConfig
    | TransposedConfig,
    Field(discriminator="kind"),
]

IMAGE_ENCODERS = {
    "convolutional": ConvolutionalEncoder,
    "conditioned": ConditionedEncoder,
    "vqgan": VQGANEncoder,
    "magvit2": Magvit2Encoder,
    "vit": ViTEncoder,
    "vit1d": ViT1DEncoder,
    "titok": TiTokEncoder,
    "merged": MergedEncoder,
    "transposed": TransposedEncoder,
}
IMAGE_DECODERS = {
    "convolutional": ConvolutionalDecoder,
    "conditioned": ConditionedDecoder,
    "vqgan": VQGANDecoder,
    "magvit2": Magvit2Decoder,
    "vit": ViTDecoder,
    "vit1d": ViT1DDecoder,
    "titok": TiTokDecoder,
    "merged": MergedDecoder,
    "transposed": TransposedDecoder,
}


class ImageTokenizerConfig(FingerprintedConfig):
    """Config of an image tokenizer: images of one size to codes and back."""

    added: ClassVar[frozenset[str]] = frozenset({"encoder", "decoder"})

    kind: Literal["picture"] = "picture"
    name: ShownName
    """Name of the tokenizer, stored with its codes and shown in messages."""
    height: PositiveInt
    """Height of the images in pixels."""
    width: PositiveInt
    """Width of the images in pixels."""
    channels: PositiveInt = 3
    """Channels of the images; files are read as 1 (gray), 3 (RGB) or 4 (RGBA)."""
    downsamplings: int = Field(default=1, ge=0, le=30)
    """Number of times that networks with a grid halve the resolution: the grid is height / 2^n by width / 2^n."""
    features: PositiveInt = 64
    """`convolutional` networks: channels at full resolution, doubled at the first halving."""
    blocks: LayerCount = 2
    """`convolutional` networks: residual blocks at each resolution."""
    latent_dim: PositiveInt = 32
    """Channels of the latents between encoder, quantizer and decoder."""
    encoder: ImagePartConfig = Field(default=ConvolutionalConfig())
    """Network from images to latents."""
    decoder: ImagePartConfig = Field(default=ConvolutionalConfig())
    """Network from latents to images."""
    quantizer: QuantizerConfig
    """Turns each latent into codes."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ImageTokenizerConfig:
        made, taken = self.encoder.grid(self), self.decoder.grid(self)
        if made[0] * made[1] != taken[0] * taken[1]:
            raise ValueError(
                f"the encoder '{self.encoder.kind}' gives {made[0]} x {made[1]} codes, the decoder "
                f"'{self.decoder.kind}' takes {taken[0]} x {taken[1]}; make them equal"
            )
        return self

    @property
    def geometry(self) -> ImageGeometry:
        """Geometry of the code frames."""
        rows, columns = self.encoder.grid(self)
        return ImageGeometry(height=self.height, width=self.width, channels=self.channels, rows=rows, columns=columns)


class ImageNet(nn.Module):
    """Trainable image tokenizer; `tokenizer.py` freezes it."""

    def __init__(self, config: ImageTokenizerConfig, read_files: bool = True):
        super().__init__()
        self.config = config
        self.geometry = config.geometry
        self.encoder = IMAGE_ENCODERS[config.encoder.kind](config.encoder, config)
        self.quantizer = make_quantizer(config.quantizer, config.latent_dim, read_files=read_files)
        self.decoder = IMAGE_DECODERS[config.decoder.kind](config.decoder, config)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim], raster order."""
        return self.encoder(images)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width] float32; frozen tokenizers clamp to [-1, 1]."""
        return self.decoder(latents)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct a batch [B, C, height, width] in training; also returns the quantizer result, codes [B, T, K]."""
        quantized = self.quantizer(self.encode_images(images).float())
        return self.decode_latents(quantized.values), quantized
