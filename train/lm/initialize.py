"""The weights that a run of `tessera train` starts with: random, or from another model, with low-rank changes, frozen.

init: {from: DIR, ...}        origin.py says what is taken
init.freeze                   what does not learn
lora: {...}                   nothing learns but low-rank changes and lora.train
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...configs.files import read_json, read_safetensors
from ...configs.module_names import check_patterns, fits_any
from ...configs.recognize import folder_kind
from ...configs.schema import ConfigError
from ...lm.checkpoints.config_file import read_model_config
from ...lm.config import LMConfig
from ...lm.layers.lora import LoRAConfig, add_lora_, is_lora
from ...lm.models.transformer_lm import TransformerLM
from ...lm.public.registry import layout_of, public_layout
from ...lm.public.text_lm import backbone_settings, is_text_lm
from ..common.initialization import freeze_modules
from ..engines.state_files import WEIGHTS_FILE
from .config import LMInitConfig, TrainConfig
from .origin import find_origin
from .setup import TrainingSetup


def build_lm(
    config: TrainConfig, parts: TrainingSetup, started: Path | None = None, show: bool = False
) -> TransformerLM:
    """The model of a run before its first step, the same each time; what learns has requires_grad.

    Args:
        started: checkpoint that will be loaded: what does not learn has its weights from there, or with lora from
            init.from.
        show: note on stderr what is taken.
    Raises:
        ConfigError: as `Origin.give_` and `freeze_`.
    """
    lm = parts.make_lm(config.seed)
    if config.init is None:
        return lm
    taken = None
    if parts.origin is not None:
        taken = parts.origin.give_(lm, parts.labels, parts.text, parts.tokenizer, show)
    freeze_(lm, config.init, config.lora, taken)
    if started is not None and config.lora is None:
        frozen = {name: parameter for name, parameter in lm.named_parameters() if not parameter.requires_grad}
        if frozen:
            saved, _ = read_safetensors(started / WEIGHTS_FILE, wanted=frozen.__contains__)
            with torch.no_grad():
                for name, parameter in frozen.items():
                    parameter.copy_(saved[name])
    return lm


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


def inherit_lm(data: Any, run: Path | None = None) -> Any:
    """The data of a config file in which the keys of `lm` that are left out are those of the model in `init.from`; all
    of them if `lm` is left out or null.

    Args:
        run: folder of the run that is resumed, which has them in its config.json.
    """
    init = data.get("init") if isinstance(data, dict) else None
    given = (data.get("lm") or {}) if isinstance(data, dict) else None
    if not isinstance(init, dict) or not isinstance(init.get("from"), str) or not isinstance(given, dict):
        return data
    if run is not None and (run / "config.json").is_file():
        saved = read_json(run / "config.json")
        return data | {"lm": saved["lm"] | given} if isinstance(saved, dict) and "lm" in saved else data
    folder = find_origin(init["from"])
    try:
        if is_text_lm(folder):
            base = backbone_settings(folder)
        elif folder_kind(folder) == "foreign":
            base = _plain(layout_of(public_layout(folder)).load(folder).config)
        else:
            described = read_model_config(folder)
            stages = [one for one in (described.coarse_lm, described.lm) if one is not None]
            base = _plain(next((one for one in stages if one.kind == given.get("kind", one.kind)), described.lm))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"init.from: {error}") from None
    if given.get("kind", base.get("kind", "causal")) != base.get("kind", "causal"):
        return data
    return data | {"lm": base | given}


def _plain(config: LMConfig) -> dict[str, Any]:
    """A model's config as the data of a file, without what is filled in from the data."""
    described = config.model_dump(mode="json", exclude={"attention"})
    for condition in described["conditions"]:
        for name in ("classes", "vocab_size", "silent"):
            condition.pop(name, None)
    return described
