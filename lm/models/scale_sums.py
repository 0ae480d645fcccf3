"""Running sums over scales: the constants of the tokenizer that a next-scale model needs, as a module of buffers.

    total = 0;   for each scale:   model input = area mean of total at this scale's grid,
                                   total += phi(vectors of the scale's codes, upsampled)

After the last scale `total` is what the tokenizer decodes. Nothing here is learned or saved: everything is in the
tokenizer's file. Source: VAR, arXiv:2404.02905, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...tokenize.quantizers.combinators.multi_scale import ScalesQuantizer, blend


class ScaleSums(nn.Module):
    """Running sums of the codes of a `ScalesQuantizer`, in float32 even under autocast.

    Notation: n cells of a scale, M cells of the last one, C channels of a code vector.
    """

    vectors: Tensor

    def __init__(self, quantizer: ScalesQuantizer):
        super().__init__()
        self.sizes = quantizer.config.sizes
        self.counts = tuple(rows * columns for rows, columns in self.sizes)
        """Cells of each scale."""
        self.dim = quantizer.dim
        with torch.no_grad():
            vectors = quantizer.vectors()
        self._keep("vectors", vectors[:1] if quantizer.config.shared else vectors)
        for number in range(len(self.sizes)):
            self._keep(f"down_{number}", getattr(quantizer, f"down_{number}"))
            self._keep(f"up_{number}", getattr(quantizer, f"up_{number}"))
            layer = quantizer.phi_of(number)
            if layer is not None:
                self._keep(f"weight_{number}", layer.weight)
                self._keep(f"bias_{number}", layer.bias)  # pyright: ignore[reportArgumentType]

    def start(self, num_rows: int) -> Tensor:
        """The sum before the first scale: zeros [B, M, C]."""
        return self.vectors.new_zeros(num_rows, self.counts[-1], self.dim)

    def add(self, total: Tensor, number: int, codes: Tensor) -> Tensor:
        """The sum [B, M, C] with a scale's codes [B, n] added."""
        with torch.autocast(total.device.type, enabled=False):
            small = F.embedding(codes, self.vectors[min(number, len(self.vectors) - 1)])
            large = getattr(self, f"up_{number}") @ small
            if hasattr(self, f"weight_{number}"):
                weight, bias = getattr(self, f"weight_{number}"), getattr(self, f"bias_{number}")
                large = blend(large, weight, bias, self.sizes[-1])
            return total + large

    def at(self, total: Tensor, number: int) -> Tensor:
        """Downsample a sum [B, M, C] to a scale's grid by area mean: [B, n, C]."""
        with torch.autocast(total.device.type, enabled=False):
            return getattr(self, f"down_{number}") @ total

    def _apply(self, fn, recurse=True):
        """Ignore casts to half precision: sums stay float32 whatever dtype the model is cast to."""
        moved = fn(self.vectors.new_empty(0))
        half = moved.dtype in (torch.float16, torch.bfloat16)
        return super()._apply((lambda x: x.to(moved.device)) if half else fn, recurse)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.detach().clone().float(), persistent=False)
