"""Frozen tokenizer of images of one size: images <-> codes [B, K, T]."""

from __future__ import annotations

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ..base import Encoded, Tokenizer, check_finite, exact_float32
from ..codes import pad_and_cat
from ..quantizers.combinators.adaptive_length import HaltingQuantizer
from ..quantizers.combinators.multi_scale import ScalesQuantizer
from ..quantizers.combinators.region_routing import check_regions
from ..quantizers.registry import Quantizer
from ..spec import ImageGeometry
from .networks import ImageNet, ImageTokenizerConfig


class ImageTokenizer(Tokenizer):
    """Tokenizer of images of one fixed size."""

    config: ImageTokenizerConfig
    net: ImageNet

    @staticmethod
    def code_geometry(config: ImageTokenizerConfig, quantizer: Quantizer) -> ImageGeometry:
        """See Tokenizer.code_geometry; with scales, the frames are the cells of all scales."""
        geometry = config.geometry
        check_regions(quantizer, geometry)
        if isinstance(quantizer, HaltingQuantizer):
            if quantizer.config.shortest >= geometry.num_frames:
                raise ConfigError(
                    f"quantizer.shortest: {quantizer.config.shortest} tokens are always kept, but an "
                    f"image has only {geometry.num_frames}; choose fewer"
                )
            return geometry
        if quantizer.span:
            return geometry
        if not isinstance(quantizer, ScalesQuantizer):
            raise ConfigError("quantizer: scales cannot be inside another quantizer; make it the outermost one")
        sizes = quantizer.config.sizes
        if sizes[-1] != (geometry.rows, geometry.columns):
            raise ConfigError(
                f"quantizer.sizes: the last scale is {sizes[-1][0]} x {sizes[-1][1]}, but the network makes a map of "
                f"{geometry.rows} x {geometry.columns}; end with that size"
            )
        return geometry.model_copy(update={"scales": sizes})

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Images [B, C, height, width] in [-1, 1] -> codes [B, K, T], T = spec.geometry.num_frames.

        Raises ValueError on a wrong size or non-finite values.
        """
        geometry = self.geometry
        assert isinstance(geometry, ImageGeometry)
        wanted = (geometry.channels, geometry.height, geometry.width)
        if media.dim() != 4 or media.shape[1:] != wanted:
            raise ValueError(
                f"images must be [B, {wanted[0]}, {wanted[1]}, {wanted[2]}] for tokenizer '{self.config.name}', "
                f"found {list(media.shape)}"
            )
        check_finite(media)
        media = media.to(self.device, torch.float32)
        with exact_float32():
            codes = [self._quantize(self.net.encode_images(item[None]))[0].T for item in media]
        frames = torch.full((len(codes),), geometry.num_frames, dtype=torch.long)
        none = torch.zeros(0, len(self.cardinalities), geometry.num_frames, dtype=torch.long)
        return Encoded(pad_and_cat([none, *(item[None].cpu() for item in codes)]), frames)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, K, T] -> images [B, C, height, width] in [-1, 1]."""
        self.check_codes(codes)
        geometry = self.geometry
        assert isinstance(geometry, ImageGeometry)
        if codes.shape[2] != geometry.num_frames:
            raise ValueError(
                f"codes have {codes.shape[2]} frames, an image of tokenizer '{self.config.name}' has "
                f"{geometry.num_frames}"
            )
        with exact_float32():
            latents = [self._lookup(item.T[None]) for item in codes.to(self.device)]
            images = [self.net.decode_latents(item).clamp(-1, 1) for item in latents]
        return torch.cat(images) if images else torch.zeros(0, geometry.channels, geometry.height, geometry.width)
