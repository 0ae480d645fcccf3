"""config.json of a model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import FailFast

from ...configs.files import read_json
from ...configs.json_limits import NAMED
from ...configs.recognize import describe_wrong
from ...configs.schema import Config, check_config
from ...tokenize.spec import TokenSpec
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..models.registry import ModelConfig

MAX_CODES = 1 << 24
"""Largest codebook accepted in a model directory."""


class ModelFile(Config):
    """config.json of a model directory."""

    format: Literal["tessera-model"] = "tessera-model"
    version: Literal[1] = 1
    lm: ModelConfig
    coarse_lm: LMConfig | None = None
    """The LM of the coarse labels; lm is then their refiner."""
    clusters: str | None = None
    """Fingerprint of clusters/: a causal lm predicts the labels, a masked one is conditioned on them."""
    spec: TokenSpec
    labels: Annotated[tuple[str, ...], FailFast()] = ()
    """Names of the labels in the order of their ids."""
    generation: GenerationConfig = GenerationConfig()


def check_is_model(folder: Path) -> None:
    """Raise FileNotFoundError, with what the folder holds instead, unless it has a config.json."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            describe_wrong(folder, "a model")
            or f"{folder}: no model here (config.json is missing); make one with: tessera train CONFIG"
        )


def read_model_config(folder: str | Path) -> ModelFile:
    """Read and check config.json alone; raises as `load_model`."""
    check_is_model(Path(folder))
    path = Path(folder) / "config.json"
    data = read_json(path, NAMED)
    if not isinstance(data, dict) or data.get("format") != "tessera-model":
        raise ValueError(f"{path}: not a model's config.json (its format is not 'tessera-model')")
    if data.get("version") != 1:
        raise ValueError(
            f"{path}: written by another version of Tessera (format {json.dumps(data.get('version'))[:80]}, this one "
            "reads 1)"
        )
    described = check_config(data, ModelFile, str(path))
    check_described(described, str(path))
    return described


def check_described(described: ModelFile, where: str) -> None:
    """Raise ValueError if the codebooks are too large or too many."""
    if max(described.spec.cardinalities) > MAX_CODES or described.spec.num_codebooks > 1024:
        raise ValueError(
            f"{where}: codebooks {described.spec.num_codebooks} x {max(described.spec.cardinalities)} are too large"
        )
