"""Networks without initial values, for weights that are read from a file next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FILLS = {
    *("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"),
    *("xavier_uniform_", "xavier_normal_", "orthogonal_"),
}
SCALES = {"div", "mul", "__truediv__", "__mul__", "__rmul__"}


class Unfilled(TorchFunctionMode):
    """Context manager: random numbers are not drawn, their tensors keep whatever is in memory.

    On the meta device there are only shapes, so a tensor times a number is the tensor. Torch would import its compiler
    for the product, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in FILLS:
            return args[0] if args else kwargs["tensor"]
        if name in SCALES and isinstance(args[0], Tensor) and args[0].is_meta and isinstance(args[1], int | float):
            return args[0]
        return (torch.empty if name in ("randn", "rand") else func)(*args, **kwargs)
