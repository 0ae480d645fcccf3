"""Network of the audio tokenizer: an encoder, a quantizer and a decoder, each selected by `kind`.

To add a kind, write one file with a config, an encoder and a decoder (or one of them, as `fused` and `code2wav`), add
one line to the union and to each table here, and one entry to the list in tests/tokenize/test_audio_networks.py. Any
encoder can be combined with any decoder: between them are latents [B, T, latent_dim], one per `hop` samples.

    encoder   config, shape -> .frame(samples [..., N]) -> [..., T, F], the samples of each frame
                               .stages()  [B, T, C * F] -> latents [B, T, latent_dim]
    decoder   config, shape -> .stages()  [B, T, latent_dim] -> samples [B, T, C * hop]
                               .lost      samples at the end of the signal that are not part of it, usually 0
    config    .check_shape(shape) raises ValueError if the network does not fit the tokenizer's hop or window
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, Tag, model_validator
from torch import Tensor, nn

from ...configs.names import ShownName
from ...configs.schema import FingerprintedConfig, kind_or
from ..quantizers.registry import Quantized, QuantizerConfig, make_quantizer
from ..spec import AudioGeometry
from .base import AudioShape
from .code2wav import Code2WavConfig, Code2WavDecoder
from .dac import DACConfig, DACDecoder
from .dual_encoder import PLAIN_ENCODERS, FusedConfig, FusedEncoder
from .mel_2d import Mel2DConfig, Mel2DDecoder
from .per_channel import PerChannelConfig, PerChannelEncoder, for_each_channel, one_channel
from .seanet import SEANetConfig, SEANetDecoder
from .segments import SegmentsConfig
from .snac import SNACConfig, SNACDecoder, SNACEncoder
from .streaming import StreamingLayer, run_stages
from .vocos import AudioStackConfig, SpectrumDecoder

AudioDecoderConfig = Annotated[
    Annotated[AudioStackConfig, Tag("spectrum")]
    | Annotated[SEANetConfig, Tag("seanet")]
    | Annotated[DACConfig, Tag("dac")]
    | Annotated[SNACConfig, Tag("snac")]
    | Annotated[Mel2DConfig, Tag("mel2d")]
    | Annotated[Code2WavConfig, Tag("code2wav")]
    | Annotated[PerChannelConfig, Tag("per_channel")],
    kind_or("spectrum"),
]
AudioEncoderConfig = Annotated[
    Annotated[AudioStackConfig, Tag("spectrum")]
    | Annotated[SEANetConfig, Tag("seanet")]
    | Annotated[DACConfig, Tag("dac")]
    | Annotated[SNACConfig, Tag("snac")]
    | Annotated[Mel2DConfig, Tag("mel2d")]
    | Annotated[FusedConfig, Tag("fused")]
    | Annotated[PerChannelConfig, Tag("per_channel")],
    kind_or("spectrum"),
]

AUDIO_ENCODERS = {**PLAIN_ENCODERS, "snac": SNACEncoder, "fused": FusedEncoder, "per_channel": PerChannelEncoder}
PLAIN_DECODERS = {
    "spectrum": SpectrumDecoder,
    "seanet": SEANetDecoder,
    "dac": DACDecoder,
    "snac": SNACDecoder,
    "mel2d": Mel2DDecoder,
    "code2wav": Code2WavDecoder,
}


class PerChannelDecoder(nn.Module):
    """The decoder of one channel, applied to each: latents to samples (per_channel.py)."""

    def __init__(self, config: PerChannelConfig, shape: AudioShape):
        super().__init__()
        self.channels = shape.channels
        self.part = PLAIN_DECODERS[config.part.kind](config.part, one_channel(shape))  # pyright: ignore
        self.lost = self.part.lost

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]."""
        return for_each_channel(self.part.stages(), self.channels)


AUDIO_DECODERS = {**PLAIN_DECODERS, "per_channel": PerChannelDecoder}


