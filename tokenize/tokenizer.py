"""Frozen tokenizers: media <-> codes [B, K, T], deterministic, identified by a fingerprint.

They run in float32 and eval mode, without gradients and regardless of the caller's autocast. Each example is processed
in one fixed shape, so its codes do not depend on the batch. A tokenizer directory holds config.json and
tokenizer.safetensors; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..configs.files import check_format, read_header, read_json, read_safetensors, write_json, write_safetensors
from ..configs.recognize import describe_wrong, folder_kind, run_model
from ..configs.schema import Config, ConfigError, check_config, nearest_name
from .audio.masked_conv import fold_norms
from .audio.networks import AudioNet, AudioTokenizerConfig
from .audio.streaming import StagesStream, StreamingLayer
from .bundled import bundled_model, bundled_models, shipped_path
from .codes import pad_and_cat
from .image.networks import ImageNet, ImageTokenizerConfig
from .layers.parameter_budget import Budget
from .quantizers.combinators.adaptive_length import HaltingQuantizer
from .quantizers.combinators.multi_scale import ScalesQuantizer, restore_phi
from .quantizers.combinators.region_routing import check_regions
from .quantizers.registry import Quantizer
from .spec import Geometry, ImageGeometry, TokenSpec

TokenizerConfig = Annotated[AudioTokenizerConfig | ImageTokenizerConfig, Field(discriminator="kind")]

NETS = {"audio": AudioNet, "picture": ImageNet}


class TokenizerFile(Config):
    """config.json of a tokenizer directory."""

    format: Literal[1] = 1
    tokenizer: TokenizerConfig
    fingerprint: str


@dataclass(frozen=True)
class Encoded:
    """Codes of a batch."""

    codes: Tensor
    """[B, K, T] long; frames beyond an example's length are 0."""
    lengths: Tensor
    """[B] long, number of frames of each example."""


