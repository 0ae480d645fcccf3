"""Weight norms of layers (arXiv:1602.07868): applied in training, folded into plain weights in frozen networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

_folded: ContextVar[bool] = ContextVar("folded", default=False)


def normed(layer: nn.Module, norm: str) -> nn.Module:
    """Apply weight normalization to a layer if `norm` is "weight"; not within `folded_norms`."""
    return parametrizations.weight_norm(layer) if norm == "weight" and not _folded.get() else layer


@contextmanager
def folded_norms() -> Iterator[None]:
    """Networks built within it have plain weights, as after `fold_norms`."""
    token = _folded.set(True)
    try:
        yield
    finally:
        _folded.reset(token)


def fold_norms(net: nn.Module) -> None:
    """Fold all weight norms into plain weights, in place, as frozen networks store them."""
    for module in net.modules():
        if parametrize.is_parametrized(module, "weight"):
            # torch removes the property "weight" from the module's class, which copies of the module share.
            kind = type(module)
            own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(kind.__name__, kind.__bases__, own)  # type: ignore
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """State dict of a network with its weight norms folded; the network is unchanged."""
    state = net.state_dict()
    for name, module in net.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            state = {
                key: value for key, value in state.items() if not key.startswith(f"{name}.parametrizations.weight")
            }
            state[f"{name}.weight"] = getattr(module, "weight").detach()  # noqa: B009
    return state


@torch.no_grad()
def set_plain(net: nn.Module, name: str, value: Tensor) -> None:
    """Write one tensor of `plain_state` into the network, through the weight norm if the layer has one."""
    place, _, leaf = name.rpartition(".")
    module = net.get_submodule(place)
    if parametrize.is_parametrized(module, leaf):
        setattr(module, leaf, value)
    else:
        getattr(module, leaf).copy_(value)
