"""Settings of `lm` that a config file leaves out: those of the model in `init.from`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...configs.files import read_json
from ...configs.recognize import folder_kind
from ...configs.schema import Config, ConfigError, check_config
from ...lm.checkpoints.config_file import read_model_config
from ...lm.config import LMConfig
from ...lm.layers.lora import LoRAConfig
from ...lm.public.registry import layout_of, public_layout
from ...lm.public.text_lm import backbone_settings, is_text_lm
from .config import LORA_ALONE, LMInitConfig
from .origin import find_origin


class _Start(Config):
    """What a file says about the weights to start from, checked before `lm`, which may depend on it."""

    init: LMInitConfig | None = None
    lora: LoRAConfig | None = None


def inherit_lm(data: Any, run: Path | None = None, where: str = "config") -> Any:
    """The data of a config file in which the keys of `lm` that are left out are those of the model in `init.from`; all
    of them if `lm` is left out or null.

    Args:
        run: folder of the run that is resumed, which has them in its config.json.
        where: prefix of the message of a malformed init or lora.
    Raises:
        ConfigError: init or lora is malformed, or there is no such model.
    """
    if not isinstance(data, dict):
        return data
    start = check_config({name: data[name] for name in ("init", "lora") if name in data}, _Start, where)
    init, given = start.init, data.get("lm") or {}
    if init is None and start.lora is not None:
        raise ConfigError(f"{where}: lora: {LORA_ALONE}")
    if init is None or not isinstance(given, dict):
        return data
    if run is not None and (run / "config.json").is_file():
        saved = read_json(run / "config.json")
        return data | {"lm": saved["lm"] | given} if isinstance(saved, dict) and "lm" in saved else data
    folder = find_origin(init.source)
    try:
        if is_text_lm(folder):
            base = backbone_settings(folder)
        elif folder_kind(folder) != "model":
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
