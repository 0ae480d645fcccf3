"""VQGAN networks in public checkpoints: names of the layers, and the sizes that follow from the tensors.

              taming-transformers, VAR                  LlamaGen
    block     encoder.down.1.block.0.conv1              encoder.conv_blocks.1.res.0.conv1
    attention encoder.down.4.attn.0.q (VAR: qkv)        encoder.conv_blocks.4.attn.0.q
    middle    encoder.mid.block_1, attn_1, block_2      encoder.mid.0, 1, 2
    decoder   decoder.up.4 is the lowest resolution     decoder.conv_blocks.0 is the lowest resolution

Here the layers of each side are one sequence, `encoder.0` to `decoder.N`. All of these systems use group norms of 32
groups and end the encoder with `quant_conv`, which the decoder reverses with `post_quant_conv`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ....configs.tensor_checks import WeightsError
from ...image.vqgan import VQGANConfig
from ..tensor_map import Part, Shape, Source, Term


@dataclass(frozen=True)
class VQGANLayout:
    """Spelling of a library, and what its networks may be."""

    down: str = "down"
    up: str = "up"
    block: str = "block"
    middle: tuple[str, str, str] = ("block_1", "attn_1", "block_2")
    low_first: bool = False
    """The decoder's resolutions are numbered from the lowest to the full one."""
    fused: bool = False
    """One layer `qkv` computes queries, keys and values."""
    any_attention: bool = False
    """Attention may be at other resolutions than the lowest."""
    latent_kernel: Literal[1, 3] = 1
    """Kernel of `quant_conv` and `post_quant_conv`."""


TAMING = VQGANLayout(any_attention=True)
VAR = VQGANLayout(fused=True, latent_kernel=3)
LLAMAGEN = VQGANLayout("conv_blocks", "conv_blocks", "res", ("0", "1", "2"), low_first=True)

_LEAVES = {"shortcut": "nin_shortcut", "query": "q", "key": "k", "value": "v", "out": "proj_out"}
_FUSED = ("query", "key", "value")


def vqgan_terms(
    ours: Mapping[str, Shape],
    encoder: VQGANConfig,
    decoder: VQGANConfig,
    names: VQGANLayout,
    spell: Callable[[str], str] = str,
) -> dict[str, Term]:
    """Terms of all tensors of the encoder and decoder among ours.

    Args:
        ours: names and shapes of our tensors.
        spell: the name in the file of a tensor with these names, if the library changes them once more.
    """
    layers = {"encoder": _encoder_layers(encoder, names), "decoder": _decoder_layers(decoder, names)}
    terms: dict[str, Term] = {}
    for name, shape in ours.items():
        found = re.fullmatch(r"(encoder|decoder)\.(\d+)\.(?:(\w+)\.)?(weight|bias)", name)
        if found is None:
            continue
        side, place, inner, leaf = found.groups()
        layer = layers[side][int(place)]
        assert layer is not None, name
        if names.fused and inner in _FUSED:
            whole = (3 * shape[0], *shape[1:])
            terms[name] = Part(spell(f"{layer}.qkv.{leaf}"), whole, _FUSED.index(inner) * shape[0])
        else:
            theirs = f"{layer}.{_LEAVES.get(inner, inner)}" if inner else layer
            terms[name] = Source(spell(f"{theirs}.{leaf}"))
    return terms


def _encoder_layers(config: VQGANConfig, names: VQGANLayout) -> list[str | None]:
    """Their name of each of our layers, in our order; None for a layer without tensors."""
    layers: list[str | None] = ["encoder.conv_in"]
    for level in range(len(config.multipliers)):
        layers += _level(config, names, f"encoder.{names.down}.{level}", level, config.blocks)
        if level < len(config.multipliers) - 1:
            layers.append(f"encoder.{names.down}.{level}.downsample.conv")
    layers += [f"encoder.mid.{part}" for part in names.middle]
    return [*layers, "encoder.norm_out", None, "encoder.conv_out", "quant_conv"]


def _decoder_layers(config: VQGANConfig, names: VQGANLayout) -> list[str | None]:
    layers: list[str | None] = ["post_quant_conv", "decoder.conv_in"]
    layers += [f"decoder.mid.{part}" for part in names.middle]
    for level in reversed(range(len(config.multipliers))):
        base = f"decoder.{names.up}.{_decoder_place(names, level, len(config.multipliers))}"
        layers += _level(config, names, base, level, config.blocks + 1)
        if level:
            layers += [None, f"{base}.upsample.conv"]
    return [*layers, "decoder.norm_out", None, "decoder.conv_out"]


def _level(config: VQGANConfig, names: VQGANLayout, base: str, level: int, blocks: int) -> Iterable[str]:
    for number in range(blocks):
        yield f"{base}.{names.block}.{number}"
        if config.has_attention(level):
            yield f"{base}.attn.{number}"


def _decoder_place(names: VQGANLayout, level: int, levels: int) -> int:
    return levels - 1 - level if names.low_first else level


def vqgan_sizes(shapes: Mapping[str, Shape], names: VQGANLayout, path: Path) -> tuple[int, int, dict, dict]:
    """The sizes that tensors have: image channels, latent channels, and the settings of encoder and decoder.

    Raises:
        WeightsError: a tensor that determines a size is missing, or the sizes are not those of such a network.
    """
    held = _Shapes(shapes, path)
    entry, inner, latents = (held[f"{name}.weight"] for name in ("encoder.conv_in", "encoder.conv_out", "quant_conv"))
    sides: list[dict[str, Any]] = []
    for side, folder, more in (("encoder", names.down, 0), ("decoder", names.up, 1)):
        levels = held.count(f"{side}.{folder}.", f".{names.block}.0.norm1.weight")
        places = [_decoder_place(names, n, levels) if side == "decoder" else n for n in range(levels)]
        bases = [f"{side}.{folder}.{place}." for place in places]
        blocks = held.count(f"{bases[0]}{names.block}.", ".norm1.weight") - more
        widths = [held[f"{base}{names.block}.0.conv2.weight"][0] for base in bases]
        if blocks < 1 or any(width % entry[0] for width in widths):
            raise WeightsError(f"{path}: {side} with {blocks} blocks and {widths} channels is no VQGAN known here")
        attention = tuple(n for n, base in enumerate(bases) if f"{base}attn.0.norm.weight" in shapes)
        lowest = not names.any_attention or attention == (levels - 1,)
        sides.append(
            {
                "kind": "vqgan",
                "channels": entry[0],
                "multipliers": [width // entry[0] for width in widths],
                "blocks": blocks,
                "inner_dim": inner[0],
                "attention": None if lowest else attention,
                "latent_kernel": names.latent_kernel,
            }
        )
    return entry[1], latents[0], sides[0], sides[1]


@dataclass(frozen=True)
class _Shapes:
    shapes: Mapping[str, Shape]
    path: Path

    def __getitem__(self, name: str) -> Shape:
        shape = self.shapes.get(name)
        if shape is None or len(shape) != 4 or 0 in shape:
            found = "is missing" if shape is None else f"has shape {list(shape)}"
            raise WeightsError(f"{self.path}: tensor '{name}' {found}; it is a convolution of a VQGAN")
        return shape

    def count(self, before: str, after: str) -> int:
        count = 0
        while f"{before}{count}{after}" in self.shapes:
            count += 1
        if not count:
            raise WeightsError(f"{self.path}: tensor '{before}0{after}' is missing; it is a part of a VQGAN")
        return count
