"""Linear projections in and out of a quantizer's inner space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .nearest import exact_dtype


def project(layer: nn.Linear, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Linear layer in `dtype`, by default float64: rounding that depends on the row count is far below float32."""
    dtype = dtype or exact_dtype(x)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), layer.weight.to(dtype), bias)


def straight_through(inner: Tensor, project_out: nn.Linear) -> Tensor:
    """Zeros [*, D] to add to code vectors, with the gradient of the straight-through estimator in the inner space.

    A code vector is looked up, so no gradient reaches the input projection through it. This has the gradient that the
    output projection of the input `inner` [*, d] float32 has.
    """
    return (inner - inner.detach()) @ project_out.weight.float().T
