"""Configs of public image tokenizers with VQGAN networks; those take images of any size, a tokenizer of ours of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ....configs.schema import check_config
from ....configs.tensor_checks import WeightsError
from ...image.networks import ImageTokenizerConfig
from ...image.vqgan import VQGANConfig
from ...quantizers.registry import QuantizerConfig
from ..folder import PublicFolder, check_whole
from ..layout import check_tokenizer_layout
from ..tensor_map import CannotWrite, Shape, Term
from .vqgan_names import VQGANLayout, vqgan_sizes, vqgan_terms

PUBLISHED_SIZE = 256
"""Side of the images in pixels if neither the caller nor config.json gives one."""


def image_side(folder: PublicFolder, asked: int | None, default: int = PUBLISHED_SIZE) -> int:
    """Side of the images in pixels: asked for, or `image_size` of config.json, or the default."""
    side = folder.config.get("image_size", default) if asked is None else asked
    where = f"{folder.config_path}: image_size" if asked is None else "image_size"
    return check_whole(side, "image_size", where)


def vqgan_config(
    shapes: Mapping[str, Shape], layout: VQGANLayout, side: int, name: str, quantizer: QuantizerConfig, path: Path
) -> ImageTokenizerConfig:
    """Our config of a tokenizer with VQGAN networks, whose sizes are those of the tensors; path is for messages."""
    channels, latent_dim, encoder, decoder = vqgan_sizes(shapes, layout, path)
    described = {
        "kind": "picture",
        "name": name,
        "height": side,
        "width": side,
        "channels": channels,
        "downsamplings": len(encoder["multipliers"]) - 1,
        "latent_dim": latent_dim,
        "encoder": encoder,
        "decoder": decoder,
        "quantizer": quantizer.model_dump(mode="json"),
    }
    return check_config(described, ImageTokenizerConfig, str(path))


def check_image_layout(layout: str, config: Any, quantizer: QuantizerConfig | None = None) -> ImageTokenizerConfig:
    """The config of a tokenizer of square images with VQGAN networks and this quantizer, up to its training.

    Raises:
        CannotWrite: it is another kind of tokenizer; names the first setting that differs.
    """
    parts = (config.encoder, config.decoder) if isinstance(config, ImageTokenizerConfig) else ()
    if not parts or not all(isinstance(part, VQGANConfig) for part in parts):
        raise CannotWrite(f"{layout}'s layout holds image tokenizers with an encoder and decoder of kind vqgan")
    if config.height != config.width:
        raise CannotWrite(f"{layout}'s layout holds square images, found {config.height} x {config.width}")
    if quantizer is not None:
        check_tokenizer_layout(layout, config, config.model_copy(update={"quantizer": quantizer}))
    return config


def network_terms(
    config: ImageTokenizerConfig, ours: Mapping[str, Shape], layout: VQGANLayout, spell: Callable[[str], str] = str
) -> dict[str, Term]:
    """Terms of the networks of a tokenizer with VQGAN networks; see `vqgan_terms`."""
    assert isinstance(config.encoder, VQGANConfig) and isinstance(config.decoder, VQGANConfig)
    return vqgan_terms(ours, config.encoder, config.decoder, layout, spell)


def codebook_size(shapes: Mapping[str, Shape], name: str, path: Path) -> int:
    """Number of codes of the codebook with this name; WeightsError if it is missing or no matrix."""
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        found = "is missing" if shape is None else f"has shape {list(shape)}"
        raise WeightsError(f"{path}: tensor '{name}' {found}; it is the codebook [codes, latents]")
    return shape[0]
