"""Initialize from another tokenizer: copy tensors with the same name and shape.

A student of another kind copies what fits and learns the rest: DistilCodec's single codebook inherits encoder and
decoder of a grouped residual teacher (UniTTS, arXiv:2505.17426).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor, nn

from ...configs.printable import say
from ...configs.schema import Config, ConfigError
from ...tokenize.audio.masked_conv import plain_state, set_plain
from ...tokenize.tokenizer import load_tokenizer


class WarmStartConfig(Config):
    """Source of the initial weights."""

    tokenizer: str
    """Folder of a frozen tokenizer."""
    names: dict[str, str] = Field(default_factory=dict)
    """Name prefix here -> name prefix there, where they differ, as in {"quantizer.": "quantizer.levels.0."}. The
    longest matching prefix applies."""
    leave: tuple[str, ...] = ()
    """Prefixes of names that keep their random initialization."""


def warm_start(net: nn.Module, config: WarmStartConfig, where: str = "warm_start") -> int:
    """Copy the tensors that fit; returns their number and lists the other parts on stderr.

    Raises:
        ConfigError: the tokenizer does not exist or lacks a mapped name, or nothing fits.
    """
    try:
        given = load_tokenizer(config.tokenizer).net.state_dict()
    except FileNotFoundError as error:
        raise ConfigError(f"{where}.tokenizer: {error}") from None
    own = plain_state(net)
    taken: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.startswith(config.leave):
            continue
        other = _name_there(name, config.names)
        if other in given and given[other].shape == tensor.shape:
            taken[name] = given[other]
    for begin, there in config.names.items():
        if not any(name.startswith(there) for name in given):
            raise ConfigError(f"{where}.names: {config.tokenizer} has no tensor whose name begins with '{there}'")
        if not any(name.startswith(begin) for name in taken):
            raise ConfigError(
                f"{where}.names: no tensor whose name begins with '{begin}' has the shape of its counterpart, '{there}'"
            )
    if not taken:
        raise ConfigError(
            f"{where}.tokenizer: no tensor of {config.tokenizer} matches a tensor of this tokenizer in name and shape"
        )
    for name, tensor in taken.items():
        set_plain(net, name, tensor)
    left = sorted({name.split(".")[0] for name in own.keys() - taken.keys()})
    rest = f"; the rest, in {', '.join(left)}, starts at random" if left else ""
    say(f"note: {len(taken)} of {len(own)} tensors come from {config.tokenizer}{rest}")
    return len(taken)


def _name_there(name: str, names: Mapping[str, str]) -> str:
    found = max((begin for begin in names if name.startswith(begin)), key=len, default=None)
    return name if found is None else names[found] + name[len(found) :]
