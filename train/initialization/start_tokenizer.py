"""Start a tokenizer from the weights of another one (choose_tensors.py).

A student of another kind takes what fits and learns the rest: DistilCodec's single codebook inherits encoder and
decoder of a grouped residual teacher (UniTTS, arXiv:2505.17426).
"""

from __future__ import annotations

from torch import nn

from ...configs.schema import ConfigError
from ...tokenize.hub.tokenizer import TransformersTokenizer
from ...tokenize.layers.weight_norm import plain_state, set_plain
from ...tokenize.tokenizer import load_tokenizer
from .choose_tensors import choose_tensors, describe_start
from .config import InitConfig


def start_tokenizer_(net: nn.Module, init: InitConfig) -> str:
    """Copy the tensors of another tokenizer into a network; returns one line on what is taken and what is not.

    Raises:
        ConfigError: there is no such tokenizer, or as `choose_tensors`.
    """
    try:
        tokenizer = load_tokenizer(init.source)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"init.from: {error}") from None
    if isinstance(tokenizer, TransformersTokenizer):
        raise ConfigError(
            f"init.from: {init.source} is computed by transformers, so nothing here can be trained from it; name a "
            "tokenizer that was trained here, or a public codec that docs/public-models.md lists as implemented"
        )
    given = tokenizer.net.state_dict()
    own = plain_state(net)
    taken = choose_tensors(own, given, init)
    for name, other in taken.items():
        set_plain(net, name, given[other])
    return describe_start(own, taken, given, init.source)
