"""Integer network for entropy coding: a small autoregressive model with identical results on every machine.

    symbols of n nearby frames -> embeddings -> hidden layers -> h       h, symbols of this frame so far -> next symbol

Why integers: an arithmetic decoder needs exactly the encoder's probabilities, but the rounding of float kernels depends
on the machine, the number of threads and the batch, and quantizing their results only makes mismatches rarer. Here
weights are -127 .. 127, activations 0 .. 127, and a layer is a matrix product, a floor division by a power of two, and
a clamp. It is computed in float64 on the CPU, where every product and partial sum is an integer below 2^53: such sums
are exact in any order, with or without fused multiply-add. exp() is a table in the file.

Training uses the same rounding with a straight-through gradient.
Source: the task is EnCodec's entropy coder (arXiv:2210.13438, section 3.3); integer models for coding: arXiv:1906.02361
(Balle et al., Integer Networks for Data Compression with Latent-Variable Models, there for priors).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.files import (
    check_format,
    read_header,
    read_safetensors,
    read_sealed_json,
    write_safetensors,
    write_sealed_json,
)
from ...configs.fingerprint import renew_part
from ...configs.recognize import describe_wrong
from ...configs.schema import Config, ConfigError, LayerCount, check_config
from ..layers.parameter_budget import Budget
from ..spec import ImageGeometry, TokenSpec
from .context import SymbolTable, symbol_table
from .range_coder import MAX_WEIGHT

WEIGHT_STEPS = 64
"""Stored weight of 1.0; also the divisor of sums before the next layer."""
ACTIVATION_STEPS = 16
"""Integer activation of 1.0."""
LOGIT_STEPS = 32
"""Integer logit of one nat."""
LARGEST = 127
WORST_NATS = 10.0
"""Largest log-probability gap to the likeliest value; bounds the cost of a wrong prediction to about 16 bits."""
STORED = {"weight": torch.int8, "bias": torch.int32, "exponential": torch.int32}
"""Storage dtype by the last part of a tensor's name."""
FILES = ("coder.json", "coder.safetensors")


class CoderConfig(Config):
    """Sizes of the network."""

    context: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]
    """Offsets (rows, columns) from a frame to its context frames, which must be earlier. Audio is one row: (0, -1) is
    the previous frame."""
    embedding: PositiveInt = 24
    """Embedding dimension per symbol."""
    width: Annotated[int, Field(ge=8, le=2048)] = 192
    """Width of the hidden layers."""
    layers: LayerCount = 2
    """Hidden layers over the context."""
    by_place: bool = False
    """true: also predict from the position of the frame in the image. For images only."""

    @model_validator(mode="after")
    def _check(self) -> CoderConfig:
        for down, right in self.context:
            if down > 0 or (down == 0 and right >= 0):
                raise ValueError(f"context ({down}, {right}) does not precede the frame; (0, -1) is the previous frame")
        return self


class CoderFile(Config):
    """coder.json of a coder directory."""

    format: Literal["tessera-coder"] = "tessera-coder"
    version: Literal[1] = 1
    network: CoderConfig
    spec: TokenSpec
    fingerprint: str


