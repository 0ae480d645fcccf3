"""Encoder, decoder and last layer of a tokenizer in training, with one signature for audio and images."""

from __future__ import annotations

from torch import Tensor, nn

from ...tokenize.audio.networks import AudioNet
from ...tokenize.image.networks import ImageNet


def encode_latents(net: AudioNet | ImageNet, media: Tensor, mask: Tensor | None) -> Tensor:
    """Media [B, N] or [B, C, height, width] -> latents [B, T, D] float32.

    mask: [B, T] bool, True on valid audio frames; None for images.
    """
    if isinstance(net, AudioNet):
        assert mask is not None
        return net.encode_samples(media, mask).float()
    return net.encode_images(media).float()


def decode_latents(net: AudioNet | ImageNet, values: Tensor, mask: Tensor | None) -> Tensor:
    """Latents [B, T, D] -> media [B, N] or [B, C, height, width], float32."""
    if isinstance(net, AudioNet):
        assert mask is not None
        return net.decode_latents(values, mask).float()
    return net.decode_latents(values).float()


def last_layer(net: AudioNet | ImageNet) -> nn.Parameter:
    """Weight of the decoder's last layer."""
    return [parameter for parameter in net.decoder.parameters() if parameter.dim() >= 2][-1]
