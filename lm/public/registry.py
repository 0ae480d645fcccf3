"""Public checkpoints: detect the layout of a folder, and the functions that read and write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...configs.files import read_json
from ...configs.recognize import describe_wrong
from ...configs.schema import nearest_name
from ..generation_config import GenerationConfig
from ..models.causal import TokenLM
from .llamagen import LLAMAGEN_DEFAULTS, load_llamagen, save_llamagen
from .musicgen import MUSICGEN_DEFAULTS, load_musicgen, save_musicgen


@dataclass(frozen=True)
class PublicLayout:
    """The layout of one public system: a folder with config.json and safetensors."""

    model_types: tuple[str, ...]
    """Values of model_type in config.json."""
    load: Callable[..., TokenLM]
    """load(folder, spec, device, dtype); spec None: the tokenizer is unknown."""
    save: Callable[..., None]
    """save(folder, lm, dtype); ValueError if the layout cannot represent the model."""
    defaults: GenerationConfig
    """Default sampling settings of its authors."""
    left_out: str
    """The parts of a folder that are not read."""


PUBLIC = {
    "musicgen": PublicLayout(
        ("musicgen", "musicgen_decoder"),
        load_musicgen,
        save_musicgen,
        MUSICGEN_DEFAULTS,
        "the text encoder and the audio codec",
    ),
    "llamagen": PublicLayout(("llamagen",), load_llamagen, save_llamagen, LLAMAGEN_DEFAULTS, "the image tokenizer"),
}


def public_layout(folder: str | Path) -> str:
    """Name of a folder's layout.

    Raises:
        FileNotFoundError: it has no config.json. ValueError: the layout is unknown.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            describe_wrong(folder, "a checkpoint")
            or f"{path}: no such file; a checkpoint is a folder of config.json and model.safetensors"
        )
    described = read_json(path)
    kind = described.get("model_type") if isinstance(described, dict) else None
    for name, layout in PUBLIC.items():
        if kind in layout.model_types:
            return name
    known = ", ".join(kind for layout in PUBLIC.values() for kind in layout.model_types)
    raise ValueError(f"{path}: model_type is {kind!r}; supported are {known}")


def layout_of(name: str) -> PublicLayout:
    """The layout with this name; ValueError names the nearest."""
    if name not in PUBLIC:
        raise ValueError(f"no layout '{name}'; {nearest_name(name, PUBLIC)}")
    return PUBLIC[name]
