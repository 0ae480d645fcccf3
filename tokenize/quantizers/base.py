"""Base class of all quantizers, its result types, and packing of codes into single integers.

A quantizer maps latents [*, D] (channels last) to codes [*, Q] and back.
Internally B is the number of samples and M the number of positions per sample: latents [B, M, D], or [N, D] with
N = B * M.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .codebooks.codebook import Codebook, update_codebooks

MAX_PACKED = 1 << 62


@dataclass(frozen=True)
class Quantized:
    """Result of `Quantizer.forward`. Where the mask is False, values are 0, codes -1 and losses 0."""

    values: Tensor
    """[*, D] float32, the sum of the code vectors; the gradient with respect to x is exactly 1 (unless a node of the
    tree, for example `rotation`, changes it)."""
    codes: Tensor
    """[*, Q] long; -1 where a level was dropped."""
    losses: dict[str, Tensor]
    """Name -> [*] float32, one value per token, already weighted; add them to the training loss."""
    stats: dict[str, Tensor]
    """Name -> [Q] float32 over this batch: "perplexity" and "usage" (fraction of the codes that occur)."""


@dataclass(frozen=True)
class QuantizerOutput:
    """Output of one quantizer in the tree, before the root adds the straight-through gradient."""

    vectors: Tensor
    """[B, M, D] float32; gradients flow to the quantizer's own parameters only."""
    codes: Tensor
    """[B, M, Q] long."""
    losses: dict[str, Tensor]
    """Name -> [B, M]."""


