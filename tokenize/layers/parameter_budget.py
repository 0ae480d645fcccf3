"""A budget for making a network: what its config asks for is held against the file that its weights come from.

A config.json may lie: a codebook of 2^24 codes, a million layers. The network is made within what the header of its
weights promises, and refused before more is allocated.
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
"""Beyond the file's: tables that are computed, and so that small differences are found by name afterwards."""


class BudgetError(ValueError):
    """A config asks for more than the file of its weights holds."""


class Budget(TorchFunctionMode):
    """While it is entered, modules made by this thread stay within a file.

    Args:
        tensors: the file's header.
        path: the file, for the message.
        on_meta: tensors without a device are made on the meta device, so they take nothing.
    Raises:
        BudgetError, from what makes the module: many more parameters than the file has, or many more numbers in them.
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
            f"{self.path}: the config beside it asks for far more than its {self.found} tensors; they do not belong "
            "together, copy the directory again"
        )


def _size(args: Any, kwargs: Any) -> int:
    """Numbers of torch.zeros(2, 3), torch.zeros((2, 3)), torch.zeros(size=(2, 3)), torch.full((2, 3), 0)."""
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
"""What makes tensors out of nothing: name of the torch function -> numbers it is asked for."""
