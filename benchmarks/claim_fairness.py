"""Whether the two sides of a claim are equal but for what the claim is about.

Every aspect below is compared, on the configs and on the networks made of them. A row names in `differs` what is
unequal; an aspect that is unequal and not named there, or named and equal, is an error, and the row is not measured.

    data, losses, optimizer, steps, stages, init     the config outside the tokenizer
    network                                          the tokenizer without its quantizer
    start, update, revival                           of the trained codebooks
    quantizer                                        all else of the quantizer
    parameters                                       unequal: more than 10 % apart
    bits                                             of an image or a second; unequal: more than 1 % apart

A side without trained codebooks has no start, update or revival. The other must then have all there is, FULL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tessera.tokenize.audio.networks import AudioNet
from tessera.tokenize.image.networks import ImageNet
from tessera.tokenize.kinds import NETS
from tessera.tokenize.spec import AudioGeometry
from tessera.train.tokenizer.trainer import TokenizerTrainConfig

PARAMETERS_APART = 0.1
BITS_APART = 0.01
FULL = {"start": {True}, "update": {("ema", 0.99)}, "revival": {("replace", 0.1)}}
"""Moving averages, k-means start and revival, as `vq` has them if nothing is said."""
RULES = ("kmeans_init", "update", "decay", "inner_steps", "inner_rate", "index_temperature", "revive", "revive_below")
"""Settings of a codebook that are of its start, update or revival."""


@dataclass(frozen=True)
class Size:
    """What a side costs."""

    parameters: int
    """Numbers in its network, code vectors included, trained or not."""
    bits: float | None
    """Of an image, or of a second of audio; None: the quantizer must be fitted first."""


def check_fair(
    name: str,
    differs: Mapping[str, str],
    own: TokenizerTrainConfig,
    baseline: TokenizerTrainConfig,
    sizes: tuple[Size, Size],
) -> None:
    """Raise ValueError unless exactly the aspects in `differs` are unequal."""
    found = unequal(own, baseline, sizes)
    hidden = [aspect for aspect in found if aspect not in differs]
    if hidden:
        said = "; ".join(f"{aspect}: {found[aspect]}" for aspect in hidden)
        raise ValueError(f"{name}: the sides differ in more than the row says ({said}); make them equal, or name it")
    idle = [aspect for aspect in differs if aspect not in found]
    if idle:
        raise ValueError(f"{name}: differs names {', '.join(idle)}, but the sides are equal there; remove it")


def unequal(own: TokenizerTrainConfig, baseline: TokenizerTrainConfig, sizes: tuple[Size, Size]) -> dict[str, str]:
    """Aspect -> what is unequal, for a message."""
    sides = [aspects(config) for config in (own, baseline)]
    found = {
        aspect: f"{sides[0][aspect]} and {sides[1][aspect]}"
        for aspect in sides[0]
        if sides[0][aspect] != sides[1][aspect]
    }
    rules = [codebook_rules(config.tokenizer.quantizer.model_dump(mode="json")) for config in (own, baseline)]
    if not all(rules):  # a side without codebooks
        rules = [side or FULL for side in rules]
    for aspect in FULL:
        if rules[0][aspect] != rules[1][aspect]:
            found[aspect] = f"{sorted(rules[0][aspect])} and {sorted(rules[1][aspect])}"
    a, b = (size.parameters for size in sizes)
    if max(a, b) > (1 + PARAMETERS_APART) * min(a, b):
        found["parameters"] = f"{a:,} and {b:,}"
    bits = [size.bits for size in sizes]
    if bits[0] is not None and bits[1] is not None and max(bits) > (1 + BITS_APART) * min(bits):  # pyright: ignore
        found["bits"] = f"{bits[0]:.6g} and {bits[1]:.6g}"
    return found


def check_measured_bits(name: str, differs: Mapping[str, str], own: float, baseline: float) -> None:
    """`check_fair` for the bits that test media took; ValueError."""
    if "bits" not in differs and max(own, baseline) > (1 + BITS_APART) * min(own, baseline):
        raise ValueError(f"{name}: the sides took {own:.6g} and {baseline:.6g} bits; make them equal, or name it")


def aspects(config: TokenizerTrainConfig) -> dict[str, Any]:
    """The aspects that are settings, of a resolved config."""
    data = config.model_dump(mode="json")
    tokenizer, train = dict(data["tokenizer"]), dict(data["train"])
    quantizer = tokenizer.pop("quantizer")
    tokenizer.pop("name")
    return {
        "data": [data["data"], train.pop("batch"), train.pop("crop_seconds")],
        "losses": [data["terms"], data["balance"], data["judges"]],
        "optimizer": train,
        "steps": config.total_steps,
        "stages": data["stages"],
        "init": data["init"],
        "network": tokenizer,
        "quantizer": without_rules(quantizer),
    }


def codebook_rules(quantizer: Any) -> dict[str, set]:
    """Aspects of FULL -> the values that occur among the trained codebooks of a tree; empty if there are none."""
    rules: dict[str, set] = {}
    for node in nodes(quantizer):
        if node.get("kind") not in ("vq", "shared_index"):
            continue
        moving = (node["decay"],) if node["update"] == "ema" else ()
        alive = (node.get("revive", "replace"), node["revive_below"]) if node["revive_below"] else ("none",)
        rules.setdefault("start", set()).add(node["kmeans_init"])
        rules.setdefault("update", set()).add((node["update"], *moving))
        rules.setdefault("revival", set()).add(alive)
    return rules


def without_rules(tree: Any) -> Any:
    """A quantizer's settings without those that are compared as start, update and revival."""
    if isinstance(tree, dict):
        return {name: without_rules(part) for name, part in tree.items() if name not in RULES}
    return [without_rules(part) for part in tree] if isinstance(tree, list) else tree


def nodes(tree: Any) -> Iterator[dict]:
    """All mappings in a tree of settings."""
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(part)


def size_of(config: TokenizerTrainConfig) -> Size:
    """What a side costs, from its network before training."""
    torch.manual_seed(0)
    net = NETS[config.tokenizer.kind](config.tokenizer)
    fitted = any(stage.kind == "fit" for stage in config.stages)
    return Size(count_parameters(net), None if fitted else bits_of(config, net))


def count_parameters(net: nn.Module) -> int:
    """Parameters, and code vectors that are kept as buffers (all saved buffers with two axes)."""
    saved = net.state_dict(keep_vars=True)
    return sum(one.numel() for one in saved.values() if isinstance(one, nn.Parameter) or one.dim() == 2)


@torch.no_grad()
def bits_of(config: TokenizerTrainConfig, net: AudioNet | ImageNet) -> float:
    """Bits of an image, or of a second of audio, with codes of fixed length."""
    geometry, quantizer = config.tokenizer.geometry, net.quantizer.eval()
    if isinstance(geometry, AudioGeometry):
        places, share = 64, 64 / geometry.frame_rate
    else:
        places, share = geometry.rows * geometry.columns, 1
    codes = quantizer.encode(torch.randn(1, places, config.tokenizer.latent_dim))
    return float(quantizer.rate(codes)[1]) / share
