"""Which tensors start as those of another model, and which never learn. For both trainers.

Without `modules` every tensor is taken whose name and shape are the same there; what the other model does not have
starts at random. A tensor of another shape is an error: nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ...configs.module_names import check_patterns, fits_any
from ...configs.schema import ConfigError
from .config import InitConfig

Tensors = Mapping[str, Tensor]


def choose_tensors(
    own: Tensors, given: Tensors, init: InitConfig, where: str = "init", adapted: Mapping[str, str] = {}
) -> dict[str, str]:
    """The tensors to take: name here -> name there.

    Args:
        own: all tensors here. given: those there.
        adapted: tensors whose shape may differ, which the caller fills -> "" if it does, or how to ask for it.
    Raises:
        ConfigError: a name matches nothing, a shape differs, or nothing is taken; the message begins with `where`.
    """
    check_patterns(init.modules or (), own, f"{where}.modules")
    check_patterns(init.leave, own, f"{where}.leave")
    taken = {}
    for name, tensor in own.items():
        if (init.modules is not None and not fits_any(name, init.modules)) or fits_any(name, init.leave):
            continue
        other = _name_there(name, init.names)
        if other not in given:
            continue
        shape, there = list(tensor.shape), list(given[other].shape)
        if shape != there and adapted.get(name) != "":
            hint = f" or {adapted[name]}" if name in adapted else ""
            raise ConfigError(
                f"{where}: tensor '{name}' is {shape}, in {init.source} it is {there}; start it at "
                f"random with {where}.leave: [{name}]{hint}"
            )
        taken[name] = other
    _check_names(init, taken, given, where)
    if not taken:
        raise ConfigError(
            f"{where}.from: {init.source} has no tensor that is taken; its names are others, see {where}.names"
        )
    return taken


def describe_start(own: Iterable[str], taken: Mapping[str, str], given: Iterable[str], source: str) -> str:
    """One line: how many tensors come from there, what starts at random, and what is not used."""
    own, unused = list(own), _tops(set(given) - set(taken.values()))
    random = _tops(name for name in own if name not in taken)
    rest = f"; the rest, in {random}, starts at random" if random else ""
    rest += f"; not used of it: {unused}" if unused else ""
    return f"{len(taken)} of {len(own)} tensors come from {source}{rest}"


def freeze_modules(net: nn.Module, patterns: Sequence[str], where: str) -> None:
    """The named parameters do not learn. ConfigError: a name matches nothing, or nothing is left to learn."""
    check_patterns(patterns, (name for name, _ in net.named_parameters()), where)
    for name, parameter in net.named_parameters():
        if fits_any(name, patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ConfigError(f"{where}: all weights are frozen; freeze fewer")


def _check_names(init: InitConfig, taken: Mapping[str, str], given: Tensors, where: str) -> None:
    for begin, there in init.names.items():
        if not any(name.startswith(there) for name in given):
            raise ConfigError(f"{where}.names: {init.source} has no tensor whose name begins with '{there}'")
        if not any(name.startswith(begin) for name in taken):
            raise ConfigError(f"{where}.names: no tensor that is taken has a name that begins with '{begin}'")


def _name_there(name: str, names: Mapping[str, str]) -> str:
    found = max((begin for begin in names if name.startswith(begin)), key=len, default=None)
    return name if found is None else names[found] + name[len(found) :]


def _tops(names: Iterable[str]) -> str:
    """First parts of names, each once; "" for none."""
    return ", ".join(sorted({name.split(".")[0] for name in names}))
