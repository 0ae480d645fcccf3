"""Frozen tokenizer of audio: samples <-> codes [B, K, T], at once or as a stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ..base import Encoded, Tokenizer, TokenizerStorage, check_finite, exact_float32
from ..codes import pad_and_cat
from ..quantizers.combinators.region_routing import check_regions
from ..quantizers.registry import Quantizer
from ..spec import AudioGeometry
from .networks import AudioNet, AudioTokenizerConfig
from .streaming import StagesStream, StreamingLayer


class AudioTokenizer(Tokenizer):
    """Tokenizer of audio of any length with C channels."""

    config: AudioTokenizerConfig
    net: AudioNet

    def __init__(self, config: AudioTokenizerConfig, net: AudioNet, storage: TokenizerStorage = "float16"):
        super().__init__(config, net, storage)
        *before, last = net.encoder.stages()
        first, *after = net.decoder.stages()
        self.encode_stages = [*before, self._then_quantize(last)]
        self.decode_stages = [self._after_lookup(first), *after]

    @staticmethod
    def code_geometry(config: AudioTokenizerConfig, quantizer: Quantizer) -> AudioGeometry:
        """See Tokenizer.code_geometry."""
        check_regions(quantizer, config.geometry)
        span = quantizer.span
        if span == 0 or config.encoder.chunk % span:
            wanted = "quantize frame by frame" if span == 0 else f"choose a chunk that is a multiple of {span}"
            raise ConfigError(
                f"encoder.chunk: audio is encoded {config.encoder.chunk} frames at a time, but the quantizer's codes "
                f"span {span or 'all'} frames; {wanted}"
            )
        return config.geometry

    def _then_quantize(self, stage: StreamingLayer) -> StreamingLayer:
        """The last encoder stage followed by quantization, with output codes [1, T, K]."""
        span = self.quantizer.span

        def run(frames: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
            latents, state = stage.run(frames, mask, state)
            return self.quantizer.encode(latents, mask=mask if span > 1 else None), state

        # Groups of positions that share a code start at the same frames in every window.
        return StreamingLayer(run, -(-stage.back // span) * span, stage.ahead)

    def _after_lookup(self, stage: StreamingLayer) -> StreamingLayer:
        """The first decoder stage, with input codes [1, T, K] that are -1 outside the frames."""

        def run(codes: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
            return stage.run(self.quantizer.decode(codes), mask, state)

        return replace(stage, run=run)

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Encode audio, each example independently.

        Args:
            media: samples [B, C, N] in [-1, 1] at the tokenizer's sample rate.
            lengths: [B] samples of each example, 1 <= length <= N; None: N. Samples beyond it are ignored.
        Returns:
            codes [B, K, T] with T = ceil(longest / hop), and the frames of each example, ceil(length / hop).
        Raises:
            ValueError: wrong shape, an empty example, or non-finite samples.
        """
        channels = self.config.channels
        if media.dim() != 3 or media.shape[1] != channels:
            advice = "mix down to mono first" if channels == 1 else f"repeat or mix it to {channels} channels first"
            found = f"found {list(media.shape)}; {advice}"
            raise ValueError(f"audio must be [B, {channels}, N] for tokenizer '{self.spec.name}', {found}")
        count, _, total = media.shape
        if lengths is None:
            lengths = torch.full((count,), total)
        if lengths.shape != (count,) or (count and (int(lengths.min()) < 1 or int(lengths.max()) > total)):
            raise ValueError(f"lengths must be {count} numbers between 1 and {total}, found {lengths.tolist()}")
        hop = self.config.hop
        codes = []
        for item, length in zip(media.to(self.device, torch.float32), lengths.tolist(), strict=True):
            samples = item[:, :length]
            check_finite(samples)
            codes.append(self._encode_one(samples))
        frames = torch.tensor([-(-length // hop) for length in lengths.tolist()], dtype=torch.long)
        none = torch.zeros(0, self.spec.num_codebooks, 0, dtype=torch.long)
        return Encoded(pad_and_cat([none, *(item[None].cpu() for item in codes)]), frames)

    def _encode_one(self, samples: Tensor) -> Tensor:
        """[C, N] -> [K, T]."""
        hop = self.config.hop
        whole = torch.nn.functional.pad(samples, (0, -samples.shape[1] % (hop * self.config.pad_frames)))
        with exact_float32():
            codes = StagesStream(self.encode_stages, self.config.encoder.chunk).run(self.net.frames(whole[None])[0]).T
        return codes[:, : -(-samples.shape[1] // hop)]

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, K, T] -> samples [B, C, T * hop]; with lengths [B] (frames), zeros follow each example.

        A decoder whose network loses samples at the end (`dac` with tail short) gives so many less.
        """
        self.check_codes(codes)
        count, _, total = codes.shape
        lengths = torch.full((count,), total) if lengths is None else lengths
        hop, lost = self.config.hop, self.net.decoder.lost
        samples = torch.zeros(count, self.config.channels, max(0, total * hop - lost), device=self.device)
        for item, length, out in zip(codes.to(self.device), lengths.tolist(), samples, strict=True):
            if length:
                with exact_float32():
                    stream = StagesStream(self.decode_stages, self.config.decoder.chunk, -1)
                    made, end = self.net.samples(stream.run(item[:, :length].T)[None])[0], length * hop - lost
                    out[:, :end] = made[:, :end]
        return samples

    def stream_decoder(self) -> StreamDecoder:
        """A streaming decoder; its concatenated output equals `decode` bit for bit."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decode frames as they arrive.

    It outputs audio once a chunk and its right context are complete: first after `delay` frames, then every `chunk`
    frames, or more of a causal decoder.
    """

    def __init__(self, tokenizer: AudioTokenizer):
        self.tokenizer = tokenizer
        self.stream = StagesStream(tokenizer.decode_stages, tokenizer.config.decoder.chunk, -1)
        self.delay = self.stream.delay

    def push(self, codes: Tensor) -> Tensor:
        """Add frames [K, t]; returns the samples [C, n] that are ready, n a multiple of chunk * hop and possibly 0."""
        self.tokenizer.check_codes(codes[None])
        with exact_float32():
            return self._join(self.stream.push(codes.T.to(self.tokenizer.device)))

    def finish(self) -> Tensor:
        """End the stream; returns the remaining samples [C, n]."""
        with exact_float32():
            samples = self._join(self.stream.finish())
        return samples[:, : max(0, samples.shape[1] - self.tokenizer.net.decoder.lost)]

    def _join(self, blocks: list[Tensor]) -> Tensor:
        tokenizer = self.tokenizer
        if not blocks:
            return torch.zeros(tokenizer.config.channels, 0, device=tokenizer.device)
        return tokenizer.net.samples(torch.cat(blocks)[None])[0]
