"""Base class of frozen tokenizers: media <-> codes [B, K, T], deterministic, identified by a fingerprint.

They run in float32 and eval mode, without gradients and regardless of the caller's autocast. Each example is processed
in one fixed shape, so its codes do not depend on the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..configs.files import write_json, write_safetensors
from ..configs.schema import Config
from .audio.networks import AudioNet, AudioTokenizerConfig
from .image.networks import ImageNet, ImageTokenizerConfig
from .quantizers.combinators.multi_scale import ScalesQuantizer
from .quantizers.registry import Quantizer
from .spec import Geometry, TokenSpec

TokenizerStorage = Literal["float16", "float32"]
"""Storage of a tokenizer's layers: float16 for those trained here; float32 keeps the weights of a public checkpoint."""

STORAGE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Encoded:
    """Codes of a batch."""

    codes: Tensor
    """[B, K, T] long; frames beyond an example's length are 0."""
    lengths: Tensor
    """[B] long, number of frames of each example."""
    scales: Tensor | None = None
    """[B, segments] float32, the scale of each segment of audio, 1 beyond an example's last; None: none are used."""


class Tokenizer:
    """Base class of the frozen tokenizers `ImageTokenizer` and `AudioTokenizer`."""

    config: AudioTokenizerConfig | ImageTokenizerConfig
    net: AudioNet | ImageNet
    quantizer: Any
    """Quantizer; None where another package computes the codes (`TransformersTokenizer`)."""

    def __init__(
        self,
        config: AudioTokenizerConfig | ImageTokenizerConfig,
        net: AudioNet | ImageNet,
        storage: TokenizerStorage = "float16",
    ):
        self.config = config
        self.storage: TokenizerStorage = storage
        self.net = net.float().eval().requires_grad_(False)
        self.quantizer = net.quantizer
        self.quantizer.freeze()
        self.scales = self.quantizer if isinstance(self.quantizer, ScalesQuantizer) else None
        """The quantizer if it is multi-scale: its scales are then concatenated as frames of one codebook."""
        self.cardinalities: tuple[int, ...] = tuple(self.quantizer.cardinalities[: 1 if self.scales else None])
        """Number of codes of each codebook."""
        self.geometry: Geometry = self.code_geometry(config, self.quantizer)
        self._described("")  # fails now if it would later

    @cached_property
    def spec(self) -> TokenSpec:
        """What codes are valid for: the first use reads all weights, for their fingerprint."""
        return self._described(fingerprint(self.config, stored_tensors(self.net, self.storage)))

    def _described(self, fingerprint: str) -> TokenSpec:
        return TokenSpec(
            name=self.config.name,
            cardinalities=self.cardinalities,
            geometry=self.geometry,
            fingerprint=fingerprint,
        )

    @staticmethod
    def code_geometry(config: Any, quantizer: Quantizer) -> Geometry:
        """Geometry of the codes.

        Raises:
            ConfigError: the span of the quantizer's codes does not fit the frames of the network.
        """
        raise AssertionError("a Tokenizer is made by make_tokenizer or load_tokenizer")

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
                f"the scales of tokenizer '{self.spec.name}' have separate codebooks, so a code has "
                "no single vector for all frames; train it with quantizer.shared true"
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
        expected = len(self.cardinalities)
        if codes.dim() != 3 or codes.dtype != torch.long:
            raise ValueError(f"codes must be long [B, K, T], found {codes.dtype} {list(codes.shape)}")
        if codes.shape[1] != expected:
            raise ValueError(
                f"codes have {codes.shape[1]} codebooks but the tokenizer '{self.spec.name}' has {expected}; "
                f"pass all of them"
            )
        sizes = torch.tensor(self.cardinalities, device=codes.device)[:, None]
        if codes.numel() and bool(((codes >= sizes) | (codes < -1)).any()):
            raise ValueError(
                f"codes range from {int(codes.min())} to {int(codes.max())}, tokenizer '{self.spec.name}' has "
                f"{list(self.cardinalities)} codes"
            )

    def save(self, folder: str | Path) -> None:
        """Write config.json and tokenizer.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = stored_tensors(self.net, self.storage)
        write_safetensors(folder / "tokenizer.safetensors", tensors, {"format": "tessera-tokenizer"})
        described = {
            "format": 1,
            "tokenizer": self.config.model_dump(mode="json"),
            "fingerprint": self.spec.fingerprint,
        }
        if self.storage != "float16":
            described["storage"] = self.storage
        write_json(folder / "config.json", described)


def fingerprint(config: Config, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the config and every stored tensor (name, dtype, shape, bytes)."""
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore
    return digest.hexdigest()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable gradients and autocast: the caller's precision must not change codes."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def stored_tensors(net: nn.Module, storage: TokenizerStorage = "float16") -> dict[str, Tensor]:
    """Tensors to store: layers in `storage` (already rounded to it), codebooks and counters in their own dtype."""
    layers, dtype = dict(net.named_parameters()), STORAGE_DTYPES[storage]
    found = {name: tensor.detach().to(dtype) if name in layers else tensor for name, tensor in net.state_dict().items()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def check_finite(media: Tensor) -> None:
    """Raise ValueError on NaN or infinite values."""
    if not bool(media.isfinite().all()):
        raise ValueError("media holds NaN or infinite values")
