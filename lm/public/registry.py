"""Public checkpoints: which layout a folder is in, and who reads and writes it."""

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
    """One public system's folder of config.json and safetensors."""

    model_types: tuple[str, ...]
    """What config.json calls it."""
    load: Callable[..., TokenLM]
    """load(folder, spec, device, dtype), spec None: one whose tokenizer is not known."""
    save: Callable[..., None]
    """save(folder, lm, dtype); ValueError for a model that the layout cannot say."""
    defaults: GenerationConfig
    """How its makers sample."""
    left_out: str
    """What a folder holds that is not read."""


PUBLIC = {
    "musicgen": PublicLayout(
        ("musicgen", "musicgen_decoder"),
        load_musicgen,
        save_musicgen,
        MUSICGEN_DEFAULTS,
        "the text encoder and the audio codec",
    ),
    "llamagen": PublicLayout(("llamagen",), load_llamagen, save_llamagen, LLAMAGEN_DEFAULTS, "the picture tokenizer"),
}


def public_layout(folder: str | Path) -> str:
    """Name of the layout a folder is in.

    Raises:
        FileNotFoundError: no config.json there. ValueError: no layout that is known here.
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
    raise ValueError(f"{path}: model_type is {kind!r}; known here are {known}")


def layout_of(name: str) -> PublicLayout:
    """The layout of that name; ValueError names the nearest."""
    if name not in PUBLIC:
        raise ValueError(f"no layout '{name}'; {nearest_name(name, PUBLIC)}")
    return PUBLIC[name]
