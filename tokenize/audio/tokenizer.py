"""Frozen tokenizer of audio: samples <-> codes [B, K, T], at once or as a stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...configs.schema import ConfigError
from ..base import Encoded, Tokenizer, TokenizerStorage, check_finite, exact_float32
from ..codes import pad_and_cat
from ..layers.masked_conv import ConvStack
from ..quantizers.combinators.region_routing import check_regions
from ..quantizers.registry import Quantizer
from ..spec import AudioGeometry
from .bottleneck import SlidingTransformer
from .networks import AudioNet, AudioTokenizerConfig
from .segments import SegmentDecoder, SegmentEncoder
from .streaming import StageRun, StagesStream, StreamingLayer, run_stages, window_stage


class AudioTokenizer(Tokenizer):
    """Tokenizer of audio of any length with C channels."""

    config: AudioTokenizerConfig
    net: AudioNet

    def __init__(self, config: AudioTokenizerConfig, net: AudioNet, storage: TokenizerStorage = "float16"):
        super().__init__(config, net, storage)
        for module in net.modules():
            if isinstance(module, ConvStack | SlidingTransformer):
                module.freeze()
        *before, last = net.encoder.stages()
        first, *after = net.decoder.stages()
        self.lost = net.decoder.lost
        """Samples by which decoded audio is shorter than its frames."""
        self.encode_stages = [*before, *self._then_quantize(last)]
        self.decode_stages = [self._after_lookup(first), *after]

    @staticmethod
    def code_geometry(config: AudioTokenizerConfig, quantizer: Quantizer) -> AudioGeometry:
        """See Tokenizer.code_geometry."""
        check_regions(quantizer, config.geometry)
        span = quantizer.span
        name, what, chunk = "encoder.chunk", "chunk", config.encoder.chunk
        if config.segments is not None:
            name, what, chunk = "segments.frames", "segment", config.segments.frames
        if span == 0 or chunk % span:
            wanted = "quantize frame by frame" if span == 0 else f"choose a {what} that is a multiple of {span}"
            raise ConfigError(
                f"{name}: audio is encoded {chunk} frames at a time, but the quantizer's codes span "
                f"{span or 'all'} frames; {wanted}"
            )
        return config.geometry

    def _then_quantize(self, stage: StreamingLayer) -> list[StreamingLayer]:
        """The last encoder stage followed by quantization, with output codes [1, T, K]."""
        span = self.quantizer.span

        def quantize(latents: Tensor, mask: Tensor) -> Tensor:
            of_frames = mask if mask.dim() == 2 else mask[:, :, 0]
            return self.quantizer.encode(latents, mask=of_frames.to(latents.device) if span > 1 else None)

        def change(run: StageRun) -> StageRun:
            def changed(frames: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
                latents, state = run(frames, mask, state)
                return quantize(latents, mask), state

            return changed

        if span > 1 and (stage.eager or stage.late):  # frames that share a code have to wait for each other
            return [stage, window_stage(quantize, 0, 0)]
        # Groups of positions that share a code start at the same frames in every window.
        return [replace(stage.map_runs(change), back=-(-stage.back // span) * span)]

    def _after_lookup(self, stage: StreamingLayer) -> StreamingLayer:
        """The first decoder stage, with input codes [1, T, K] that are -1 outside the frames."""

        def change(run: StageRun) -> StageRun:
            return lambda codes, mask, state: run(self.quantizer.decode(codes), mask, state)

        return stage.map_runs(change)

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Encode audio, each example independently.

        Args:
            media: samples [B, C, N] in [-1, 1] at the tokenizer's sample rate.
            lengths: [B] samples of each example, 1 <= length <= N; None: N. Samples beyond it are ignored.
        Returns:
            codes [B, K, T] with T = ceil(longest / hop), and the frames of each example, ceil(length / hop). If there
            are segments: the codes of all segments (`AudioGeometry.count_frames`), and the scales.
        Raises:
            ValueError: wrong shape, an empty example, or non-finite samples.
        """
        channels = self.config.channels
        if media.dim() != 3 or media.shape[1] != channels:
            advice = "mix down to mono first" if channels == 1 else f"repeat or mix it to {channels} channels first"
            found = f"found {list(media.shape)}; {advice}"
            raise ValueError(f"audio must be [B, {channels}, N] for tokenizer '{self.config.name}', {found}")
        count, _, total = media.shape
        if lengths is None:
            lengths = torch.full((count,), total)
        if lengths.shape != (count,) or (count and (int(lengths.min()) < 1 or int(lengths.max()) > total)):
            raise ValueError(f"lengths must be {count} numbers between 1 and {total}, found {lengths.tolist()}")
        codes, scales = [], []
        for item, length in zip(media.to(self.device, torch.float32), lengths.tolist(), strict=True):
            samples = item[:, :length]
            check_finite(samples)
            found, scale = self._encode_one(samples)
            codes.append(found)
            scales.append(scale)
        geometry = self.config.geometry
        frames = torch.tensor([geometry.count_frames(length) for length in lengths.tolist()], dtype=torch.long)
        none = torch.zeros(0, len(self.cardinalities), 0, dtype=torch.long)
        joined = pad_and_cat([none, *(item[None].cpu() for item in codes)])
        return Encoded(joined, frames, pad_sequence(scales, True, 1.0).cpu() if scales and len(scales[0]) else None)

    def _encode_one(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """[C, N] -> codes [K, T] and scales [segments]."""
        if self.config.segments is not None:
            encoder = self.stream_encoder()
            return torch.cat([encoder.push(samples), encoder.finish()], dim=1), encoder.scales
        whole, tail = self.whole_frames(samples)
        with exact_float32():
            stream = StagesStream(self.encode_stages, self.config.encoder.chunk)
            codes = stream.run(self.net.frames(whole[None])[0], tail).T
        return codes[:, : -(-samples.shape[1] // self.config.hop)], torch.zeros(0)

    def whole_frames(self, samples: Tensor, before: int = 0) -> tuple[Tensor, Tensor | None]:
        """Samples [C, N] after `before` frames, completed with zeros to whole frames or blocks of `pad_frames`, and the
        mask [hop] of the samples that the last frame has, if the encoder treats an incomplete frame by itself."""
        hop, rest = self.config.hop, samples.shape[1] % self.config.hop
        tail = torch.arange(hop, device=samples.device) < rest if rest and self.config.ragged else None
        missing = -(before * hop + samples.shape[1]) % (hop * self.config.pad_frames)
        return torch.nn.functional.pad(samples, (0, missing)), tail

    def decode(self, codes: Tensor, lengths: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
        """Decode codes.

        Args:
            codes: [B, K, T].
            lengths: [B] frames of each example; None: T.
            scales: [B, segments] as `encode` returned them; None: segments that are normalized get a common loudness.
        Returns:
            samples [B, C, T * hop], fewer with overlapping segments (`AudioGeometry.count_samples`) and of a decoder
            that loses samples at the end (`dac` with tail short); zeros follow examples that are shorter.
        Raises:
            ValueError: codes out of range, or scales for a tokenizer that does not use them.
        """
        self.check_codes(codes)
        count, _, total = codes.shape
        lengths = torch.full((count,), total) if lengths is None else lengths
        size = max(0, self.config.geometry.count_samples(total) - self.lost)
        samples = torch.zeros(count, self.config.channels, size, device=self.device)
        for row, length in enumerate(lengths.tolist()):
            if length:
                decoder = self.stream_decoder(None if scales is None else scales[row])
                pieces = [decoder.push(codes[row, :, :length]), decoder.finish()]
                found = torch.cat(pieces, dim=1)
                samples[row, :, : found.shape[1]] = found
        return samples

    def stream_encoder(self) -> StreamEncoder:
        """A streaming encoder; its concatenated codes equal those of `encode`."""
        return StreamEncoder(self)

    def stream_decoder(self, scales: Tensor | None = None) -> StreamDecoder:
        """A streaming decoder; its concatenated output equals `decode` bit for bit.

        scales: [segments] of normalized segments, see `decode`."""
        return StreamDecoder(self, scales)

    def encode_segment(self, samples: Tensor) -> Tensor:
        """Codes [K, t] of one segment [C, n]."""
        assert self.config.segments is not None
        hop, frames, n = self.config.hop, self.config.segments.frames, samples.shape[1]
        whole = torch.nn.functional.pad(samples, (0, frames * hop - n))
        mask = (torch.arange(frames * hop, device=samples.device) < n).view(1, frames, hop)
        mask = mask if self.config.ragged else mask[:, :, 0]
        return run_stages(self.encode_stages, self.net.frames(whole[None]), mask)[0, : -(-n // hop)].T

    def decode_segment(self, codes: Tensor) -> Tensor:
        """Samples [C, t * hop] of one segment's codes [K, t]."""
        assert self.config.segments is not None
        frames, t = self.config.segments.frames, codes.shape[1]
        whole = torch.nn.functional.pad(codes, (0, frames - t), value=-1)
        mask = (torch.arange(frames, device=codes.device) < t)[None]
        return self.net.samples(run_stages(self.decode_stages, whole.T[None], mask)[:, :t])[0]


class StreamEncoder:
    """Encode audio as it arrives.

    Codes are output once a chunk of `encoder.chunk` frames, or a segment, and its right context are complete.
    """

    def __init__(self, tokenizer: AudioTokenizer):
        self.tokenizer = tokenizer
        config = tokenizer.config
        segments, hop = config.segments, config.hop
        self.segments = None if segments is None else SegmentEncoder(segments, hop, tokenizer.encode_segment)
        self.stream = StagesStream(tokenizer.encode_stages, config.encoder.chunk)
        self.held = torch.zeros(config.channels, 0, device=tokenizer.device)
        # A spectrum's window reaches over samples of other frames.
        alone = tokenizer.net.encoder.frame(torch.zeros(hop, device=tokenizer.device)).shape[-1] == hop
        self.margin = 0 if alone else -(-config.window // hop)
        self.before = 0  # frames at the start of `held` that are encoded, and kept for the windows of the next
        self.gone = 0  # frames of the signal before `held`
        self.given = 0  # frames whose codes were returned

    @property
    def scales(self) -> Tensor:
        """Scales of the segments encoded so far, [segments] float32."""
        found = self.segments.scales if self.segments is not None else []
        return torch.stack(found) if found else torch.zeros(0)

    def push(self, samples: Tensor) -> Tensor:
        """Add samples [C, n] in [-1, 1]; returns the codes [K, t] that are ready, t possibly 0."""
        samples = samples.to(self.held)
        with exact_float32():
            if self.segments is not None:
                return self._join(self.segments.push(samples))
            hop, config = self.tokenizer.config.hop, self.tokenizer.config
            self.held = torch.cat([self.held, samples], dim=1)
            # A last frame that may be incomplete is kept for `finish`.
            whole = max(0, self.held.shape[1] - config.ragged) // hop
            ready = max(self.before, whole - self.margin)
            if ready == self.before:
                return self._join([])
            frames = self._frames(self.held[:, : whole * hop])[self.before : ready]
            past = max(0, ready - self.margin)
            self.held, self.before, self.gone = self.held[:, past * hop :], ready - past, self.gone + past
            return self._counted(self._join([codes.T for codes in self.stream.push(frames)]))

    def finish(self) -> Tensor:
        """End the stream; returns the remaining codes [K, t]."""
        with exact_float32():
            if self.segments is not None:
                return self._join(self.segments.finish())
            whole, tail = self.tokenizer.whole_frames(self.held, self.gone)
            last = self._frames(whole)[self.before :] if whole.shape[1] else None
            codes = self._join([codes.T for codes in self.stream.finish(last, tail)])
            total = self.gone + -(-self.held.shape[1] // self.tokenizer.config.hop)
            return self._counted(codes[:, : total - self.given])

    def _counted(self, codes: Tensor) -> Tensor:
        self.given += codes.shape[1]
        return codes

    def _frames(self, samples: Tensor) -> Tensor:
        return self.tokenizer.net.frames(samples[None])[0]

    def _join(self, blocks: list[Tensor]) -> Tensor:
        none = torch.zeros(len(self.tokenizer.cardinalities), 0, dtype=torch.long, device=self.held.device)
        return torch.cat([none, *blocks], dim=1)


class StreamDecoder:
    """Decode frames as they arrive.

    It outputs audio once a chunk and its right context are complete: first after `delay` frames, then every `chunk`
    frames, or more of a causal decoder. With segments, it outputs a segment when its last frame is there.
    """

    def __init__(self, tokenizer: AudioTokenizer, scales: Tensor | None = None):
        """scales: [segments], of a tokenizer that normalizes them; None: a common loudness."""
        config = tokenizer.config
        segments = config.segments
        if scales is not None and (segments is None or not segments.normalize):
            raise ValueError(f"scales are given, but tokenizer '{config.name}' does not normalize; leave them out")
        self.tokenizer = tokenizer
        self.stream = StagesStream(tokenizer.decode_stages, config.decoder.chunk, -1)
        self.segments = None
        if segments is not None:
            scales = None if scales is None else scales.to(tokenizer.device)
            self.segments = SegmentDecoder(segments, config.hop, tokenizer.decode_segment, scales)
        self.delay = self.stream.delay if segments is None else segments.frames

    def push(self, codes: Tensor) -> Tensor:
        """Add frames [K, t]; returns the samples [C, n] that are ready, n possibly 0."""
        self.tokenizer.check_codes(codes[None])
        codes = codes.to(self.tokenizer.device)
        with exact_float32():
            if self.segments is not None:
                return self._join(self.segments.push(codes))
            return self._join(self._samples(self.stream.push(codes.T)))

    def finish(self) -> Tensor:
        """End the stream; returns the remaining samples [C, n]."""
        with exact_float32():
            if self.segments is not None:
                return self._join(self.segments.finish())
            samples = self._join(self._samples(self.stream.finish()))
        return samples[:, : max(0, samples.shape[1] - self.tokenizer.lost)]

    def _samples(self, blocks: list[Tensor]) -> list[Tensor]:
        return [self.tokenizer.net.samples(torch.cat(blocks)[None])[0]] if blocks else []

    def _join(self, blocks: list[Tensor]) -> Tensor:
        none = torch.zeros(self.tokenizer.config.channels, 0, device=self.tokenizer.device)
        return torch.cat([none, *blocks], dim=1)
