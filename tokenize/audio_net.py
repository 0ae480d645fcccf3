"""The audio tokenizer's network: an encoder, a quantizer and a decoder, each chosen by `kind`.

A new kind of part is one file with a config, an encoder and a decoder (or an encoder alone, as `fused`), one line in
the union and in each table here, and one entry in the list of tests/tokenize/test_sound_networks.py. Any encoder goes
with any decoder: between them are latents [B, T, latent_dim], one for each `hop` samples.

    encoder   config, sound -> .frame(samples [..., N]) -> [..., T, F], its own cut of the samples of each frame
                               .stages()  [B, T, F] -> latents [B, T, latent_dim]
    decoder   config, sound -> .stages()  [B, T, latent_dim] -> samples [B, T, hop]
    config    .check_sound(sound) raises ValueError where the part does not fit the tokenizer's hop or window
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, Tag, model_validator
from torch import Tensor, nn

from .config import Config, kind_or
from .quantizer import Quantized, QuantizerConfig, make_quantizer
from .sound_dac import DACConfig, DACDecoder
from .sound_fused import PLAIN_ENCODERS, FusedConfig, FusedEncoder, PlainPartConfig
from .sound_mel2d import Mel2DConfig, Mel2DDecoder
from .sound_seanet import SEANetConfig, SEANetDecoder
from .sound_spectrum import AudioStackConfig, SpectrumDecoder
from .spec import AudioGeometry
from .stages import run_stages

SoundDecoderConfig = PlainPartConfig
SoundEncoderConfig = Annotated[
    Annotated[AudioStackConfig, Tag("spectrum")]
    | Annotated[SEANetConfig, Tag("seanet")]
    | Annotated[DACConfig, Tag("dac")]
    | Annotated[Mel2DConfig, Tag("mel2d")]
    | Annotated[FusedConfig, Tag("fused")],
    kind_or("spectrum"),
]

SOUND_ENCODERS = {**PLAIN_ENCODERS, "fused": FusedEncoder}
SOUND_DECODERS = {"spectrum": SpectrumDecoder, "seanet": SEANetDecoder, "dac": DACDecoder, "mel2d": Mel2DDecoder}


class AudioTokenizerConfig(Config):
    """Mono audio to residual codes and back."""

    kind: Literal["audio"] = "audio"
    name: str
    sample_rate: PositiveInt = 16000
    hop: PositiveInt = 320
    """Samples per frame."""
    window: PositiveInt = 1280
    """Samples of the window of `spectrum` parts; even, at least hop."""
    latent_dim: PositiveInt = 128
    encoder: SoundEncoderConfig = Field(default_factory=AudioStackConfig)
    decoder: SoundDecoderConfig = Field(default_factory=AudioStackConfig)
    quantizer: QuantizerConfig

    @model_validator(mode="after")
    def _parts_fit(self) -> AudioTokenizerConfig:
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            try:
                part.check_sound(self)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return self

    @property
    def geometry(self) -> AudioGeometry:
        """What one frame of codes stands for."""
        return AudioGeometry(sample_rate=self.sample_rate, channels=1, samples_per_frame=self.hop)


class AudioNet(nn.Module):
    """Trainable audio tokenizer; `tokenizer.py` freezes it. N is a multiple of hop everywhere, T = N / hop."""

    def __init__(self, config: AudioTokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = SOUND_ENCODERS[config.encoder.kind](config.encoder, config)
        self.quantizer = make_quantizer(config.quantizer, config.latent_dim)
        self.decoder = SOUND_DECODERS[config.decoder.kind](config.decoder, config)

    def encode_samples(self, samples: Tensor, mask: Tensor) -> Tensor:
        """Samples [B, N], mask of frames [B, T] -> latents [B, T, latent_dim]."""
        return run_stages(self.encoder.stages(), self.encoder.frame(samples), mask)

    def decode_latents(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Latents [B, T, latent_dim], mask [B, T] -> samples [B, T * hop]."""
        return run_stages(self.decoder.stages(), latents, mask).flatten(1)

    def forward(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct a batch, for training.

        Args:
            samples: [B, N] float.
            mask: [B, T] bool, True on frames that hold sound (not padding).
        Returns:
            reconstruction [B, N] and the quantizer's result with codes [B, T, K].
        """
        quantized = self.quantizer(self.encode_samples(samples, mask).float(), mask)
        return self.decode_latents(quantized.values, mask), quantized
