"""Frozen tokenizer around a codec of transformers: same contract, but streams are whole recordings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..audio.resample import resample
from ..audio.tokenizer import AudioTokenizer, StreamDecoder, StreamEncoder
from ..base import TokenizerStorage
from .config import TransformersCodecConfig
from .network import HubNet
from .probe import check_probed


class TransformersTokenizer(AudioTokenizer):
    """Tokenizer of mono audio whose codes and samples a class of transformers computes, one example at a time.

    The class sees whole recordings, so a stream gathers its input and outputs everything at `finish`: memory grows with
    the length of the recording.
    """

    config: TransformersCodecConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    net: HubNet  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, config: TransformersCodecConfig, net: HubNet, storage: TokenizerStorage = "float32", probed: bool = False
    ):
        """probed: the config was just measured. ValueError: the class gives other frames or codes than it says."""
        self.config, self.storage = config, storage
        self.net = net.float().eval().requires_grad_(False)
        self.quantizer = self.scales = None
        self.lost = config.lost
        if not probed:
            check_probed(config, self.net)
        self.cardinalities = (config.codebook_size,) * config.codebooks
        self.geometry = config.geometry

    def _encode_one(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        frames = config.geometry.count_frames(samples.shape[1])
        if config.encoder_rate != config.sample_rate:
            samples = resample(samples.cpu(), config.sample_rate, config.encoder_rate).to(self.device)
        hop = config.hop * config.encoder_rate // config.sample_rate
        wanted = max(frames, config.shortest)
        if config.whole_frames or wanted > frames:
            samples = torch.nn.functional.pad(samples, (0, max(0, wanted * hop - samples.shape[1])))
        codes = self.net.encode(samples[0])[: config.codebooks, :frames]
        if codes.shape[1] < frames:
            raise ValueError(
                f"'{self.net.model_type}' encodes {samples.shape[1]} samples to {codes.shape[1]} frames, {frames} are "
                "expected; append silence to them"
            )
        return codes, torch.zeros(0)

    def check_codes(self, codes: Tensor) -> None:
        """As Tokenizer.check_codes; -1 is refused, too: the class cannot leave out codes of single frames."""
        super().check_codes(codes)
        if codes.numel() and int(codes.min()) < 0:
            raise ValueError(f"tokenizer '{self.config.name}' cannot leave out codes; found -1, pass codes from 0 on")

    def embed(self, codes: Tensor) -> Tensor:
        """ValueError: the class does not tell."""
        raise ValueError(self._without("code vectors"))

    def vectors(self) -> Tensor:
        """ValueError: the class does not tell."""
        raise ValueError(self._without("code vectors"))

    def _without(self, what: str) -> str:
        return (
            f"tokenizer '{self.config.name}' is computed by transformers, which does not give its {what}; in a "
            "language model, choose input: {kind: embedding}"
        )

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Every code is stored."""
        self.check_codes(codes)
        number = torch.full((len(codes),), codes[0].numel() if len(codes) else 0, dtype=torch.float64)
        bits = torch.tensor(self.cardinalities, dtype=torch.float64).log2().sum() * codes.shape[2]
        return number, bits.expand(len(codes)).clone()

    def stream_encoder(self) -> StreamEncoder:
        """Gathers all audio; `finish` returns the codes of `encode`."""
        return WholeEncoder(self)

    def stream_decoder(self, scales: Tensor | None = None) -> StreamDecoder:
        """Gathers all codes; `finish` returns the samples of `decode`."""
        if scales is not None:
            raise ValueError(f"scales are given, but tokenizer '{self.config.name}' does not normalize; leave them out")
        return WholeDecoder(self)


class WholeEncoder(StreamEncoder):
    """Encode audio once it is complete."""

    def __init__(self, tokenizer: TransformersTokenizer):
        self.tokenizer, self.pieces = tokenizer, []

    @property
    def scales(self) -> Tensor:
        """None are used: [0]."""
        return torch.zeros(0)

    def push(self, samples: Tensor) -> Tensor:
        """Add samples [1, n]; returns codes [K, 0]."""
        self.pieces.append(samples.to(self.tokenizer.device, torch.float32))
        return self._none()

    def finish(self) -> Tensor:
        """End the stream; returns all codes [K, t]."""
        samples = torch.cat([torch.zeros(1, 0, device=self.tokenizer.device), *self.pieces], dim=1)
        self.pieces = []
        if not samples.shape[1]:
            return self._none()
        return self.tokenizer.encode(samples[None]).codes[0].to(self.tokenizer.device)

    def _none(self) -> Tensor:
        return torch.zeros(len(self.tokenizer.cardinalities), 0, dtype=torch.long, device=self.tokenizer.device)


class WholeDecoder(StreamDecoder):
    """Decode codes once they are complete."""

    def __init__(self, tokenizer: TransformersTokenizer):
        self.tokenizer, self.pieces = tokenizer, []

    def push(self, codes: Tensor) -> Tensor:
        """Add frames [K, t]; returns samples [1, 0]."""
        self.tokenizer.check_codes(codes[None])
        self.pieces.append(codes.to(self.tokenizer.device))
        return torch.zeros(1, 0, device=self.tokenizer.device)

    def finish(self) -> Tensor:
        """End the stream; returns all samples [1, n]."""
        pieces, self.pieces = self.pieces, []
        codes = torch.cat(pieces, dim=1) if pieces else torch.zeros(1, 0)
        if not codes.shape[1]:
            return torch.zeros(1, 0, device=self.tokenizer.device)
        samples = self.tokenizer.net.decode(codes)
        expected = codes.shape[1] * self.tokenizer.config.hop - self.tokenizer.config.lost
        if samples.shape[1] != expected:
            raise ValueError(
                f"'{self.tokenizer.net.model_type}' decodes {codes.shape[1]} frames to {samples.shape[1]} samples, "
                f"{expected} are expected"
            )
        return samples
