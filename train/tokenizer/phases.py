"""Stages of tokenizer training, in sequence: what is trained, for how long, and with which losses.

Each stage starts with a fresh optimizer and its own schedule, since the trained parts and the losses may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from ...configs.module_names import fits
from ...configs.schema import Config, ConfigError, StepCount


class TrainStageConfig(Config):
    """A stage of optimizer steps."""

    kind: Literal["train"] = "train"
    name: str
    """Name of the stage in metrics and messages."""
    steps: StepCount
    """Optimizer steps of the stage."""
    terms: tuple[str, ...] | None = None
    """Names of the active losses; null: all."""
    freeze: tuple[str, ...] = ()
    """Frozen modules, as names with wildcards: "encoder", "quantizer", "decoder.blocks.*"."""
    lr: PositiveFloat | None = None
    """Peak learning rate; null: train.lr."""
    warmup_steps: NonNegativeInt | None = None
    """Steps over which the learning rate rises from 0 to its peak; null: train.warmup_steps."""
    latents: Literal["quantized", "continuous"] = "quantized"
    """Input of the decoder. continuous: the encoder's latents without quantization; the stage does not use the
    quantizer."""


class FitStageConfig(Config):
    """Fit parts that are not trained (`kmeans` centers, `structural` clusters, `scalar` quantile bins) to the encoder's
    latents.

    Source: bins after training, TokenBridge, arXiv:2503.16430.
    """

    kind: Literal["fit"] = "fit"
    name: str
    """Name of the stage in messages."""
    items: PositiveInt = 1000
    """Images or excerpts to take latents from."""


StageConfig = Annotated[TrainStageConfig | FitStageConfig, Field(discriminator="kind")]


def freeze_parts(net: nn.Module, patterns: Sequence[str], where: str) -> None:
    """Freeze the named parts of a network and make everything else trainable.

    Frozen parts are in eval mode, so that codebooks do not change and there is no dropout.

    Raises:
        ConfigError: a pattern matches no part; the message begins with `where`.
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
