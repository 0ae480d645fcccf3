"""Base class of combinators that wrap a single quantizer."""

from __future__ import annotations

from torch import Tensor

from ..base import Quantizer, QuantizerOutput


class Wrapper(Quantizer):
    """Delegates everything to one inner quantizer."""

    def __init__(self, inner: Quantizer):
        super().__init__(inner.dim, [inner])
        self.inner = inner
        self.span = inner.span

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize."""
        return self.inner.quantize(x, mask)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        return self.inner.search(x, mask)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D]."""
        return self.inner.lookup(codes)

    def vectors(self) -> Tensor:
        """[Q, V, D]."""
        return self.inner.vectors()

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See the inner quantizer."""
        return self.inner.rate(codes)

    def fit_parts(self, x: Tensor) -> bool:
        """See the inner quantizer."""
        return self.inner.fit_parts(x)
