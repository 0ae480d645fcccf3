"""A generation step on a GPU by the kernels of triton_kernels.py: five per block, three more for cross-attention.

The result equals the blocks op by op, up to rounding: norms, queries and sums stay float32 within a kernel, and what
passes between kernels is rounded to the dtype of the activations.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.mask_types import PackedSequences
from ..kv_cache.base import Cache, CacheSlot
from ..layers.attention_layers import CrossAttention, Memory, SelfAttention
from ..layers.feed_forward import GELU, SwiGLU
from ..layers.norm import RMSNorm
from ..layers.transformer import Block, Transformer
from ..ops.linear import Linear
from .weight_versions import is_altered, structure_of

MAX_ROWS = 4
"""More rows use library matrix products, or with packed weights the plain blocks."""
NUMBERS = (torch.float32, torch.float16, torch.bfloat16)
KINDS = {torch.int8: 1, torch.uint8: 2}
"""Codes that tell kernels how weights are packed, by dtype; 0: floating point."""
PROGRAMS = 512
"""Minimum number of programs of a kernel, if there are enough outputs: about four per multiprocessor of a large GPU."""
MAX_OUTPUTS, MAX_NUMBERS = 4, 8192
"""Largest number of outputs and weights per program: they fit in registers, and all programs can run at once."""
PLACES = 256
"""Keys that an attention program processes together."""


def supports_device(x: Tensor) -> bool:
    """Whether the kernels support the device of this tensor."""
    return x.is_cuda and not why_not(x.device)


@functools.cache
def why_not(device: torch.device) -> str:
    """Why these kernels cannot be used on a CUDA device; "" if they can. Tried once, with a warning on failure."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    x = torch.arange(16.0, device=device)[None]
    try:
        same = project(x, Matrix(torch.eye(16, device=device), None, None, 16, 16)).equal(x)
        reason = "" if same else "a test product was wrong"
    except Exception as error:  # no C compiler for its launchers, an old driver: it can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason:
        warnings.warn(f"decoding without Triton kernels: {reason}", stacklevel=2)
    return reason


@functools.cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel may start before the previous one has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@dataclass(frozen=True)
class Matrix:
    """A linear layer: y = x @ weight.T + bias."""

    numbers: Tensor
    """[N, D], or bytes [N, D / 2] of two numbers each (`PackedLinear`)."""
    scales: Tensor | None
    bias: Tensor | None
    outputs: int
    inputs: int
    group: int = 0

    @property
    def kind(self) -> int:
        """Its code in the kernels."""
        return KINDS.get(self.numbers.dtype, 0)


def matrix_of(layer: nn.Module) -> Matrix | None:
    """A layer as the kernels read it; None if not supported."""
    if type(layer) in (nn.Linear, Linear):
        weight = layer.weight.detach()  # type: ignore
        fits = weight.is_contiguous() and weight.dtype in NUMBERS
        return Matrix(weight, None, layer.bias, *weight.shape) if fits else None  # type: ignore
    if getattr(layer, "tiles", True):
        return None
    packed: Any = layer
    if packed.kind == "int4" and packed.in_features % 2:
        return None
    sizes = packed.out_features, packed.in_features, packed.group
    return Matrix(packed.numbers, packed.scales, packed.bias, *sizes)


@dataclass(frozen=True)
class Norm:
    """A norm before a product."""

    kind: int
    """0 none, 1 rms, 2 layer."""
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


def norm_of(norm: nn.Module | None) -> Norm | None:
    """A norm as the kernels read it; None if not supported."""
    if norm is None:
        return Norm(0)
    if type(norm) is RMSNorm:
        return Norm(1, norm.weight.detach(), None, norm.eps)
    if type(norm) is nn.LayerNorm:
        return Norm(2, norm.weight.detach(), norm.bias.detach(), norm.eps)
    return None


