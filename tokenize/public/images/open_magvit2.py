"""Open-MAGVIT2 of SEED-Voken: `imagenet_256_L.ckpt`, `pretrain256_262144.ckpt`.

A Lightning checkpoint {"state_dict": tensors}, with the tensors of the losses, which are not read. If it has averages
of the weights, they are the model, as in Open-MAGVIT2's own evaluation. A code is the bits of the latents' signs, the
first channel the lowest bit. Sizes follow from the tensors, those of the images do not. Licence: Apache-2.0.
Source: Open-MAGVIT2, arXiv:2409.04410; tensor names of TencentARC/SEED-Voken (Apache-2.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....configs.files import write_json
from ....configs.schema import check_config
from ....configs.tensor_checks import WeightsError
from ...base import Tokenizer
from ...image.magvit2 import Magvit2Config
from ...image.networks import ImageTokenizerConfig
from ...quantizers.binary import LFQConfig
from ..building import count_levels, public_tensors, read_tokenizer, tokenizer_shapes
from ..checkpoint import write_pickle
from ..folder import PublicFolder
from ..layout import check_tokenizer_layout
from ..tensor_map import CannotWrite, Shape, Source, TensorMap, Term
from .averages import AVERAGES, averaged_name, with_averages
from .vqgan_tokenizer import image_side

FIRST = "decoder.adaptive.0.gamma.weight"
IGNORED = ("loss.", "colorize")


def is_open_magvit2(folder: PublicFolder) -> bool:
    """Whether there are weights with Open-MAGVIT2's names."""
    return folder.holding(FIRST) is not None


def read_open_magvit2(folder: PublicFolder, image_size: int | None = None) -> Tokenizer:
    """Read a tokenizer of Open-MAGVIT2.

    Args:
        image_size: side of the images in pixels; None: `image_size` of config.json, else 256.
    Raises:
        ValueError: a size that the network does not divide. WeightsError: tensors missing, left over or misshapen.
    """
    checkpoint = folder.holding(FIRST) or folder.checkpoint
    config = open_magvit2_config(checkpoint.shapes, image_side(folder, image_size), checkpoint.path)
    averaged = any(name.startswith(f"{AVERAGES}encoder") for name in checkpoint.shapes)
    return read_tokenizer(config, open_magvit2_tensor_map(config, averaged), checkpoint)


def open_magvit2_config(shapes: Mapping[str, Shape], side: int, path: Path) -> ImageTokenizerConfig:
    """Our config of a tokenizer with these tensors."""

    def sizes(name: str) -> Shape:
        shape = shapes.get(name)
        if shape is None or len(shape) != 4:
            found = "is missing" if shape is None else f"has shape {list(shape)}"
            raise WeightsError(f"{path}: tensor '{name}' {found}; it is a convolution of Open-MAGVIT2")
        return shape

    entry, latents = sizes("encoder.conv_in.weight"), sizes("encoder.conv_out.weight")
    levels = count_levels(shapes, "encoder.down.", ".block.0.norm1.weight")
    widths = [sizes(f"encoder.down.{level}.block.0.conv2.weight")[0] for level in range(levels)]
    part: dict[str, Any] = {
        "kind": "magvit2",
        "channels": entry[0],
        "multipliers": [width // max(1, entry[0]) for width in widths],
        "blocks": count_levels(shapes, "encoder.mid_block.", ".norm1.weight"),
    }
    described = {
        "kind": "picture",
        "name": "open-magvit2",
        "height": side,
        "width": side,
        "channels": entry[1],
        "downsamplings": levels - 1,
        "latent_dim": latents[0],
        "encoder": part,
        "decoder": part,
        "quantizer": {"kind": "lfq", "bits": latents[0]},
    }
    return check_config(described, ImageTokenizerConfig, str(path))


def open_magvit2_tensor_map(config: ImageTokenizerConfig, averaged: bool = False) -> TensorMap:
    """The map of such a tokenizer. averaged: the averages are read, and written as the weights, too."""
    encoder, decoder = config.encoder, config.decoder
    assert isinstance(encoder, Magvit2Config) and isinstance(decoder, Magvit2Config)
    names = _encoder_names(encoder)
    terms: dict[str, Term] = {}
    for name in tokenizer_shapes(config):
        layer = re.match(r"encoder\.\d+", name)
        theirs = names[layer[0]] + name[layer.end() :] if layer is not None else _decoder_name(name, decoder)
        theirs = theirs.replace(".shortcut.", ".nin_shortcut.")
        terms[name] = Source(averaged_name(theirs) if averaged else theirs)
    if not averaged:
        return TensorMap(terms, ignored=IGNORED)
    plain = open_magvit2_tensor_map(config).expected(tokenizer_shapes(config))
    return with_averages(terms, plain, IGNORED)


def _encoder_names(config: Magvit2Config) -> dict[str, str]:
    """Their name of each of our layers."""
    layers: list[str | None] = ["conv_in"]
    for level in range(len(config.multipliers)):
        layers += [f"down.{level}.block.{number}" for number in range(config.blocks)]
        if level < len(config.multipliers) - 1:
            layers.append(f"down.{level}.downsample")
    layers += [*(f"mid_block.{number}" for number in range(config.blocks)), "norm_out", None, "conv_out"]
    return {f"encoder.{place}": f"encoder.{name}" for place, name in enumerate(layers) if name is not None}


def _decoder_name(name: str, config: Magvit2Config) -> str:
    """Their name of a tensor of the decoder; they number the resolutions from the full one."""
    fixed = {"enter": "conv_in", "middle": "mid_block", "leave_norm": "norm_out", "leave": "conv_out"}
    part, rest = name.removeprefix("decoder.").split(".", 1)
    if part in fixed:
        return f"decoder.{fixed[part]}.{rest}"
    number, rest = rest.split(".", 1)
    level = len(config.multipliers) - 1 - int(number)
    inside = {"norms": f"adaptive.{level}", "levels": f"up.{level}.block", "grow": f"up.{level}.upsample.conv1"}
    return f"decoder.{inside[part]}.{rest}"


def write_open_magvit2(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as Open-MAGVIT2's `last.ckpt`, and config.json for the size of its images.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    config = tokenizer.config
    if not isinstance(config, ImageTokenizerConfig) or not isinstance(config.encoder, Magvit2Config):
        raise CannotWrite("Open-MAGVIT2's layout holds image tokenizers with an encoder and decoder of kind magvit2")
    if config.height != config.width:
        raise CannotWrite(f"Open-MAGVIT2's layout holds square images, found {config.height} x {config.width}")
    lookup_free = LFQConfig(bits=config.latent_dim)
    expected = config.model_copy(update={"decoder": config.encoder, "quantizer": lookup_free})
    check_tokenizer_layout("Open-MAGVIT2", config, expected)
    tensor_map = open_magvit2_tensor_map(config)
    shapes = tensor_map.expected(tokenizer_shapes(config))
    check_tokenizer_layout("Open-MAGVIT2", config, open_magvit2_config(shapes, config.height, folder))
    tensors = public_tensors(tokenizer, tensor_map)
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / "last.ckpt", {"state_dict": tensors})
    write_json(folder / "config.json", {"model_type": "open-magvit2", "image_size": config.height})
