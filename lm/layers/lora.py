"""LoRA: fine-tuning by low-rank changes of linear layers, whose own weights stay.

    y = W x + (alpha / rank) B A x        W [N, D] frozen        A [rank, D] random, B [N, rank] zero at the start

So the first step computes what the base model computes, and `merge_lora_` writes W + (alpha / rank) B A as one matrix.
Source: LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor, nn

from ...configs.module_names import fits
from ...configs.schema import Config, ConfigError
from ..ops.linear import Linear, linear
from ..ops.row_rng import Dropout

Net = TypeVar("Net", bound=nn.Module)


class LoRAConfig(Config):
    """Low-rank changes of linear layers; all other weights keep their values."""

    rank: int = Field(default=8, ge=1, le=65536)
    """Rank of the change of a matrix."""
    alpha: PositiveFloat | None = None
    """The change is multiplied by alpha / rank; null: equal to rank."""
    targets: tuple[str, ...] = ("transformer.blocks",)
    """Linear layers to change, as names of modules with wildcards, complete ("transformer.blocks.0.attention") or their
    last parts ("attention.qkv", "ffn.*"). The default is all layers of all blocks."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of what the change reads."""
    train: tuple[str, ...] = ()
    """Modules that learn as a whole: ["head"]. Those that are not taken from init.from must be listed."""

    @field_validator("targets")
    @classmethod
    def _name_layers(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or not all(target.strip(".") for target in targets):
            raise ValueError(
                f"{'an empty name' if targets else 'an empty list'} names no layer; list linear layers, such as "
                "attention.qkv, attention.out or ffn, or leave targets out for all layers of all blocks"
            )
        return targets

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


class LoRALinear(Linear):
    """A linear layer with a low-rank change; `weight` and `bias` keep their names and are those of the layer.

    Args:
        layer: the layer, whose parameters are used, not copied.
    """

    def __init__(self, layer: nn.Linear, config: LoRAConfig):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.scale = layer.weight, layer.bias, config.scale
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.lora_down = nn.Parameter(torch.empty(config.rank, layer.in_features, **like))
        self.lora_up = nn.Parameter(torch.zeros(layer.out_features, config.rank, **like))
        self.dropout = Dropout(config.dropout)
        if not self.lora_down.is_meta:
            nn.init.normal_(self.lora_down, std=layer.in_features**-0.5)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """[*, D] -> [*, N]."""
        inner = linear(self.dropout(input), self.lora_down)
        return super().forward(input) + self.scale * linear(inner, self.lora_up)

    def merged(self) -> Linear:
        """A plain layer that computes the same; the sum is made in float32."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        with torch.no_grad():
            change = self.scale * (self.lora_up.float() @ self.lora_down.float())
            layer.weight = nn.Parameter((self.weight.float() + change).to(self.weight.dtype))
        layer.bias = self.bias
        return layer.train(self.training)


def add_lora_(net: Net, config: LoRAConfig, where: str = "lora") -> Net:
    """Give the target layers of a network a low-rank change, in place. Random numbers: torch's global generator.

    Raises:
        ConfigError: a target matches no linear layer; the message begins with `where`.
    """
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    for target in config.targets:
        if not any(_is_target(name, target) for name in layers):
            ends = sorted({".".join(name.split(".")[-2:]) for name in layers})
            raise ConfigError(
                f"{where}.targets: no linear layer is called '{target}'; there are {', '.join(ends[:12])}"
            )
    for name, layer in layers.items():
        if any(_is_target(name, target) for target in config.targets):
            _replace(net, name, LoRALinear(layer, config))
    return net


def lora_layers(net: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Names of the changed layers, and the layers."""
    for name, module in net.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def merge_lora_(net: Net) -> Net:
    """Write the changes into the weights and make the layers plain, in place."""
    for name, layer in list(lora_layers(net)):
        _replace(net, name, layer.merged())
    return net


def merged_copy(net: Net) -> Net:
    """The network if no layer is changed, else a copy with merged weights."""
    return merge_lora_(copy.deepcopy(net)) if any(lora_layers(net)) else net


def is_lora(name: str) -> bool:
    """Whether a parameter of this name belongs to a low-rank change."""
    return name.rsplit(".", 1)[-1] in ("lora_down", "lora_up")


def _is_target(name: str, target: str) -> bool:
    """Whether a target is the complete name of a layer or of what contains it, or its last parts."""
    return fits(name, target) or fits(name, f"*.{target}")


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = net.get_submodule(parent)
    if isinstance(owner, nn.ModuleList):
        owner[int(last)] = module
    else:
        setattr(owner, last, module)
