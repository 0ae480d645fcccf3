"""Memory budget for building a network: limits what its config requests to the size of its weight file.

A config.json can be malicious: a codebook of 2^24 codes, a million layers. Building a network that exceeds the header
of its weight file fails before more memory is allocated.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ...configs.files import TensorEntry

SPARE_TENSORS = 200
SPARE_NUMBERS = 1 << 22
"""Allowance beyond the file: for computed tables, and so that small mismatches are later reported by name."""


class BudgetError(ValueError):
    """A config requests more than its weight file holds."""


class Budget(TorchFunctionMode):
    """Context manager that limits the modules built by this thread to the size of a file.

    Args:
        tensors: header of the file.
        path: the file, for the error message.
        on_meta: tensors without a device are created on the meta device and do not count.
    Raises:
        BudgetError, from the module constructor: far more parameters, or elements in them, than the file has.
    """

    def __init__(self, tensors: Mapping[str, TensorEntry], path: Path, on_meta: bool = False):
        super().__init__()
        self.path, self.found = path, len(tensors)
        self.tensors = 2 * len(tensors) + SPARE_TENSORS
        self.numbers = 4 * sum(math.prod(entry.shape) for entry in tensors.values()) + SPARE_NUMBERS
        self.device = "meta" if on_meta else "cpu"
        self.thread = threading.get_ident()

    def __enter__(self) -> Budget:
        self.hook = register_module_parameter_registration_hook(self._count)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()
        super().__exit__(*error)

    def _count(self, module: nn.Module, name: str, parameter: Any) -> None:
        if threading.get_ident() == self.thread:
            self.tensors -= 1
            if self.tensors < 0:
                raise self._error()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = FACTORIES.get(getattr(func, "__name__", ""))
        if asked is not None and str(kwargs.get("device") or self.device) != "meta":
            self.numbers -= asked(args, kwargs)
            if self.numbers < 0:
                raise self._error()
        return func(*args, **kwargs)

    def _error(self) -> BudgetError:
        return BudgetError(
            f"{self.path}: its config.json asks for far more than its {self.found} tensors; the "
            "files do not match, copy the directory again"
        )


def _size(args: Any, kwargs: Any) -> int:
    """Elements of torch.zeros(2, 3), torch.zeros((2, 3)), torch.zeros(size=(2, 3)), torch.full((2, 3), 0)."""
    size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
    return math.prod(size) if all(isinstance(one, int) for one in size) else 0


def _range(args: Any, kwargs: Any) -> int:
    bounds = [*args, *(kwargs[name] for name in ("start", "end", "step") if name in kwargs)]
    if not bounds or not all(isinstance(one, int | float) for one in bounds):
        return 0
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    return int(abs((end - start) / step)) if step else 0


def _steps(args: Any, kwargs: Any) -> int:
    steps = kwargs.get("steps", args[2] if len(args) > 2 else 0)
    return steps if isinstance(steps, int) else 0


def _length(args: Any, kwargs: Any) -> int:
    length = kwargs.get("window_length", args[0] if args else 0)
    return length if isinstance(length, int) else 0


def _square(args: Any, kwargs: Any) -> int:
    sides = [one for one in args if isinstance(one, int)]
    return math.prod(sides) if len(sides) > 1 else math.prod(sides) ** 2


FACTORIES: dict[str, Callable[[Any, Any], int]] = {
    **dict.fromkeys(("empty", "zeros", "ones", "full", "rand", "randn"), _size),
    **{"arange": _range, "linspace": _steps, "eye": _square},
    **dict.fromkeys(("hann_window", "hamming_window", "kaiser_window"), _length),
}
"""Tensor factories: name of the torch function -> number of elements requested."""
