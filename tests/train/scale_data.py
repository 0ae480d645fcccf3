"""A tiny tokenizer of digits in scales, and shards of its codes."""

from pathlib import Path

import torch

from tessera.cli.app import run
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ScalesConfig, VQConfig
from tessera.tokenize.tokenizer import make_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def write_data(folder: Path) -> None:
    """tokenizer/ and shards/ of twelve digits, in scales."""
    torch.manual_seed(0)
    shape = {"height": 8, "width": 8, "channels": 1, "downsamplings": 2, "features": 4, "blocks": 1, "latent_dim": 4}
    quantizer = ScalesConfig(sizes=((1, 1), (2, 2)), quantizer=VQConfig(size=8))
    make_tokenizer(ImageTokenizerConfig(name="tiny-scales", quantizer=quantizer, **shape)).save(folder / "tokenizer")
    sets = {"tokenizer": folder / "tokenizer", "out": folder / "shards", "max_items": 12}
    sets["corpus.path"] = ROOT / "samples" / "digits" / "train.safetensors"
    overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    assert run(["shards", str(ROOT / "configs" / "digits-var" / "shards.yaml"), *overrides]) == 0
