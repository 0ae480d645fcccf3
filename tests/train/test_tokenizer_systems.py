"""Every published system in configs/tokenize whose network is small trains for 20 steps and freezes."""

from pathlib import Path

import pytest
import torch

from tessera.tokenize.config import check_config, override, read_yaml
from tessera.tokenize.files import write_safetensors
from tessera.tokenize.media import write_audio
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.tokenizer_trainer import TokenizerTrainConfig, train_tokenizer

FOLDER = Path(__file__).resolve().parent.parent.parent / "configs" / "tokenize"
SMALL = {
    "picture": ["tokenizer.features=8", "train.batch=2"],
    "audio": [
        "tokenizer.encoder={width: 16, layers: 1, kernel: 3}",
        "tokenizer.decoder={width: 16, layers: 1, kernel: 3}",
        "train.crop_seconds=0.32",
        "train.batch=2",
    ],
}
"""Tests look whether a config works, not how well."""


def systems() -> list[str]:
    """Names of the files that benchmarks/tokenizer_claims.py trains: those on patches and on the bundled speech."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        data = read_yaml(path)
        named = "kind" in data["tokenizer"].get("encoder", {})  # a network of its own: test_network_configs.py
        if data["data"]["path"] in ("out/patches-16/train.safetensors", "samples/speech/train") and not named:
            found.append(path.stem)
    return found


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Pictures, recordings, and a file of code vectors."""
    folder, generator = tmp_path_factory.mktemp("media"), torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(24, 3, 4, 4, generator=generator), size=16, mode="bilinear")
    images = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    write_safetensors(folder / "pictures.safetensors", {"images": images}, {})
    write_safetensors(folder / "centres.safetensors", {"centres": torch.randn(4096, 12, generator=generator)}, {})
    for number in range(3):
        time = torch.arange(8000 + 1000 * number) / 16000
        write_audio(folder / f"{number}.wav", 0.5 * torch.sin(2 * torch.pi * (200 + 100 * number) * time)[None], 16000)
    return folder


@pytest.mark.parametrize("system", systems())
def test_a_system_trains_and_its_codes_decode(system, media, tmp_path):
    data = read_yaml(FOLDER / f"{system}.yaml")
    kind = data["tokenizer"]["kind"]
    path = media / "pictures.safetensors" if kind == "picture" else media
    steps = "stages.0.steps=20" if "stages" in data else "train.steps=20"
    sets = [*SMALL[kind], f"data.path={path}", steps, "train.warmup_steps=2"]
    if system == "vqgan-lc":
        sets.append(f"tokenizer.quantizer.codebook.file.path={media / 'centres.safetensors'}")
    config = check_config(override(data, sets), TokenizerTrainConfig, system)
    trained = train_tokenizer(config, tmp_path / "t", progress=False)
    loaded = load_tokenizer(tmp_path / "t")
    assert trained is not None and loaded.spec == trained.spec
    given = torch.zeros(1, 3, 16, 16) if kind == "picture" else torch.zeros(1, 1, 16 * 320)
    codes = loaded.encode(given).codes
    assert codes.shape[1] == loaded.spec.num_codebooks and bool((codes >= 0).all())
    assert loaded.decode(codes).shape == given.shape