class CoderNet(nn.Module):
    """Autoregressive integer network over codes. It is built for training; `freeze` rounds it permanently.

    Raises ConfigError if the config does not fit the tokenizer.
    """

    exponential: Tensor

    def __init__(self, config: CoderConfig, spec: TokenSpec):
        super().__init__()
        self.config, self.spec = config, spec
        self.symbols: SymbolTable = symbol_table(spec.cardinalities)
        sizes, width, embedding = self.symbols.sizes, config.width, config.embedding
        if not isinstance(spec.geometry, ImageGeometry) and (config.by_place or any(r for r, _ in config.context)):
            raise ConfigError(f"'{spec.name}' encodes audio: context rows must be 0, by_place false")
        num_places = spec.geometry.num_frames if isinstance(spec.geometry, ImageGeometry) and config.by_place else 0
        # One extra row for missing frames.
        self.embeddings = nn.ModuleList(nn.Embedding(size + 1, embedding) for size in sizes)
        self.cells = nn.Embedding(num_places, embedding) if num_places else None
        first = embedding * (len(sizes) * len(config.context) + bool(num_places))
        self.hidden = nn.ModuleList(nn.Linear(width if i else first, width) for i in range(config.layers))
        self.mix = nn.ModuleList(nn.Linear(width + embedding * k, width) for k in range(len(sizes)))
        self.out = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.register_buffer("exponential", _exponential())
        self.frozen = False
        for layer in self.out:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, near: Tensor, place: Tensor) -> Tensor:
        """Context -> hidden [N, width], integer values.

        Args:
            near: symbols [N, n, J] long of the frames in `context`; the symbol's number of values for missing frames.
            place: [N] long, position of the frame in its item.
        """
        looked_up = [self._look_up(table, near[:, :, j]).flatten(1) for j, table in enumerate(self.embeddings)]
        if self.cells is not None:
            looked_up.append(self._look_up(self.cells, place))
        x = torch.cat(looked_up, dim=1)
        for layer in self.hidden:
            x = self._dropped(_activate(self._apply_layer(layer, x)))
        return x

    def logits(self, hidden: Tensor, current: Tensor) -> Tensor:
        """Logits of the next symbol: hidden [N, width], this frame's symbols so far [N, j] -> [N, V_j] in 1/32 nats."""
        j = current.shape[1]
        so_far = [self._look_up(self.embeddings[k], current[:, k]) for k in range(j)]
        x = self._dropped(_activate(self._apply_layer(self.mix[j], torch.cat([hidden, *so_far], dim=1))))
        return _floor(self._apply_layer(self.out[j], x) / (WEIGHT_STEPS * ACTIVATION_STEPS / LOGIT_STEPS))

    def weights(self, hidden: Tensor, current: Tensor) -> np.ndarray:
        """Integers proportional to the probabilities of the next symbol, [N, V_j] int64; frozen networks only."""
        logits = self.logits(hidden, current)
        below = (logits.amax(dim=1, keepdim=True) - logits).clamp_max(len(self.exponential) - 1)
        return self.exponential[below.long()].numpy()

    def losses(self, near: Tensor, place: Tensor, symbols: Tensor) -> Tensor:
        """Cross-entropy [N, J] in nats of symbols [N, J]."""
        hidden = self(near, place)
        terms = []
        for j in range(symbols.shape[1]):
            logits = self.logits(hidden, symbols[:, :j]) / LOGIT_STEPS
            terms.append(F.cross_entropy(logits, symbols[:, j], reduction="none"))
        return torch.stack(terms, dim=1)

    @torch.no_grad()
    def freeze(self) -> CoderNet:
        """Round all weights permanently, which makes all results exact. Returns self."""
        if not self.frozen:
            for module in self.modules():
                if isinstance(module, nn.Embedding | nn.Linear):
                    steps = ACTIVATION_STEPS if isinstance(module, nn.Embedding) else WEIGHT_STEPS
                    module.weight.data = _to_steps(module.weight, steps).double()
                if isinstance(module, nn.Linear):
                    module.bias.data = (module.bias * ACTIVATION_STEPS * WEIGHT_STEPS).round().double()
            self.frozen = True
            self.requires_grad_(False).eval()
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of config, tokenizer and stored weights."""
        digest = hashlib.sha256(json.dumps(self.config.model_dump(mode="json"), sort_keys=True).encode())
        digest.update(self.spec.fingerprint.encode())
        for name, tensor in sorted(self._stored().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write coder.json and coder.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / FILES[1], self._stored(), {"format": "tessera-coder"})
        described = CoderFile(network=self.config, spec=self.spec, fingerprint=self.fingerprint)
        write_sealed_json(folder / FILES[0], described.model_dump(mode="json"))
        renew_part(folder)

    def _stored(self) -> dict[str, Tensor]:
        """Tensors to store: weights as int8, biases and the table as int32."""
        self.freeze()
        return {
            name: tensor.to(STORED[name.rsplit(".", 1)[-1]]).contiguous() for name, tensor in self.state_dict().items()
        }

    def _apply_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        if self.frozen:
            return F.linear(x, layer.weight, layer.bias)
        bias = layer.bias * ACTIVATION_STEPS * WEIGHT_STEPS
        return F.linear(x, _straight(layer.weight, WEIGHT_STEPS), bias + (bias.round() - bias).detach())

    def _look_up(self, table: nn.Module, symbols: Tensor) -> Tensor:
        assert isinstance(table, nn.Embedding)
        return F.embedding(symbols, table.weight if self.frozen else _straight(table.weight, ACTIVATION_STEPS))

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout in training, see the trainer; otherwise x unchanged."""
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    dropout = 0.0


