"""The weights that a language model starts with if the config has `init`: from another model, with low-rank changes,
frozen.

    init: {from: DIR, ...}        origin.py says what is taken
    init.freeze                   what does not learn
    lora: {...}                   nothing learns but low-rank changes and lora.train

Without `init` all weights are random, and learn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ...configs.files import read_safetensors
from ...configs.module_names import check_patterns, fits_any
from ...configs.schema import ConfigError
from ...lm.layers.lora import LoRAConfig, add_lora_, is_lora
from ...lm.models.transformer_lm import TransformerLM
from ..engines.state_files import WEIGHTS_FILE
from .choose_tensors import freeze_modules
from .config import LMInitConfig


def start_lm_(
    lm: TransformerLM,
    init: LMInitConfig,
    lora: LoRAConfig | None,
    give: Callable[[TransformerLM], set[str]] | None,
    started: Path | None = None,
) -> None:
    """Give a random model the weights that a run starts with, in place; what learns has requires_grad.

    Args:
        give: copies the weights of init.from into it (`Origin.give_`); None: all weights are in a checkpoint.
        started: checkpoint that will be loaded: what does not learn has its weights from there, or with lora from
            init.from.
    Raises:
        ConfigError: as `Origin.give_` and `freeze_`.
    """
    freeze_(lm, init, lora, None if give is None else give(lm))
    frozen = {name: parameter for name, parameter in lm.named_parameters() if not parameter.requires_grad}
    if started is None or lora is not None or not frozen:
        return
    saved, _ = read_safetensors(started / WEIGHTS_FILE, wanted=frozen.__contains__)
    with torch.no_grad():
        for name, parameter in frozen.items():
            parameter.copy_(saved[name])


def freeze_(lm: TransformerLM, init: LMInitConfig, lora: LoRAConfig | None, taken: set[str] | None) -> None:
    """Add the low-rank changes and freeze what does not learn, in place.

    Args:
        taken: names of the tensors that come from init.from; None: they come from a checkpoint.
    Raises:
        ConfigError: nothing learns, or with lora a weight that is not taken would stay random.
    """
    if lora is None:
        freeze_modules(lm, init.freeze, "init.freeze")
        return
    own = [name for name, _ in lm.named_parameters()]
    random = [name for name in own if taken is not None and name not in taken and not fits_any(name, lora.train)]
    if random:
        raise ConfigError(
            f"lora.train: '{random[0]}' does not come from {init.source}, so it would stay random; let it learn with "
            f"lora.train: [{random[0].rsplit('.', 1)[0]}]"
        )
    check_patterns(lora.train, own, "lora.train")
    add_lora_(lm, lora)
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_(is_lora(name) or fits_any(name, lora.train))
