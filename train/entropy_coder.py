"""Train the entropy coding network of `tessera encode --compress` on token shards. Takes minutes on one CPU core."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from tqdm import trange

from ..configs.folder_lock import lock_folder
from ..configs.schema import BatchSize, Config, StepCount
from ..tokenize.compression.chunk_coder import Layout
from ..tokenize.compression.context import neighbours
from ..tokenize.compression.integer_network import CoderConfig, CoderNet, context_symbols
from ..tokenize.data.shard_reader import Shards
from ..tokenize.spec import check_same_tokenizer

CUT_SHARE = 0.03
"""Fraction of training frames with a truncated context, as at the beginning of a chunk."""


class CoderTraining(Config):
    """Training settings of the network."""

    steps: StepCount = 3000
    """Optimizer steps."""
    batch: BatchSize = 512
    """Frames per step."""
    lr: PositiveFloat = 2e-3
    """Peak learning rate of AdamW; it decays to 2 percent along a cosine."""
    warmup_steps: PositiveInt = 100
    """Steps over which the learning rate rises from 0 to its peak."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW, for all weights."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of hidden activations."""
    forget: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the neighboring frames masked at random, against memorizing small data sets."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the exported moving average of the weights, which spans about 1 / (1 - ema) steps."""


class CoderTrainConfig(Config):
    """Config of `tessera tokenizer coder`."""

    seed: int = 0
    """Random seed of initialization, batches and dropout."""
    shards: str
    """Folder of the training shards (written by `tessera shards`)."""
    test: str | None = None
    """Folder of the shards whose bits are reported; null: the training shards."""
    network: CoderConfig
    """Sizes of the network."""
    train: CoderTraining = CoderTraining()
    """Training settings of the network."""


def train_coder(config: CoderTrainConfig, out: Path, progress: bool = True) -> list[float]:
    """Train and write a coder directory; returns bits per frame of each symbol on the test shards.

    Raises:
        FileNotFoundError, ValueError: the shards do not exist or are of two tokenizers, or another process writes in
            `out`.
    """
    with lock_folder(out, "tessera tokenizer coder"):
        return _train(config, out, progress)


def _train(config: CoderTrainConfig, out: Path, progress: bool) -> list[float]:
    """`train_coder` in a locked folder."""
    torch.manual_seed(config.seed)
    shards = Shards(config.shards)
    test = shards if config.test is None else Shards(config.test)
    check_same_tokenizer(test.spec, shards.spec, f"shards {config.test}")
    net, data = CoderNet(config.network, shards.spec), _Frames(shards, config.network)
    average = CoderNet(config.network, shards.spec)
    average.load_state_dict(net.state_dict())
    settings = config.train
    net.dropout = settings.dropout
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    generator = np.random.default_rng(config.seed)
    bar = trange(settings.steps, desc="coder", unit="step", disable=not progress)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _rate(step, settings)
        near, place, symbols = data.draw(settings.batch, generator, settings.forget)
        loss = net.losses(near, place, symbols).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        if step % 50 == 0:
            bar.set_postfix_str(f"{loss.item() / math.log(2):.2f} bits per frame")
    average.save(out)
    return _Frames(test, config.network).bits(average)


class _Frames:
    """All frames of the shards in memory, with their contexts."""

    def __init__(self, shards: Shards, network: CoderConfig):
        items = [shards.item(number).codes.numpy() for number in range(len(shards))]
        self.table = CoderNet(network, shards.spec).symbols
        self.symbols = self.table.split(np.concatenate(items, axis=1))
        layout = Layout.of([item.shape[1] for item in items], 1 << 40)
        self.place = layout.place
        self.near = neighbours(layout.place, layout.first, shards.spec.geometry, network.context)

    def draw(self, count: int, generator: np.random.Generator, forget: float):
        """Random frames: context symbols [count, n, J], positions [count], symbols [count, J]."""
        rows = generator.integers(len(self.place), size=count)
        near = self.near[rows]
        seen = np.where(generator.random(count) < CUT_SHARE, generator.integers(0, 20, count), 1 << 40)
        near = np.where(rows[:, None] - near > seen[:, None], -1, near)
        if forget:
            near = np.where(generator.random(near.shape) < forget, -1, near)
        return self._tensors(rows, near)

    def _tensors(self, rows: np.ndarray, near: np.ndarray):
        context = context_symbols(self.symbols, near, self.table.sizes)
        return context, torch.from_numpy(self.place[rows]), torch.from_numpy(self.symbols[rows])

    @torch.no_grad()
    def bits(self, net: CoderNet) -> list[float]:
        """Mean bits of each symbol under the frozen network."""
        total = torch.zeros(len(self.table.sizes), dtype=torch.float64)
        for rows in np.array_split(np.arange(len(self.place)), -(-len(self.place) // 1024)):
            total += net.losses(*self._tensors(rows, self.near[rows])).double().sum(dim=0)
        return (total / len(self.place) / math.log(2)).tolist()


def _rate(step: int, settings: CoderTraining) -> float:
    """Learning rate factor: warm-up, then cosine decay."""
    up = min(1.0, (step + 1) / settings.warmup_steps)
    return up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
