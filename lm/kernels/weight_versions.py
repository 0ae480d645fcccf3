"""Detect whether the weights that something was derived from have changed.

Copies of weights, and their addresses, are made once and used for many generations. In between, anyone may load other
weights, change them in place, swap in an average, move or cast the model, or replace a module. A stamp of a module
captures all of that by content: it detects changes through `.data` or a NumPy array, which torch does not count, and
the same weights at another address have the same stamp.
"""

from __future__ import annotations

import ctypes

from torch import Tensor, nn

from ..attention.registry import BACKENDS, auto
from ..layers.attention_layers import CrossAttention, SelfAttention
from ..layers.feed_forward import GELU, SwiGLU
from ..layers.norm import RMSNorm
from ..layers.transformer import Block, Transformer
from ..ops.linear import Linear
from ..ops.row_rng import Dropout
from . import cpu_gemv

PLAIN = (
    *(Transformer, Block, SelfAttention, CrossAttention, SwiGLU, GELU, RMSNorm, Linear),
    *(nn.Linear, nn.LayerNorm, nn.ModuleList, Dropout),
)
"""Modules that do exactly what their class does."""


def stamp_of(part: nn.Module, known: tuple[type, ...] = PLAIN) -> tuple | None:
    """Everything that determines what a module on the CPU computes; modules with equal stamps compute the same.

    Args:
        known: classes whose modules do exactly what their class does.
    Returns:
        None if that cannot be determined: modules of other kinds (for instance a wrapper that adds to a layer),
        with hooks or a custom forward, or tensors on another device.
    """
    found: list = []
    for module in part.modules():
        if type(module) not in known or getattr(module, "attend", None) not in (None, auto, *BACKENDS.values()):
            return None
        if is_altered(module):
            return None
        found += _settings(module)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            if tensor.device.type != "cpu" or type(tensor) not in (Tensor, nn.Parameter):
                return None
            found += name, tensor.dtype, tensor.shape, hash_of(tensor)
    return tuple(found)


def structure_of(part: nn.Module) -> tuple:
    """A stamp without the tensors, for modules of any kind on any device."""
    return tuple((*_settings(module), is_altered(module)) for module in part.modules())


def is_altered(module: nn.Module) -> bool:
    """Whether it does more than its class: hooks, or a custom forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _settings(module: nn.Module) -> list:
    return [type(module), *(value for value in module.__dict__.values() if type(value) in (int, float, str))]


def hash_of(tensor: Tensor) -> int:
    """Hash of a tensor's bytes on the CPU."""
    tensor, result = tensor.detach().contiguous(), ctypes.c_uint64()
    cpu_gemv.library().hash(tensor.data_ptr(), tensor.nbytes, ctypes.byref(result))
    return result.value
