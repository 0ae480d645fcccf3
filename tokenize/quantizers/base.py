"""What every quantizer is: the base class, its result, and codes packed into single integers.

A quantizer turns latents [*, D] (channels last) into codes [*, Q] and back.
Inside, B are samples and M the places of a sample: latents [B, M, D], or [N, D] with N = B * M.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .codebook import Codebook, update_codebooks

MAX_PACKED = 1 << 62


@dataclass(frozen=True)
class Quantized:
    """A quantizer's answer. Where the mask is False: values 0, codes -1, losses 0."""

    values: Tensor
    """[*, D] float32, the sum of the code vectors; its gradient with respect to x is exactly 1 (unless a part of the
    tree, such as `rotation`, says otherwise)."""
    codes: Tensor
    """[*, Q] long; -1 where a level was dropped."""
    losses: dict[str, Tensor]
    """Name -> [*] float32, weighted already, one number a token; add them to the training loss."""
    stats: dict[str, Tensor]
    """Name -> [Q] float32 over this batch: "perplexity", "usage" (share of the codes that occur)."""


@dataclass(frozen=True)
class QuantizerOutput:
    """One quantizer's share of a `QuantizedWeight`, before the straight-through gradient is added around the whole."""

    vectors: Tensor
    """[B, M, D] float32, gradients reach the quantizer's own parameters only."""
    codes: Tensor
    """[B, M, Q] long."""
    losses: dict[str, Tensor]
    """Name -> [B, M]."""


