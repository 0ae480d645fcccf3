"""An outside judge of pictures: a small network that names the idea of a picture, trained on the real pictures alone.

It is trained on pictures [N, 3, 32, 32] of several styles, moved, scaled and slightly changed in color at random, for
minutes on one CPU core. The same pictures and seed give the same judge.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS, BATCH, RATE = 20, 64, 4e-3
STRETCH, SHIFT = 0.15, 0.12
"""Largest change of the size, and of the place in units of a half side."""


class JudgeNet(nn.Sequential):
    """Pictures [B, 3, side, side] in [-1, 1] -> logits [B, ideas]; they are read at 32 x 32."""

    def __init__(self, ideas: int, width: int = 24):
        widths = [width, 2 * width, 4 * width, 4 * width]
        layers = [*_convolution(3, width, 2)]
        for before, after in itertools.pairwise(widths):
            layers += [*_convolution(before, after, 1 if before == width else 2), *_convolution(after, after, 1)]
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(widths[-1] * 16, ideas))


def _convolution(channels: int, made: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, made, 3, stride, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()


class PictureJudge:
    """Ranks ideas for pictures.

    Args:
        ideas: names of the classes, as they are numbered. net: see JudgeNet.
    """

    def __init__(self, ideas: list[str], net: JudgeNet):
        self.ideas, self.net = ideas, net.eval()
        self.number = {idea: number for number, idea in enumerate(ideas)}

    @torch.no_grad()
    def ranks(self, pictures: Tensor, ideas: list[str]) -> Tensor:
        """Rank (0: first) of the asked idea for each picture [B, 3, side, side] in [-1, 1]: long [B]."""
        if pictures.shape[-1] != 32:
            pictures = F.interpolate(pictures, size=(32, 32), mode="area")
        logits = torch.cat([self.net(part) for part in pictures.split(256)])
        asked = logits.gather(1, torch.tensor([[self.number[idea]] for idea in ideas]))
        return (logits > asked).sum(1)

    def share(self, pictures: Tensor, ideas: list[str], first: int = 5) -> float:
        """Share of the pictures whose asked idea is among the first `first`."""
        return float((self.ranks(pictures, ideas) < first).float().mean())


def train_judge(
    pictures: Tensor,
    ideas: list[str],
    classes: list[str],
    seed: int = 0,
    epochs: int = EPOCHS,
    cache: Path | None = None,
) -> PictureJudge:
    """Train a judge.

    Args:
        pictures: uint8 [N, 3, 32, 32]. ideas: of each picture. classes: all ideas.
        cache: folder of judges that are trained already; this one is stored there.
    """
    net = JudgeNet(len(classes))
    key = hashlib.sha256(pictures.numpy().tobytes() + repr((ideas, classes, seed, epochs, str(net))).encode())
    stored = None if cache is None else cache / f"judge-{key.hexdigest()[:16]}.safetensors"
    if stored is not None and stored.exists():
        from safetensors.torch import load_file

        net.load_state_dict(load_file(stored))
        return PictureJudge(classes, net)
    net = _fit(pictures, torch.tensor([classes.index(idea) for idea in ideas]), len(classes), seed, epochs)
    if stored is not None:
        from safetensors.torch import save_file

        stored.parent.mkdir(parents=True, exist_ok=True)
        save_file(net.state_dict(), stored)
    return PictureJudge(classes, net)


def _fit(pictures: Tensor, targets: Tensor, classes: int, seed: int, epochs: int) -> JudgeNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = JudgeNet(classes).train()
        per_epoch = -(-len(pictures) // BATCH)
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * per_epoch, pct_start=0.2)
        for _ in range(epochs):
            for rows in torch.randperm(len(pictures)).split(BATCH):
                shown = augmented(pictures[rows].float() / 127.5 - 1)
                loss = F.cross_entropy(net(shown), targets[rows], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net


def augmented(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] moved, scaled, blurred and changed in color at random, by torch's global generator."""
    B = len(pictures)
    scale = 1 + STRETCH * (2 * torch.rand(B, 1) - 1)
    shift = SHIFT * (2 * torch.rand(B, 2) - 1)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[:, 0], scale[:, 0], shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(1 - pictures, grid, align_corners=False)  # outside is white
    tint = 1 + 0.15 * (2 * torch.rand(B, 3, 1, 1) - 1)
    blurred = F.avg_pool2d(moved, 3, stride=1, padding=1)
    amount = 0.8 * torch.rand(B, 1, 1, 1) * (torch.rand(B, 1, 1, 1) < 0.5)
    made = (moved + amount * (blurred - moved)) * tint
    return 1 - made - 0.05 * torch.randn(pictures.shape)