class Tokenizer:
    """Base class of the frozen tokenizers `ImageTokenizer` and `AudioTokenizer`."""

    config: AudioTokenizerConfig | ImageTokenizerConfig
    net: AudioNet | ImageNet

    def __init__(self, config: AudioTokenizerConfig | ImageTokenizerConfig, net: AudioNet | ImageNet):
        self.config = config
        self.net = net.float().eval().requires_grad_(False)
        self.quantizer = net.quantizer
        self.quantizer.freeze()
        self.scales = self.quantizer if isinstance(self.quantizer, ScalesQuantizer) else None
        """The quantizer if it is multi-scale: its scales are then concatenated as frames of one codebook."""
        self.spec = TokenSpec(
            name=config.name,
            cardinalities=tuple(self.quantizer.cardinalities[: 1 if self.scales else None]),
            geometry=code_geometry(config, self.quantizer),
            fingerprint=fingerprint(config, _stored_tensors(net)),
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights; media and codes are moved to it."""
        return next(self.net.parameters()).device

    def to(self, device: str | torch.device) -> Tokenizer:
        """Move the weights; returns self."""
        self.net.to(device)
        return self

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Media to codes. See AudioTokenizer.encode and ImageTokenizer.encode."""
        raise AssertionError("a Tokenizer is made by make_tokenizer or load_tokenizer")

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes to media. See AudioTokenizer.decode and ImageTokenizer.decode."""
        raise AssertionError("a Tokenizer is made by make_tokenizer or load_tokenizer")

    def embed(self, codes: Tensor) -> Tensor:
        """Latents of codes: [B, K, T] -> [B, D, T], float32; multi-scale: latents of the last grid, [B, D, M]."""
        self.check_codes(codes)
        with exact_float32():
            return self._lookup(codes.to(self.device).transpose(1, 2)).transpose(1, 2)

    def vectors(self) -> Tensor:
        """Code vectors [K, V, D] in latent space, float32; ValueError if each scale has its own codebook."""
        with exact_float32():
            found = self.quantizer.vectors()
        if self.scales is None:
            return found
        if not self.scales.config.shared:
            raise ValueError(
                f"the scales of tokenizer '{self.spec.name}' have codebooks of their own, so a code has no vector that "
                "is the same in every frame; train it with quantizer.shared true"
            )
        return found[:1]

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Storage cost of codes [B, K, T], counting shared codes once: number of codes and bits, each [B] float64.

        The number is smaller than K * T if a node of the quantizer repeats codes (`stride`, `regions`) or drops them
        (`halting`).
        """
        self.check_codes(codes)
        frames = codes.transpose(1, 2)
        return self.quantizer.rate(frames if self.scales is None else self.scales.from_frames(frames))

    def _quantize(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """Latents [B, M, D] -> codes [B, T, K]."""
        codes = self.quantizer.encode(latents, mask=mask)
        return codes if self.scales is None else self.scales.to_frames(codes)

    def _lookup(self, codes: Tensor) -> Tensor:
        """Codes [B, T, K] -> latents [B, M, D]."""
        return self.quantizer.decode(codes if self.scales is None else self.scales.from_frames(codes))

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless codes are [B, K, T] long in range; -1 stands for a dropped level."""
        expected = self.spec.num_codebooks
        if codes.dim() != 3 or codes.dtype != torch.long:
            raise ValueError(f"codes must be long [B, K, T], found {codes.dtype} {list(codes.shape)}")
        if codes.shape[1] != expected:
            raise ValueError(
                f"codes have {codes.shape[1]} codebooks but the tokenizer '{self.spec.name}' has {expected}; "
                f"pass all of them"
            )
        sizes = torch.tensor(self.spec.cardinalities, device=codes.device)[:, None]
        if codes.numel() and bool(((codes >= sizes) | (codes < -1)).any()):
            raise ValueError(
                f"codes reach from {int(codes.min())} to {int(codes.max())}, tokenizer '{self.spec.name}' has "
                f"{list(self.spec.cardinalities)} codes"
            )

    def save(self, folder: str | Path) -> None:
        """Write config.json and tokenizer.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / "tokenizer.safetensors", _stored_tensors(self.net), {"format": "tessera-tokenizer"})
        described = TokenizerFile(tokenizer=self.config, fingerprint=self.spec.fingerprint)
        write_json(folder / "config.json", described.model_dump(mode="json"))


class ImageTokenizer(Tokenizer):
    """Tokenizer of images of one fixed size."""

    config: ImageTokenizerConfig
    net: ImageNet

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Images [B, C, height, width] in [-1, 1] -> codes [B, K, T], T = spec.geometry.num_frames.

        Raises ValueError on a wrong size or non-finite values.
        """
        geometry = self.spec.geometry
        assert isinstance(geometry, ImageGeometry)
        wanted = (geometry.channels, geometry.height, geometry.width)
        if media.dim() != 4 or media.shape[1:] != wanted:
            raise ValueError(
                f"pictures must be [B, {wanted[0]}, {wanted[1]}, {wanted[2]}] for tokenizer '{self.spec.name}', "
                f"found {list(media.shape)}"
            )
        _check_finite(media)
        media = media.to(self.device, torch.float32)
        with exact_float32():
            codes = [self._quantize(self.net.encode_pictures(item[None]))[0].T for item in media]
        frames = torch.full((len(codes),), geometry.num_frames, dtype=torch.long)
        none = torch.zeros(0, self.spec.num_codebooks, geometry.num_frames, dtype=torch.long)
        return Encoded(pad_and_cat([none, *(item[None].cpu() for item in codes)]), frames)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, K, T] -> images [B, C, height, width] in [-1, 1]."""
        self.check_codes(codes)
        geometry = self.spec.geometry
        assert isinstance(geometry, ImageGeometry)
        if codes.shape[2] != geometry.num_frames:
            raise ValueError(
                f"codes have {codes.shape[2]} frames, a picture of tokenizer '{self.spec.name}' has "
                f"{geometry.num_frames}"
            )
        with exact_float32():
            latents = [self._lookup(item.T[None]) for item in codes.to(self.device)]
            pictures = [self.net.decode_latents(item).clamp(-1, 1) for item in latents]
        return torch.cat(pictures) if pictures else torch.zeros(0, geometry.channels, geometry.height, geometry.width)


class AudioTokenizer(Tokenizer):
    """Tokenizer of audio of any length with C channels."""

    config: AudioTokenizerConfig
    net: AudioNet

    def __init__(self, config: AudioTokenizerConfig, net: AudioNet):
        super().__init__(config, net)
        *before, last = net.encoder.stages()
        first, *after = net.decoder.stages()
        self.encode_stages = [*before, self._then_quantize(last)]
        self.decode_stages = [self._after_lookup(first), *after]

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

        return StreamingLayer(run, stage.back, stage.ahead)

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
            _check_finite(samples)
            codes.append(self._encode_one(samples))
        frames = torch.tensor([-(-length // hop) for length in lengths.tolist()], dtype=torch.long)
        none = torch.zeros(0, self.spec.num_codebooks, 0, dtype=torch.long)
        return Encoded(pad_and_cat([none, *(item[None].cpu() for item in codes)]), frames)

    def _encode_one(self, samples: Tensor) -> Tensor:
        """[C, N] -> [K, T]."""
        whole = torch.nn.functional.pad(samples, (0, -samples.shape[1] % self.config.hop))
        with exact_float32():
            return StagesStream(self.encode_stages, self.config.encoder.chunk).run(self.net.frames(whole[None])[0]).T

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, K, T] -> samples [B, C, T * hop]; with lengths [B] (frames), zeros follow each example."""
        self.check_codes(codes)
        count, _, total = codes.shape
        lengths = torch.full((count,), total) if lengths is None else lengths
        samples = torch.zeros(count, self.config.channels, total * self.config.hop, device=self.device)
        for item, length, out in zip(codes.to(self.device), lengths.tolist(), samples, strict=True):
            if length:
                with exact_float32():
                    stream = StagesStream(self.decode_stages, self.config.decoder.chunk, -1)
                    out[:, : length * self.config.hop] = self.net.samples(stream.run(item[:, :length].T)[None])[0]
        return samples

    def stream_decoder(self) -> StreamDecoder:
        """A streaming decoder; its concatenated output equals `decode` bit for bit."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decode frames as they arrive.

    It outputs audio once a chunk and its right context are complete: first after `delay` frames, then every `chunk`
    frames.
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
            return self._join(self.stream.finish())

    def _join(self, pieces: list[Tensor]) -> Tensor:
        tokenizer = self.tokenizer
        if not pieces:
            return torch.zeros(tokenizer.config.channels, 0, device=tokenizer.device)
        return tokenizer.net.samples(torch.cat(pieces)[None])[0]


FROZEN = {"audio": AudioTokenizer, "picture": ImageTokenizer}


def make_tokenizer(
    config: AudioTokenizerConfig | ImageTokenizerConfig, net: AudioNet | ImageNet | None = None
) -> Tokenizer:
    """Freeze a trained network, rounding its layers to float16, their storage dtype; without `net`, use random weights
    (for tests)."""
    net = NETS[config.kind](config) if net is None else net
    fold_norms(net)
    _round_to_storage(net)
    return FROZEN[config.kind](config, net)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        folder: directory of a tokenizer, of a model or of a finished run (its tokenizer is loaded), or the name of a
            bundled model: "digits", "speech".
    Raises:
        FileNotFoundError: no tokenizer found. ValueError: damaged or foreign files, or weights that do not match the
        config.
    """
    folder = find_tokenizer(folder)
    saved = restore_phi(read_json(folder / "config.json"))
    described = check_config(saved, TokenizerFile, str(folder / "config.json"))
    config = described.tokenizer
    path = folder / "tokenizer.safetensors"
    header = read_header(path)
    with Budget(header.tensors, path):
        net = NETS[config.kind](config, read_files=False)
        fold_norms(net)
    layers = {name for name, _ in net.named_parameters()}
    wanted = {
        name: (torch.float16 if name in layers else tensor.dtype, tuple(tensor.shape))
        for name, tensor in net.state_dict().items()
    }
    found = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ValueError(
            f"{path}: tensor '{name}' is {_describe(found.get(name))}, the config asks for "
            f"{_describe(wanted.get(name))}"
        )
    tensors, metadata = read_safetensors(path)
    check_format(path, metadata, "tessera-tokenizer")
    net.load_state_dict(tensors)
    tokenizer = FROZEN[config.kind](config, net)
    if tokenizer.spec.fingerprint != described.fingerprint:
        raise ValueError(
            f"{folder}: the files hold tokenizer {tokenizer.spec.fingerprint[:12]}, config.json promises "
            f"{described.fingerprint[:12]}; "
            "one of them was changed or damaged, copy the directory again"
        )
    return tokenizer


def _describe(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if tensor is None else f"{str(tensor[0]).removeprefix('torch.')} {list(tensor[1])}"


def find_tokenizer(tokenizer: str | Path) -> Path:
    """Resolve the argument of `load_tokenizer` to a tokenizer directory; raises FileNotFoundError in the same cases."""
    folder = shipped_path(tokenizer)
    kind = folder_kind(folder)
    if kind == "model" and (folder / "tokenizer" / "config.json").is_file():
        return folder / "tokenizer"
    model = run_model(folder)
    if model is not None:
        return model / "tokenizer"
    if kind == "tokenizer" or (kind is None and (folder / "config.json").is_file()):
        return folder
    bundled = bundled_model(tokenizer)
    if bundled is not None and kind is None:
        return bundled / "tokenizer"
    if kind == "model":
        raise FileNotFoundError(
            f"{folder}: this model was saved without its tokenizer; name the tokenizer's own folder"
        )
    wrong = describe_wrong(folder, "a tokenizer")
    if wrong is not None:
        raise FileNotFoundError(wrong)
    if folder.is_dir() or len(folder.parts) != 1:
        missing = "config.json is missing" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(
            f"{folder}: no tokenizer here ({missing}); make one with: tessera tokenizer train CONFIG --out {folder}"
        )
    raise FileNotFoundError(
        f"{tokenizer}: no tokenizer here; there is no such folder, and no bundled model of that name; "
        f"{nearest_name(str(tokenizer), bundled_models())}"
    )


def fingerprint(config: Config, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the config and every stored tensor (name, dtype, shape, bytes)."""
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable gradients and autocast: the caller's precision must not change codes."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _stored_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Tensors to store: layers as float16 (already rounded to it), codebooks and counters in their own dtype."""
    layers = dict(net.named_parameters())
    return {name: (tensor.detach().half() if name in layers else tensor) for name, tensor in net.state_dict().items()}


def _round_to_storage(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half().float())
            if not bool(parameter.isfinite().all()):
                raise ValueError("a weight is beyond the range of float16; the training went wrong")


def code_geometry(config: AudioTokenizerConfig | ImageTokenizerConfig, quantizer: Quantizer) -> Geometry:
    """Geometry of the codes; with scales, the frames are the cells of all scales.

    Raises:
        ConfigError: the span of the quantizer's codes does not fit the frames of the network.
    """
    geometry, span = config.geometry, quantizer.span
    check_regions(quantizer, geometry)
    if isinstance(config, AudioTokenizerConfig):
        if span == 0 or config.encoder.chunk % span:
            wanted = "quantize frame by frame" if span == 0 else f"choose a chunk that is a multiple of {span}"
            raise ConfigError(
                f"encoder.chunk: audio is encoded {config.encoder.chunk} frames at a time, but the quantizer's codes "
                f"span {span or 'all'} frames; {wanted}"
            )
        return geometry
    assert isinstance(geometry, ImageGeometry)
    if isinstance(quantizer, HaltingQuantizer):
        if quantizer.config.shortest >= geometry.num_frames:
            raise ConfigError(
                f"quantizer.shortest: {quantizer.config.shortest} tokens never halt, but a picture has "
                f"{geometry.num_frames}; choose fewer"
            )
        return geometry
    if span:
        return geometry
    if not isinstance(quantizer, ScalesQuantizer):
        raise ConfigError("quantizer: scales inside another quantizer make no frames; make scales the outermost one")
    sizes = quantizer.config.sizes
    if sizes[-1] != (geometry.rows, geometry.columns):
        raise ConfigError(
            f"quantizer.sizes: the last scale is {sizes[-1][0]} x {sizes[-1][1]}, but the network makes a map of "
            f"{geometry.rows} x {geometry.columns}; end with that"
        )
    return geometry.model_copy(update={"scales": sizes})


def _check_finite(media: Tensor) -> None:
    if not bool(media.isfinite().all()):
        raise ValueError("media holds NaN or infinite values")
