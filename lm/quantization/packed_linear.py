"""Weight-only quantization: linear layers whose weights are stored as bfloat16, int8 or int4 and read in that form.

    kind       bits a weight   weight =
    float32    32              the number
    bfloat16   16              the number
    int8       8               number * scale, one scale per output
    int4       4.5             number * scale + offset, per 64 inputs of an output

Activations are not quantized, nor are embeddings, norms and the layers that read the conditions. Scales of int4 are
bfloat16 and minimize the squared error over a few clippings of each group's range.
Sources: per-channel absolute-maximum int8 as in LLM.int8() (arXiv:2208.07339) without its outliers; grouped int4 with a
search over clippings as in AWQ's clipping (arXiv:2306.00978), on the weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.mask_types import AttentionMask
from ..attention.registry import auto, sdpa
from ..heads.parallel import ParallelHead
from ..heads.text_stream import StreamHead
from ..kernels import cpu_gemv, triton_fused_block
from ..kernels.cpu_fused_block import fuse, fuse_all
from ..kernels.cpu_gemv import gemv_linear
from ..kernels.huge_pages import on_huge_pages
from ..layers.attention_layers import CrossAttention, SelfAttention
from ..layers.transformer import Transformer
from ..ops.linear import Linear, linear

if TYPE_CHECKING:
    from ..models.transformer_lm import TransformerLM

WeightsName = Literal["float32", "bfloat16", "int8", "int4"]

GROUP = 64
"""Inputs of an output that share scale and offset in int4."""
CLIPPINGS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Fractions of a group's range covered by its 16 numbers; weights outside are clipped."""
SEARCH_BLOCK = 1 << 16
"""Number of weights searched together."""
MAX_GEMV_ROWS, MAX_TILE_ROWS = 256, 1024
"""Up to this many rows cpu_gemv.c is faster than dequantizing the weights; the second where it uses AMX."""


@dataclass(frozen=True)
class QuantizedWeight:
    """Quantized numbers with their scales and offsets."""

    numbers: Tensor
    """[N, D]: int8 -127..127, or uint8 0..15 for int4."""
    scales: Tensor
    """[N, groups]: float32 for int8 (one group), bfloat16 for int4."""
    offsets: Tensor | None
    """[N, groups] bfloat16; None: 0."""
    group: int
    """Inputs per group."""

    def weights(self) -> Tensor:
        """The dequantized weights [N, D], float32."""
        D = self.numbers.shape[1]

        def spread(values: Tensor) -> Tensor:
            return values.float().repeat_interleave(self.group, dim=1)[:, :D]

        scaled = self.numbers.float() * spread(self.scales)
        return scaled if self.offsets is None else scaled + spread(self.offsets)


def quantize_int8(weight: Tensor) -> QuantizedWeight:
    """Quantize [N, D] to 8 bits: the largest weight of an output becomes 127."""
    weight = weight.float()
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    numbers = (weight / scales).round().clamp(-127, 127).to(torch.int8)
    return QuantizedWeight(numbers, scales, None, weight.shape[1])