class Quantizer(nn.Module):
    """Base of leaves and combinators; a new one defines `quantize`, `search`, `lookup` and `vectors`.

    It is made from (config, dim, depth, where): `depth` is its level in a residual, `where` its path in the tree, which
    begins every error about it. A combinator is given one more argument, `make` of the quantizers that it holds.
    """

    span = 1
    """Neighbouring places that share a code; 0: all places of a sample hang together."""

    def __init__(self, dim: int, books: Sequence[int | Quantizer]):
        """`books`: the number of codes of each codebook, or the part whose codebooks follow here."""
        super().__init__()
        self.dim = dim
        self._books = tuple(books)  # a tuple: parts are registered by those that hold them
        self.frozen = False

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes of each of the Q codebooks. What is fitted may change them, and loading what was fitted."""
        sizes: list[int] = []
        for book in self._books:
            sizes += [book] if isinstance(book, int) else book.cardinalities
        return tuple(sizes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents; while training, also collect what `update` needs.

        Args:
            x: latents [*, D], any float dtype; the first axis counts the samples of the batch.
            mask: [*] bool, True where valid; the rest changes no code, loss, gradient or statistic.
        Raises:
            ValueError: x or mask has another shape.
        """
        self._check(x)
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(
                f"the mask is {list(mask.shape)}, the latents are {list(x.shape)}; pass a mask {list(x.shape[:-1])}"
            )
        shape = x.shape[:-1]
        with float32_only():
            flat = _by_sample(x.float())
            valid = None
            if mask is not None:
                valid = _by_sample(mask[..., None])[..., 0]
                flat = torch.where(valid[..., None], flat, 0.0)
            parts = self.quantize(flat, valid)
            return Quantized(
                values=self.estimate(flat, parts).reshape(*shape, self.dim),
                codes=parts.codes.reshape(*shape, len(self.cardinalities)),
                losses={name: loss.reshape(shape) for name, loss in parts.losses.items()},
                stats=usage_stats(parts.codes.flatten(0, -2), self.cardinalities),
            )

    @torch.no_grad()
    def encode(self, x: Tensor, levels: int | None = None, mask: Tensor | None = None) -> Tensor:
        """Latents [*, D] -> codes [*, Q] long, as in evaluation.

        With `levels` fewer than Q, the codes of later levels are -1. Outside the mask [*] they are -1 too; it is needed
        only where places share codes (`span`).
        """
        self._check(x)
        if levels is not None and not 1 <= levels <= len(self.cardinalities):
            raise ValueError(f"levels must be between 1 and {len(self.cardinalities)}, found {levels}")
        with float32_only():
            flat, valid = _by_sample(x.float()), None
            if mask is not None:
                valid = _by_sample(mask[..., None])[..., 0]
                flat = torch.where(valid[..., None], flat, 0.0)
            codes = self.search(flat, valid)
            if valid is not None:
                codes = codes.masked_fill(~valid[..., None], -1)
            if levels is not None:
                codes = torch.cat([codes[..., :levels], torch.full_like(codes[..., levels:], -1)], dim=-1)
            return codes.reshape(*x.shape[:-1], len(self.cardinalities))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [*, Q] long -> values [*, D] float32; a code of -1 adds nothing."""
        if codes.shape[-1] != len(self.cardinalities):
            raise ValueError(
                f"codes are {list(codes.shape)}, but a token has {len(self.cardinalities)} codes, on the last axis"
            )
        with float32_only():
            values = self.lookup(_by_sample(codes))
            return values.reshape(*codes.shape[:-1], self.dim)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """Latents [B, M, D] float32, 0 outside the mask [B, M] (None: all valid) -> Parts, 0 and -1 there too."""
        raise NotImplementedError

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Latents [B, M, D] float32 -> codes [B, M, Q], as in evaluation; what it gives outside the mask is free."""
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes [B, M, Q] -> vectors [B, M, D], with gradients to the quantizer's parameters."""
        raise NotImplementedError

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What codes [B, M, Q] of whole samples take when one that places share is written once, whatever `decode` is
        given: how many codes, and their bits at a fixed length each, both [B] float64. A code of -1 takes nothing."""
        there = (codes >= 0).sum(dim=1).double()
        lengths = [math.log2(size) for size in self.cardinalities]
        return there.sum(dim=-1), (there * there.new_tensor(lengths)).sum(dim=-1)

    def estimate(self, x: Tensor, parts: QuantizerOutput) -> Tensor:
        """The values, which equal parts.vectors and lead a gradient to x [B, M, D]; asked of the root only."""
        # q + (x - x.detach()), not x + (q - x).detach(): the value is then q to the last bit, in every dtype.
        return parts.vectors + (x - x.detach()) if x.requires_grad else parts.vectors

    def vectors(self) -> Tensor:
        """Code vectors [Q, V, D] float32 (V: the largest cardinality, zeros beyond a smaller one).

        `decode(codes)` is the sum over q of vectors[q, codes[q]], where every place has its own codes (`span` > 0).
        """
        raise NotImplementedError

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set what is not trained but fitted (kmeans, structural, scalar with quantile bins) from latents [*, D].

        Raises ValueError where nothing in the tree is fitted.
        """
        self._check(x)
        with float32_only():
            if not self.fit_parts(_by_sample(x.float())):
                raise ValueError(f"nothing in this quantizer ({type(self).__name__}) is fitted; train it")

    def fit_parts(self, x: Tensor) -> bool:
        """Fit from latents [B, M, D]; whether there was anything to fit."""
        return False

    def update(self) -> None:
        """Move the codebooks, once per optimizer step: k-means start, moving averages, revival of dead codes.

        Forward passes since the last call only collected. Every process must call it: there is one all-reduce, whatever
        the masks. Nothing happens in eval mode or when frozen, nor to parts that are.
        """
        if self.training:
            update_codebooks([module for module in self._codebooks() if module.training])

    def forget(self) -> None:
        """Drop what forward passes have collected since the last `update`."""
        for module in self._codebooks():
            module.forget()

    def _codebooks(self) -> list[Codebook]:
        return [module for module in self.modules() if isinstance(module, Codebook)]

    def freeze(self) -> None:
        """Eval mode for good: nothing changes the state any more, `train()` included."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Quantizer:
        """As every module, but a frozen quantizer stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def pack(self, codes: Tensor) -> Tensor:
        """Codes [*, Q] -> one int64 each [*], see `pack_codes`."""
        return pack_codes(codes, self.cardinalities)

    def unpack(self, packed: Tensor) -> Tensor:
        """Inverse of `pack`: [*] -> codes [*, Q]."""
        return unpack_codes(packed, self.cardinalities)

    def _check(self, x: Tensor) -> None:
        if x.dim() < 1 or x.shape[-1] != self.dim or not x.is_floating_point():
            raise ValueError(
                f"latents must be floats [..., {self.dim}], found {x.dtype} {list(x.shape)}; channels come last"
            )


class PartConfig(Protocol):
    """Config of a quantizer inside another one."""

    @property
    def kind(self) -> str: ...