def _exponential() -> Tensor:
    """Table over d: weight of a value d / 32 nats below the likeliest."""
    steps = range(int(WORST_NATS * LOGIT_STEPS) + 1)
    return torch.tensor([max(1, round(MAX_WEIGHT * math.exp(-d / LOGIT_STEPS))) for d in steps])


def _to_steps(weight: Tensor, steps: int) -> Tensor:
    return (weight * steps).round().clamp(-LARGEST, LARGEST)


def _straight(weight: Tensor, steps: int) -> Tensor:
    scaled = (weight * steps).clamp(-LARGEST, LARGEST)
    return scaled + (scaled.round() - scaled).detach()


def _floor(x: Tensor) -> Tensor:
    return x + (x.floor() - x).detach() if x.requires_grad else x.floor()


def _activate(x: Tensor) -> Tensor:
    return _floor(x / WEIGHT_STEPS).clamp(0, LARGEST)


def load_coder(folder: str | Path) -> CoderNet:
    """Load a coder directory written by `tessera tokenizer coder`.

    Raises:
        FileNotFoundError: no coder there. ValueError: damaged or foreign files.
    """
    folder = Path(folder)
    if not (folder / FILES[0]).is_file():
        raise FileNotFoundError(
            describe_wrong(folder, "a coder")
            or f"{folder}: no coder here ({FILES[0]} is missing); "
            "make one with: tessera tokenizer coder CONFIG --out DIR"
        )
    described = check_config(read_sealed_json(folder / FILES[0]), CoderFile, str(folder / FILES[0]))
    header = read_header(folder / FILES[1])
    with Budget(header.tensors, folder / FILES[1]):
        net = CoderNet(described.network, described.spec).freeze()
    wanted = {name: (STORED[name.rsplit(".", 1)[-1]], tuple(x.shape)) for name, x in net.state_dict().items()}
    found = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
    tensors, metadata = read_safetensors(folder / FILES[1])
    check_format(folder / FILES[1], metadata, "tessera-coder")
    if wanted != found:
        raise ValueError(f"{folder / FILES[1]}: its tensors do not match {FILES[0]}; copy the directory again")
    net.load_state_dict({name: tensor.to(net.state_dict()[name].dtype) for name, tensor in tensors.items()})
    if net.fingerprint != described.fingerprint:
        raise ValueError(f"{folder}: damaged, its fingerprint is not {described.fingerprint[:12]}; copy it again")
    return net


def context_symbols(symbols: np.ndarray, near: np.ndarray, sizes: Sequence[int]) -> Tensor:
    """Symbols [F, J] of all frames and `neighbours` [N, n] -> [N, n, J] long, V_j for missing frames."""
    padded = np.concatenate([symbols, np.array([sizes])])
    return torch.from_numpy(padded[near])  # -1 selects the appended row
