"""Masked ConvNeXt blocks over time: the backbone of the `spectrum` audio encoder and decoder.

Only the depthwise convolutions mix over time, and each multiplies its input by the mask first. Frames outside the
signal are thus exactly zero in every layer, whether they are missing, batch padding or outside a window, so the output
for an example does not depend on what surrounds it.

Source: ConvNeXt, arXiv:2201.03545; in vocoders: Vocos, arXiv:2306.00814, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNeXtBlock(nn.Module):
    """x + scale * MLP(norm(depthwise_conv(x))), channel-last.

    With kernel size k, output frame t depends on input frames t - (k-1)/2 .. t + (k-1)/2; causal: t - (k-1) .. t.
    """

    def __init__(self, width: int, kernel: int, causal: bool, expansion: int = 3, layer_scale: float = 0.1):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} is even; give an odd number of frames")
        self.padding = (kernel - 1, 0) if causal else ((kernel - 1) // 2, (kernel - 1) // 2)
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, width]; mask: [B, T], True for valid frames. Returns [B, T, width]."""
        h = F.pad((x * mask[..., None]).transpose(1, 2), self.padding)
        return self._add_mlp(x, self.depthwise(h).transpose(1, 2))

    def extend(self, x: Tensor, mask: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """`forward`, for a causal block after earlier frames: `past` [B, kernel - 1, width] is what its convolution
        keeps of them, None at the first. Also returns what it keeps for later frames."""
        new, back = x * mask[..., None], self.padding[0]
        if past is None:
            return self.forward(x, mask), F.pad(new, (0, 0, back, 0))[:, new.shape[1] :]
        h = torch.cat([past, new], dim=1)
        # For a few frames torch's convolution takes seven times as long as this sum over taps.
        taps = h.unfold(1, x.shape[1], 1).transpose(2, 3) * self.depthwise.weight[:, 0].T[:, None]
        mixed = taps.sum(dim=1) + self.depthwise.bias  # type: ignore[operator]
        return self._add_mlp(x, mixed), h[:, new.shape[1] :]

    def _add_mlp(self, x: Tensor, mixed: Tensor) -> Tensor:
        return x + self.scale * self.narrow(F.gelu(self.widen(self.norm(mixed))))


class ConvNeXtStack(nn.Module):
    """Linear in, `layers` ConvNeXt blocks, norm, linear out; channel-last [B, T, inputs] -> [B, T, outputs]."""

    def __init__(self, inputs: int, width: int, outputs: int, layers: int, kernel: int, causal: bool):
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.enter_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, kernel, causal, layer_scale=1.0 / layers) for _ in range(layers)
        )
        self.leave_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)
        reach = layers * (kernel - 1)
        self.reach_back, self.reach_ahead = (reach, 0) if causal else (reach // 2, reach // 2)
        """Number of frames before and after t that output frame t depends on."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, inputs]; mask: [B, T] bool. Returns [B, T, outputs]; values at masked frames are meaningless."""
        h = self.enter_norm(self.enter(x))
        for block in self.blocks:
            h = block(h, mask)
        return self.leave(self.leave_norm(h))

    def extend(self, x: Tensor, mask: Tensor, pasts: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """`forward`, for a causal stack after earlier frames: `pasts` is what each block keeps of them, None at the
        first. Also returns what they keep for later frames. Masked frames must come last."""
        h, after = self.enter_norm(self.enter(x)), []
        for number, block in enumerate(self.blocks):
            h, kept = block.extend(h, mask, None if pasts is None else pasts[number])  # type: ignore[operator]
            after.append(kept)
        return self.leave(self.leave_norm(h)), after