def quantize_int4(weight: Tensor, group: int = GROUP) -> QuantizedWeight:
    """Quantize [N, D] to 4 bits per group of inputs; the last group may be shorter.

    Raises:
        ValueError: a group size other than 32, 64 or 128.
    """
    if group not in (32, 64, 128):
        raise ValueError(f"group must be 32, 64 or 128, found {group}")
    # Some outputs at a time: the data of the search stays in the CPU cache, which is five times as fast.
    parts = [_quantize_rows(rows, group) for rows in weight.split(max(1, SEARCH_BLOCK // weight.shape[1]))]
    numbers, scales, offsets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return QuantizedWeight(numbers, scales, offsets, group)


def _quantize_rows(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, scales and offsets, as in `QuantizedWeight`."""
    N, D = weight.shape
    # Missing inputs of the last group repeat a real one, which preserves its range, and are excluded from its error.
    padded = torch.cat([weight.float(), weight[:, -1:].float().expand(N, -D % group)], dim=1).unflatten(1, (-1, group))
    real = (torch.arange(padded.shape[1] * group, device=weight.device) < D).view(-1, group)
    low, high = padded.amin(dim=2, keepdim=True), padded.amax(dim=2, keepdim=True)
    best = torch.full_like(low, float("inf"))
    scales, offsets = torch.ones_like(low), torch.zeros_like(low)
    for kept in CLIPPINGS:
        scale = ((high - low) * kept / 15).clamp(min=1e-30).bfloat16().float()
        offset = ((high + low) / 2 - (high - low) * kept / 2).bfloat16().float()
        error = _numbers(padded, scale, offset).mul_(scale).add_(offset).sub_(padded).square_() * real
        error = error.sum(dim=2, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scales, offsets = torch.where(better, scale, scales), torch.where(better, offset, offsets)
    numbers = _numbers(padded, scales, offsets).to(torch.uint8).flatten(1)[:, :D].contiguous()
    return numbers, scales.squeeze(2).bfloat16(), offsets.squeeze(2).bfloat16()


def _numbers(weight: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return weight.sub(offset).div_(scale).round_().clamp_(0, 15)


class PackedLinear(nn.Module):
    """A linear layer for inference. A few rows use cpu_gemv.c if available; many use dequantized weights.

    On the CPU with a compiler, numbers are stored in tiles (`cpu_gemv.tiled`), else as a matrix.
    """

    numbers: Tensor
    scales: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: WeightsName, group: int = GROUP):
        super().__init__()
        self.kind, self.group = kind, group if kind == "int4" else cpu_gemv.INPUTS
        self.out_features, self.in_features = weight.shape
        self.tiles = weight.device.type == "cpu" and not cpu_gemv.why_not()
        weight, scales = weight.detach(), None
        if kind == "int4":
            quantized = quantize_int4(weight, group)
            assert quantized.offsets is not None
            scales = torch.stack([quantized.scales, quantized.offsets])  # [2, N, groups]
            if self.tiles:
                numbers = cpu_gemv.tiled_int4(quantized.numbers)
                groups = numbers.shape[1] * cpu_gemv.INT4_INPUTS // group
                scales = F.pad(scales, (0, groups - scales.shape[2], 0, -self.out_features % cpu_gemv.OUTPUTS))
                scales = scales.unflatten(1, (-1, cpu_gemv.OUTPUTS)).permute(1, 3, 0, 2).contiguous()
            else:
                first, second = F.pad(quantized.numbers, (0, self.in_features % 2)).chunk(2, dim=1)
                numbers = first | (second << 4)
        elif kind == "int8":
            quantized = quantize_int8(weight)
            numbers, scales = quantized.numbers, quantized.scales.squeeze(1)
        else:
            numbers = weight.to(getattr(torch, kind))
        if self.tiles:
            numbers = on_huge_pages(numbers) if kind == "int4" else cpu_gemv.stored_tiles(numbers)
        self.register_buffer("numbers", numbers.contiguous(), persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)
        self._described: cpu_gemv.Matrix | None = None

    def _apply(self, fn, recurse=True):
        """Change the device only: numbers and scales keep their dtypes."""
        moved = fn(torch.empty(0, device=self.numbers.device)).device
        if moved != self.numbers.device and self.tiles:
            raise ValueError("packed weights were prepared for the CPU; load the model on the device it will run on")
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(moved)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[*, D] -> [*, N] in x's dtype."""
        rows = x.numel() // self.in_features
        if self.tiles and x.dtype in (torch.float32, torch.bfloat16) and self._takes(rows, x.dtype):
            if torch.compiler.is_compiling():
                return gemv_linear(x, self.numbers, self.scales, self.bias, self.kind, self.out_features, self.group)
            return cpu_gemv.multiply(x, self.described)
        if rows <= triton_fused_block.MAX_ROWS and self._on_gpu(x):
            matrix = triton_fused_block.matrix_of(self)
            if matrix is not None:
                flat = x.reshape(rows, self.in_features)
                return triton_fused_block.project(flat, matrix).view(*x.shape[:-1], self.out_features)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.dequantized(x.dtype), bias)

    def _takes(self, rows: int, dtype: torch.dtype) -> bool:
        """Whether the kernels are faster for so many rows."""
        if rows <= MAX_GEMV_ROWS or rows > MAX_TILE_ROWS or torch.compiler.is_compiling():
            return rows <= MAX_GEMV_ROWS
        return cpu_gemv.multiplies_tiles(self.described, dtype)

    def _on_gpu(self, x: Tensor) -> bool:
        """Whether a product with few rows can use lm/kernels/triton_kernels.py."""
        here = triton_fused_block.supports_device(x)
        plain = not torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type)
        return here and plain and x.dtype in triton_fused_block.NUMBERS

    @property
    def described(self) -> cpu_gemv.Matrix:
        """The layer's description for the kernels, if the numbers are in tiles."""
        described, pointers = self._described, self.pointers
        if described is None or (described.weight, described.scales, described.bias) != pointers:
            self._described = described = cpu_gemv.matrix_of(
                self.numbers, self.scales, self.bias, self.kind, self.in_features, self.out_features, self.group
            )
        return described

    @property
    def pointers(self) -> tuple[int | None, ...]:
        """Addresses of numbers, scales and bias."""
        return tuple(None if x is None else x.data_ptr() for x in (self.numbers, self.scales, self.bias))

    def __getstate__(self) -> dict:
        """Omit the addresses: a copy has its own."""
        return {**super().__getstate__(), "_described": None}  # type: ignore[misc]

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights [N, D]."""
        numbers, N, D = self.numbers, self.out_features, self.in_features
        if self.kind == "int4":
            return self._dequantized_int4().to(dtype)
        if self.tiles:
            numbers = cpu_gemv.untiled(numbers, N, D)
        return numbers.to(dtype) if self.scales is None else (numbers.float() * self.scales[:, None]).to(dtype)

    def _dequantized_int4(self) -> Tensor:
        numbers, scales, N, D = self.numbers, self.scales, self.out_features, self.in_features
        assert scales is not None
        if self.tiles:
            numbers = cpu_gemv.untiled_int4(numbers, N, D)
            scales = scales.permute(2, 0, 3, 1).flatten(1, 2)[:, :N]
        else:
            numbers = torch.cat([numbers & 15, numbers >> 4], dim=1)[:, :D]
        scale, offset = scales.float().repeat_interleave(self.group, dim=2)[..., :D]
        return numbers.float() * scale + offset

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        raise ValueError(
            "packed weights cannot be saved; save the model with its original weights (load it without weights=)"
        )

    @property
    def num_packed(self) -> int:
        """Number of parameters that are now packed."""
        return self.out_features * self.in_features

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}"


def pack_(lm: TransformerLM, weights: WeightsName) -> TransformerLM:
    """Replace the linear layers of a model's backbone and head by packed ones, one at a time, in place; for inference.

    Attention of single steps on the CPU uses cpu_gemv.c as well.

    Raises:
        ValueError: an unknown name.
    """
    check_weights(weights)
    _pack_layers(lm.head, weights)
    pack_transformer_(lm.transformer, weights)
    if lm.device.type == "cpu":  # Triton has not been tried with a head's transformer
        for part in transformers_of(lm.head):
            pack_transformer_(part, weights)
    head = codes_head(lm.head)
    if isinstance(head, ParallelHead) and head.weight is not None:
        head.packed = PackedLinear(head.weight, head.offset, weights)
        head.weight = None
    return lm.eval().requires_grad_(False)


def pack_transformer_(transformer: Transformer, weights: WeightsName) -> Transformer:
    """`pack_` for a backbone alone."""
    _pack_layers(transformer, weights)
    for module in transformer.modules():
        if isinstance(module, SelfAttention | CrossAttention) and module.attend in (sdpa, auto):
            module.attend = sdpa_or_gemv
    for block in transformer.blocks:
        block.fused = fuse(block)  # type: ignore[arg-type, assignment]
    transformer.fused = fuse_all(transformer)
    return transformer.eval().requires_grad_(False)


def codes_head(head: nn.Module) -> nn.Module:
    """The head that predicts the codes: of a text stream, that of the codebooks."""
    return head.audio if isinstance(head, StreamHead) else head


def transformers_of(part: nn.Module) -> list[Transformer]:
    """All transformers in a module, for instance in a head."""
    return [module for module in part.modules() if isinstance(module, Transformer)]


def _pack_layers(part: nn.Module, weights: WeightsName) -> None:
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.Linear, Linear):  # a subclass may do more than multiply
                setattr(module, name, PackedLinear(child.weight, child.bias, weights))  # type: ignore


def sdpa_or_gemv(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, causal: bool) -> Tensor:
    """Implements `registry.Attend`. torch takes nine times as long for one bfloat16 query on the CPU."""
    if cpu_gemv.can_attend(queries, keys, values, mask):
        return cpu_gemv.gemv_attention(queries, keys, values, mask)  # type: ignore[arg-type]
    return sdpa(queries, keys, values, mask, causal)


def check_weights(name: str) -> None:
    """Raise ValueError unless it is a known kind of packed weights."""
    if name not in cpu_gemv.KINDS:
        raise ValueError(f"weights '{name}' are unknown; choose {', '.join(cpu_gemv.KINDS)}")