class AudioTokenizerConfig(FingerprintedConfig):
    """Config of an audio tokenizer: audio to codes and back.

    Several channels share one set of codes: the encoder and decoder process them jointly (as EnCodec at 48 kHz,
    arXiv:2210.13438).
    """

    added: ClassVar[frozenset[str]] = frozenset({"channels", "pad_frames", "segments"})

    kind: Literal["audio"] = "audio"
    name: ShownName
    """Name of the tokenizer, stored with its codes and shown in messages."""
    sample_rate: PositiveInt = 16000
    """Sample rate of the audio; files of another rate are resampled."""
    channels: int = Field(default=1, ge=1, le=8)
    """1: mono; files with more channels are mixed down. 2: stereo; mono files are repeated."""
    hop: PositiveInt = 320
    """Samples per frame."""
    pad_frames: PositiveInt = 1
    """Audio is encoded with silence up to a multiple of this many frames; the codes of whole frames of silence are
    dropped. It makes what a block of frames or a code of several frames sees at the end independent of the length."""
    window: PositiveInt = 1280
    """STFT window of `spectrum` and `mel2d` networks in samples; even, at least hop."""
    latent_dim: PositiveInt = 128
    """Channels of the latents between encoder, quantizer and decoder."""
    encoder: AudioEncoderConfig = Field(default_factory=AudioStackConfig)
    """Network from samples to latents."""
    decoder: AudioDecoderConfig = Field(default_factory=AudioStackConfig)
    """Network from latents to samples."""
    quantizer: QuantizerConfig
    """Turns each latent into codes."""
    segments: SegmentsConfig | None = None
    """Of a frozen tokenizer: encode and decode in segments, each alone; null: all audio as one. In training, a crop is
    a segment, and its loudness is not changed."""

    @model_validator(mode="after")
    def _parts_fit(self) -> AudioTokenizerConfig:
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            try:
                part.check_shape(self)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if self.segments is None and isinstance(part, SEANetConfig) and part.norm == "time_group":
                raise ValueError(f"{name}: norm time_group is over all audio that is encoded at once; set segments")
        if self.segments is not None and self.segments.stride > self.segments.frames * self.hop:
            raise ValueError(
                f"segments.stride {self.segments.stride} is above the {self.segments.frames * self.hop} samples of a "
                "segment, so samples would be left out"
            )
        return self

    @property
    def ragged(self) -> bool:
        """Whether the encoder treats signals that end inside a frame by itself, see SEANetConfig.last_frame."""
        return isinstance(self.encoder, SEANetConfig) and self.encoder.last_frame == "padded"

    @property
    def geometry(self) -> AudioGeometry:
        """Geometry of the code frames."""
        return AudioGeometry(
            sample_rate=self.sample_rate,
            channels=self.channels,
            samples_per_frame=self.hop,
            segment=None if self.segments is None else self.segments.geometry,
        )


class AudioNet(nn.Module):
    """Trainable audio tokenizer; `tokenizer.py` freezes it. N is always a multiple of hop, and T = N / hop."""

    def __init__(self, config: AudioTokenizerConfig, read_files: bool = True):
        super().__init__()
        self.config = config
        self.encoder = AUDIO_ENCODERS[config.encoder.kind](config.encoder, config)
        self.quantizer = make_quantizer(config.quantizer, config.latent_dim, read_files=read_files)
        self.decoder = AUDIO_DECODERS[config.decoder.kind](config.decoder, config)

    def frames(self, samples: Tensor) -> Tensor:
        """Samples [B, C, N] -> frames [B, T, C * F], channels concatenated."""
        return self.encoder.frame(samples).transpose(1, 2).flatten(2)

    def samples(self, frames: Tensor) -> Tensor:
        """Decoder output frames [B, T, C * hop] -> samples [B, C, T * hop]."""
        return frames.unflatten(2, (self.config.channels, -1)).transpose(1, 2).flatten(2)

    def encode_samples(self, samples: Tensor, mask: Tensor) -> Tensor:
        """Samples [B, N], or [B, C, N] for several channels, and frame mask [B, T] -> latents [B, T, latent_dim].

        If the config is `ragged`, the mask may be of samples, [B, T, hop]."""
        samples = samples if samples.dim() == 3 else samples[:, None]
        return run_stages(self.encoder.stages(), self.frames(samples), mask)

    def decode_latents(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Latents [B, T, latent_dim], mask [B, T] -> samples [B, T * hop], or [B, C, T * hop] for several channels."""
        samples = self.samples(run_stages(self.decoder.stages(), latents, mask))
        return samples if self.config.channels > 1 else samples[:, 0]

    def forward(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct a batch in training.

        Args:
            samples: [B, N] float, or [B, C, N] for several channels.
            mask: [B, T] bool, True for frames with audio (not padding).
        Returns:
            the reconstruction, shaped like the samples, and the quantizer result with codes [B, T, K].
        """
        quantized = self.quantizer(self.encode_samples(samples, mask).float(), mask)
        return self.decode_latents(quantized.values, mask), quantized
