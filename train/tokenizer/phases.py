"""Stages of a tokenizer's training, one after the other: what is trained, for how long, and with which terms.

A stage begins with a fresh optimizer and a schedule of its own, for what is trained and how it is judged may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from ...configs.schema import Config, ConfigError, StepCount


class TrainStageConfig(Config):
    """Optimizer steps."""

    kind: Literal["train"] = "train"
    name: str
    steps: StepCount
    terms: tuple[str, ...] | None = None
    """Names of the terms that are on; null: all."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are, as names with wildcards: "encoder", "quantizer", "decoder.blocks.*"."""
    lr: PositiveFloat | None = None
    """Peak learning rate; null: train.lr."""
    warmup_steps: NonNegativeInt | None = None
    """null: train.warmup_steps."""
    latents: Literal["quantized", "continuous"] = "quantized"
    """What the decoder gets. continuous: the encoder's latents as they are; the quantizer then has no part in this
    stage."""


class FitStageConfig(Config):
    """Fit what is not trained but fitted (`kmeans` centres, `structural` clusters, `scalar` quantile bins) to the
    encoder's latents.

    Source: bins after training, TokenBridge, arXiv:2503.16430.
    """

    kind: Literal["fit"] = "fit"
    name: str
    items: PositiveInt = 1000
    """Pictures or excerpts whose latents are looked at."""


StageConfig = Annotated[TrainStageConfig | FitStageConfig, Field(discriminator="kind")]


def freeze_parts(net: nn.Module, patterns: Sequence[str], where: str) -> None:
    """Freeze the named parts of a network, and let everything else be trained.

    A frozen part is in eval mode: codebooks do not move either, and nothing is dropped.

    Raises:
        ConfigError: a pattern that fits no part; begins with `where`.
    """
    net.train().requires_grad_(True)
    names = [name for name, _ in [*net.named_modules(), *net.named_parameters()] if name]
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            known = ", ".join(name for name, _ in net.named_children())
            raise ConfigError(f"{where}.freeze: no part is called '{pattern}'; the network has {known} and their parts")
    for name, module in net.named_modules():
        if name and any(fits(name, pattern) for pattern in patterns):
            module.eval()
    for name, parameter in net.named_parameters():
        if any(fits(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern names a part or something that holds it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))