class MakeQuantizer(Protocol):
    """`make_quantizer` of registry.py, handed down the tree: the table there imports every combinator."""

    def __call__(self, config: Any, dim: int, depth: int, where: str, /) -> Quantizer: ...


def join_tables(tables: Sequence[Tensor]) -> Tensor:
    """Code vectors of parts, each [q, V, D] with its own q and V -> [Q, V, D], zeros beyond a smaller V."""
    size = max(table.shape[1] for table in tables)
    return torch.cat([nn.functional.pad(table, (0, 0, 0, size - table.shape[1])) for table in tables])


def rates_of(parts: Sequence[Quantizer], codes: Tensor) -> tuple[Tensor, Tensor]:
    """`Quantizer.rate` of quantizers whose codes stand side by side in codes [B, M, Q]."""
    number = bits = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
    for part, own in zip(parts, codes.split([len(part.cardinalities) for part in parts], dim=-1), strict=True):
        more, taken = part.rate(own)
        number, bits = number + more, bits + taken
    return number, bits


def add_losses(total: dict[str, Tensor], more: dict[str, Tensor], weight: float = 1.0) -> None:
    """Add losses by name, in place."""
    for name, loss in more.items():
        loss = loss if weight == 1 else loss * weight
        total[name] = total[name] + loss if name in total else loss


def pack_codes(codes: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """Mixed radix, the first (coarse) code most significant: codes [*, Q] -> [*], both int64, exact.

    Raises:
        ValueError: more than 2^62 combinations, or a code out of range (a dropped level, -1, too).
    """
    _check_packable(cardinalities)
    sizes = torch.tensor(cardinalities, device=codes.device)
    if codes.numel() and bool(((codes < 0) | (codes >= sizes)).any()):
        raise ValueError(
            f"codes {int(codes.min())}..{int(codes.max())} do not fit {list(cardinalities)} codes; drop no level"
        )
    packed = torch.zeros(codes.shape[:-1], dtype=torch.long, device=codes.device)
    for level, size in enumerate(cardinalities):
        packed = packed * size + codes[..., level]
    return packed


def unpack_codes(packed: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """Inverse of `pack_codes`: [*] int64 -> codes [*, Q]."""
    _check_packable(cardinalities)
    if packed.numel() and (int(packed.min()) < 0 or int(packed.max()) >= math.prod(cardinalities)):
        raise ValueError(
            f"packed codes must be in 0..{math.prod(cardinalities) - 1}, found {int(packed.min())}..{int(packed.max())}"
        )
    codes = []
    for size in reversed(cardinalities):
        codes.append(packed % size)
        packed = packed // size
    return torch.stack(codes[::-1], dim=-1)


def _check_packable(cardinalities: Sequence[int]) -> None:
    if math.prod(cardinalities) > MAX_PACKED:
        raise ValueError(
            f"{list(cardinalities)} codes make {math.prod(cardinalities)} combinations, above 2^62; pack fewer"
        )


@torch.no_grad()
def usage_stats(codes: Tensor, cardinalities: Sequence[int]) -> dict[str, Tensor]:
    """Perplexity and usage of codes [N, Q] over the batch, each [Q]; dropped and masked codes (-1) do not count."""
    perplexity, usage = [], []
    for column, size in zip(codes.unbind(-1), cardinalities, strict=True):
        if len(codes) and size > 4 * len(codes) + 1024:  # far more codes than tokens: number those that occur
            column = torch.unique(column, return_inverse=True)[1] + column.min().clamp_max(0)
        counts = torch.bincount(column + 1)[1:].float()
        share = counts / counts.sum().clamp_min(1)
        perplexity.append(torch.special.entr(share).sum().exp())
        usage.append((counts > 0).sum() / size)
    if not cardinalities:
        return {"perplexity": torch.zeros(0, device=codes.device), "usage": torch.zeros(0, device=codes.device)}
    return {"perplexity": torch.stack(perplexity), "usage": torch.stack(usage)}


@contextmanager
def float32_only() -> Iterator[None]:
    """Keep out the caller's autocast and a reduced precision of matrix products (TF32, bf16): both flip codes."""
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def _by_sample(x: Tensor) -> Tensor:
    """[B, *, D] or [D] -> [B, M, D]."""
    return x.reshape(1, 1, -1) if x.dim() == 1 else x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