def project(
    x: Tensor, matrix: Matrix, norm: Norm | None = None, act: int = 0, residual: Tensor | None = None
) -> Tensor:
    """act(norm(x) @ weight.T + bias) + residual: x [R, D] -> [R, N], or [R, N / 2] if act is 2 (SwiGLU); 1 is GELU.

    x and the residual are contiguous. More than MAX_ROWS rows: only with unpacked weights.
    """
    from .triton_kernels import project_kernel

    norm = norm or Norm(0)
    if len(x) > MAX_ROWS:
        return _project_many(x, matrix, norm, act, residual)
    R, D, N = len(x), matrix.inputs, matrix.outputs
    width = _power(D // 2 if matrix.kind == 2 else D)
    outputs = N // 2 if act == 2 else N
    block = max(1, min(MAX_OUTPUTS, MAX_NUMBERS // width, _power(outputs // PROGRAMS)))
    y = x.new_empty(R, outputs)
    early = starts_early(x.device)
    kernel: Any = project_kernel
    kernel[(-(-outputs // block),)](
        x, y, matrix.numbers, _or(matrix.scales, x), _or(matrix.bias, x), _or(norm.weight, x), _or(norm.bias, x),
        _or(residual, x), norm.eps,
        R=R, N=N, D=D, NORM=norm.kind, KIND=matrix.kind, GROUP=matrix.group or 1, HAS_BIAS=matrix.bias is not None,
        ACT=act, HAS_RESIDUAL=residual is not None, INPUTS=width, OUTPUTS=block, EARLY=early,
        num_warps=8 if block * width >= 8192 else 4, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return y


def _project_many(x: Tensor, matrix: Matrix, norm: Norm, act: int, residual: Tensor | None) -> Tensor:
    """`project` by library matrix products, for many rows."""
    assert not matrix.kind
    if norm.kind == 2:
        x = F.layer_norm(x, x.shape[1:], norm.weight, norm.bias, norm.eps)
    elif norm.weight is not None:
        x = F.rms_norm(x.float(), x.shape[1:], None, norm.eps).mul(norm.weight).to(x.dtype)
    bias = None if matrix.bias is None else matrix.bias.to(x.dtype)
    if residual is not None and bias is None and not act:
        return torch.addmm(residual, x, matrix.numbers.t())
    y = F.linear(x, matrix.numbers, bias)
    if act == 1:
        y = F.gelu(y)
    elif act == 2:
        first, second = y.chunk(2, dim=1)
        y = F.silu(first) * second
    return y if residual is None else y + residual


@dataclass(frozen=True)
class Heads:
    """The head settings of an attention layer."""

    heads: int
    groups: int
    width: int
    query_norm: Norm
    key_norm: Norm


def attend(
    queries: Tensor,
    heads: Heads,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    slot: tuple[Tensor, Tensor] | None = None,
    angles: Tensor | None = None,
) -> Tensor:
    """Attention of one query per row.

    Args:
        queries: [B, H E], or with a slot [B, (H + 2 G) E] of queries, keys and values.
        keys, values: [B, G, M, E]; contiguous in the last dimension.
        mask: bool [B or 1, 1, 1, M]; None: all slots.
        slot: (index, length), long [1] both: the slot of the new key and value, and the number of positions before
            them; slots from length + 1 on are masked.
        angles: float32 [B or 1, E] cosines and sines of the pairs; None: no rotation.
    Returns:
        [B, H E].
    """
    from .triton_kernels import attend_kernel

    B, H, G, E = len(queries), heads.heads, heads.groups, heads.width
    y = queries.new_empty(B, H * E)
    early = starts_early(queries.device)
    index, length = (queries, queries) if slot is None else slot
    flags = None if mask is None else mask.view(torch.uint8)
    kernel: Any = attend_kernel
    kernel[(B, H)](
        queries, y, keys, values, index, length, _or(flags, queries), _or(angles, queries),
        _or(heads.query_norm.weight, queries), _or(heads.key_norm.weight, queries),
        *keys.stride()[:3], *values.stride()[:3], 0 if flags is None or len(flags) == 1 else flags.stride(0),
        0 if angles is None or len(angles) == 1 else E, heads.query_norm.eps, heads.key_norm.eps, keys.shape[2],
        H=H, G=G, E=E, SELF=slot is not None, HAS_MASK=mask is not None, NORMED=bool(heads.query_norm.kind),
        ROTATED=angles is not None, PLACES=min(PLACES, max(16, _power(keys.shape[2]))), EARLY=early,
        num_warps=8 if keys.shape[2] > 64 else 4, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return y


@dataclass(frozen=True)
class TritonBlock:
    """A block as the kernels read it."""

    attention_norm: Norm
    qkv: Matrix
    heads: Heads
    out: Matrix
    cross_norm: Norm | None
    cross_query: Matrix | None
    cross_heads: Heads | None
    cross_out: Matrix | None
    ffn_norm: Norm
    up: Matrix
    down: Matrix
    act: int

    @property
    def packed(self) -> bool:
        """Whether any weights are packed."""
        layers = self.qkv, self.out, self.cross_query, self.cross_out, self.up, self.down
        return any(layer is not None and layer.kind for layer in layers)

    def __call__(
        self,
        x: Tensor,
        angles: Tensor | None,
        slot: CacheSlot,
        at: tuple[Tensor, Tensor],
        layer: int,
        memory: Memory | None,
    ) -> Tensor:
        """One step: x [B, D] -> [B, D]."""
        heads = project(x, self.qkv, self.attention_norm)
        mixed = attend(heads, self.heads, slot.keys[layer], slot.values[layer], slot.mask, at, angles)
        x = project(mixed, self.out, residual=x)
        if memory is not None and self.cross_query is not None and self.cross_heads is not None:
            assert self.cross_out is not None and not isinstance(memory.mask, PackedSequences)
            queries = project(x, self.cross_query, self.cross_norm)
            mixed = attend(queries, self.cross_heads, memory.keys[layer], memory.values[layer], memory.mask)
            x = project(mixed, self.cross_out, residual=x)
        hidden = project(x, self.up, self.ffn_norm, act=self.act)
        return project(hidden, self.down, residual=x)


class TritonStack:
    """Fused steps of all blocks and the final norm.

    Args:
        transformer: referenced, not copied.
    """

    def __init__(self, transformer: Transformer):
        self.transformer = transformer
        self._blocks: list[TritonBlock] | None = None
        self._made_for: tuple[int, ...] = ()
        self._structure: tuple = ()

    def __getstate__(self) -> dict:
        """Omit the tensors: a copy has its own."""
        return {"transformer": self.transformer, "_blocks": None, "_made_for": (), "_structure": ()}

    def refresh(self, transformer: Transformer) -> None:
        """Inspect the blocks again if modules, settings or hooks have changed; `blocks` detects moved weights, and
        weights changed in place need no update."""
        structure = structure_of(transformer)
        if structure != self._structure:
            self._structure, self._made_for = structure, ()

    @property
    def blocks(self) -> list[TritonBlock] | None:
        """The blocks as the kernels read them; None if one has parts that they do not support. Rebuilt when weights
        move."""
        blocks: Any = self.transformer.blocks
        where = tuple(tensor.data_ptr() for block in blocks for tensor in (*block.parameters(), *block.buffers()))
        if self._made_for != where:
            found = [triton_block(block) for block in blocks]
            self._blocks, self._made_for = (None if None in found else found), where  # type: ignore[assignment]
        return self._blocks

    def supports(self, x: Tensor, table: Tensor | None, cache: Cache, memory: Memory | None) -> bool:
        """Whether this step can use the fast path."""
        return (
            x.shape[1] == 1
            and x.dtype in NUMBERS
            and supports_device(x)
            and cache.rotated_keys
            and (table is None or table.dtype == torch.complex64)
            and (memory is None or (memory.keys[0].dtype == x.dtype and not isinstance(memory.mask, PackedSequences)))
            and not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
            and self.blocks is not None
            and (x.shape[0] <= MAX_ROWS or not any(block.packed for block in self.blocks))
        )

    def __call__(self, x: Tensor, table: Tensor | None, cache: Cache, memory: Memory | None) -> Tensor | None:
        """Like `cpu_fused_block.FusedStack`."""
        slot = cache.slot() if self.supports(x, table, cache, memory) else None
        if slot is None or slot.keys.dtype != x.dtype:
            return None
        y = x[:, 0].contiguous()
        index, length = (at if isinstance(at, Tensor) else _number(at, x.device) for at in (slot.index, slot.length))
        angles = None if table is None else torch.view_as_real(table).flatten(1).contiguous()
        for layer, block in enumerate(self.blocks or []):
            y = block(y, angles, slot, (index.reshape(1), length.reshape(1)), layer, memory)
        return self.transformer.norm(y).unsqueeze(1)


def triton_block(block: Block) -> TritonBlock | None:
    """A block as the kernels read it; None if not supported."""
    attention, cross, ffn = block.attention, block.cross, block.ffn
    if type(ffn) not in (SwiGLU, GELU) or attention.head_width & (attention.head_width - 1):
        return None
    if (
        type(block) is not Block
        or type(attention) is not SelfAttention
        or type(cross) not in (CrossAttention, NoneType)
    ):
        return None
    if any(map(is_altered, block.modules())):
        return None
    up = ffn.gate_up if isinstance(ffn, SwiGLU) else ffn.up
    act = 2 if isinstance(ffn, SwiGLU) else 1
    parts = {
        "attention_norm": norm_of(block.attention_norm),
        "qkv": matrix_of(attention.qkv),
        "heads": _heads(attention),
        "out": matrix_of(attention.out),
        "ffn_norm": norm_of(block.ffn_norm),
        "up": matrix_of(up),  # type: ignore
        "down": matrix_of(ffn.down),  # type: ignore
    }
    crossing: dict[str, Any] = dict.fromkeys(("cross_norm", "cross_query", "cross_heads", "cross_out"))
    if cross is not None:
        made = norm_of(block.cross_norm), matrix_of(cross.query), _heads(cross), matrix_of(cross.out)
        crossing = dict(zip(crossing, made, strict=True))
        parts |= crossing
    if any(part is None for part in parts.values()):
        return None
    return TritonBlock(**{**crossing, **parts}, act=act)  # type: ignore[arg-type]


def _heads(attention: Any) -> Heads | None:
    norms = norm_of(attention.query_norm), norm_of(attention.key_norm)
    if any(norm is None or norm.kind == 2 for norm in norms):
        return None
    return Heads(attention.heads, attention.kv_heads, attention.head_width, *norms)  # type: ignore[arg-type]


def _number(number: int, device: torch.device) -> Tensor:
    return torch.full((1,), number, dtype=torch.long, device=device)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A placeholder tensor for a kernel argument that is not read."""
    return other if tensor is None else tensor


def _power(number: int) -> int:
    """The smallest power of two that is at least as large."""
    return 1 << max(0, number - 1).bit_length()