class Quantizer(nn.Module):
    """Base class of leaf quantizers and combinators; subclasses define `quantize`, `search`, `lookup` and `vectors`.

    The constructor takes (config, dim, depth, where): `depth` is the level in a residual, `where` the path in the tree,
    which prefixes every error message. A combinator also takes `make`, a factory for the quantizers it contains, and a
    leaf whose vectors may come from a file takes `read_files` (registry.py).
    """

    span = 1
    """Number of adjacent positions that share a code; 0: all positions of a sample depend on each other."""

    def __init__(self, dim: int, books: Sequence[int | Quantizer]):
        """`books`: for each entry, the size of a codebook or a child quantizer that contributes its codebooks."""
        super().__init__()
        self.dim = dim
        self._books = tuple(books)  # a tuple, so that children are not registered here: the subclass registers them
        self.frozen = False

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Sizes of the Q codebooks. Fitting the quantizer, or loading a fitted one, can change them."""
        sizes: list[int] = []
        for book in self._books:
            sizes += [book] if isinstance(book, int) else book.cardinalities
        return tuple(sizes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents; in training mode, also collect the statistics that `update` needs.

        Args:
            x: latents [*, D], any float dtype; the first axis is the batch.
            mask: [*] bool, True where valid; invalid positions affect no code, loss, gradient or statistic.
        Raises:
            ValueError: x or mask has the wrong shape.
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
        """Latents [*, D] -> codes [*, Q] long, computed as in eval mode.

        If `levels` is less than Q, the codes of later levels are -1. Codes outside the mask [*] are -1 too; a mask is
        needed only if positions share codes (`span`).
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
        """Codes [*, Q] long -> values [*, D] float32; a code of -1 contributes 0."""
        if codes.shape[-1] != len(self.cardinalities):
            raise ValueError(
                f"codes are {list(codes.shape)}, but a token has {len(self.cardinalities)} codes, on the last axis"
            )
        with float32_only():
            values = self.lookup(_by_sample(codes))
            return values.reshape(*codes.shape[:-1], self.dim)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """Latents [B, M, D] float32, 0 outside the mask [B, M] (None: all valid) -> output, 0 and -1 there too."""
        raise NotImplementedError

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Latents [B, M, D] float32 -> codes [B, M, Q], as in eval mode; codes outside the mask are unspecified."""
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes [B, M, Q] -> vectors [B, M, D], with gradients to the quantizer's parameters."""
        raise NotImplementedError

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Storage cost of the codes [B, M, Q] of whole samples when a code shared by several positions is counted once:
        the number of codes, and their bits at fixed length, both [B] float64. A code of -1 costs nothing."""
        there = (codes >= 0).sum(dim=1).double()
        lengths = [math.log2(size) for size in self.cardinalities]
        return there.sum(dim=-1), (there * there.new_tensor(lengths)).sum(dim=-1)

    def estimate(self, x: Tensor, parts: QuantizerOutput) -> Tensor:
        """Values equal to parts.vectors, with a gradient to x [B, M, D]; called on the root only."""
        # q + (x - x.detach()), not x + (q - x).detach(): this keeps the value bit-identical to q in every dtype.
        return parts.vectors + (x - x.detach()) if x.requires_grad else parts.vectors

    def vectors(self) -> Tensor:
        """Code vectors [Q, V, D] float32 (V: the largest cardinality; smaller codebooks are padded with zeros).

        If `span` > 0, `decode(codes)` is the sum over q of vectors[q, codes[q]].
        """
        raise NotImplementedError

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Fit the quantizers that are not trained (kmeans, structural, scalar with quantile bins) to latents [*, D].

        Raises ValueError if nothing in the tree can be fitted.
        """
        self._check(x)
        with float32_only():
            if not self.fit_parts(_by_sample(x.float())):
                raise ValueError(f"this quantizer ({type(self).__name__}) has no part to fit; train it")

    def fit_parts(self, x: Tensor) -> bool:
        """Fit to latents [B, M, D]; returns whether there was anything to fit."""
        return False

    def update(self) -> None:
        """Update the codebooks, once per optimizer step: k-means start, moving averages, revival of dead codes.

        Forward passes only collect statistics for it. Every process must call it, whatever the masks: it performs one
        all-reduce. Modules that are frozen or in eval mode do not change.
        """
        if self.training:
            update_codebooks([module for module in self._codebooks() if module.training])

    def forget(self) -> None:
        """Discard the statistics collected since the last `update`."""
        for module in self._codebooks():
            module.forget()

    def _codebooks(self) -> list[Codebook]:
        return [module for module in self.modules() if isinstance(module, Codebook)]

    def freeze(self) -> None:
        """Switch to eval mode permanently: nothing changes the state any more, not even `train()`."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Quantizer:
        """As in nn.Module, but a frozen quantizer stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def pack(self, codes: Tensor) -> Tensor:
        """Codes [*, Q] -> one int64 per token [*], see `pack_codes`."""
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
    """Config of a nested quantizer."""

    @property
    def kind(self) -> str: ...


class MakeQuantizer(Protocol):
    """Type of `make_quantizer` (registry.py), passed down the tree because registry.py imports every combinator."""

    def __call__(self, config: Any, dim: int, depth: int, where: str, /) -> Quantizer: ...


def join_tables(tables: Sequence[Tensor]) -> Tensor:
    """Concatenate tables of code vectors, each [q, V, D] with its own q and V, into [Q, V, D], zero-padded along V."""
    size = max(table.shape[1] for table in tables)
    return torch.cat([nn.functional.pad(table, (0, 0, 0, size - table.shape[1])) for table in tables])


def rates_of(parts: Sequence[Quantizer], codes: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of `Quantizer.rate` over quantizers whose codes are concatenated in codes [B, M, Q]."""
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
    """Pack codes in mixed radix, the first (coarse) code most significant: [*, Q] -> [*], both int64, exact.

    Raises:
        ValueError: more than 2^62 combinations, or a code out of range (including -1, a dropped level).
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
        if len(codes) and size > 4 * len(codes) + 1024:  # far more codes than tokens: renumber the codes that occur
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
    """Disable the caller's autocast and reduced-precision matrix products (TF32, bf16): both change codes."""
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
