"""Decodes generated codes to media."""

from __future__ import annotations

import torch
from torch import Tensor

from ...tokenize.spec import AudioGeometry
from ...tokenize.tokenizer import Tokenizer


def decode_one(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Media of one sample's codes [K, T], float32 on the CPU: [C, N] or [C, height, width]."""
    geometry = tokenizer.spec.geometry
    if codes.shape[1] == 0 and isinstance(geometry, AudioGeometry):
        return torch.zeros(geometry.channels, 0)
    return tokenizer.decode(codes[None])[0].float().cpu()
