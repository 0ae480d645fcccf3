"""Every published system in configs/tokenize whose network is small trains for a few steps and freezes."""

from pathlib import Path

import pytest
import torch

from tessera.configs.files import write_safetensors
from tessera.configs.schema import check_config, override, read_yaml
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, train_tokenizer

STEPS = 8
FOLDER = Path(__file__).resolve().parent.parent.parent / "configs" / "tokenize"
BUNDLED = FOLDER.parent.parent / "bundled" / "speech" / "tokenizer"
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
DIGITS = "samples/digits/train.safetensors"
WHOLE = ["train.crop_seconds=0.7"]
OWN = {
    "vqgan-lc": ["tokenizer.quantizer.codebook.file.path=MEDIA/centres.safetensors"],
    "titok-stages": ["terms.2.tokenizer=MEDIA/vq-vae"],
    "vqgan-compression": [
        "tokenizer.quantizer.codebook.file.path=MEDIA/vq-vae/tokenizer.safetensors",
        "init.from=MEDIA/vq-vae",
    ],
    "x-codec": [
        "tokenizer.encoder.acoustic={width: 16, layers: 1, kernel: 3}",
        f"init.from={BUNDLED}",
        f"terms.3.teacher.path={BUNDLED}",
    ],
    "distilcodec": [
        "tokenizer.encoder={width: 160, layers: 4, kernel: 7}",
        "tokenizer.decoder={width: 192, layers: 6, kernel: 7, causal: true}",
        "tokenizer.quantizer.size=64",
        f"init.from={BUNDLED}",
    ],
    **dict.fromkeys(("qdac", "cosyvoice", "glm-4-voice", "xy-tokenizer-stages"), WHOLE),
}
"""Settings of single systems: files that stand elsewhere here, excerpts that hold a whole recording."""


def cases() -> list:
    """Names of the files for patches, the bundled digits and the bundled speech: the first of each kind of network, and
    the others, which are slow."""
    seen, found = set(), []
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.stem.endswith("-small"):  # test_network_configs.py
            continue
        data = read_yaml(path)
        if data["data"]["path"] not in ("out/patches-16/train.safetensors", DIGITS, "samples/speech/train"):
            continue
        tokenizer = data["tokenizer"]
        network = (tokenizer["kind"], *(tokenizer.get(side, {}).get("kind") for side in ("encoder", "decoder")))
        found.append(pytest.param(path.stem, marks=[pytest.mark.slow] if network in seen else []))
        seen.add(network)
    return found


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Pictures, recordings with texts, a file of code vectors, and the tokenizer of vq-vae.yaml."""
    folder, generator = tmp_path_factory.mktemp("media"), torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(24, 3, 4, 4, generator=generator), size=16, mode="bilinear")
    images = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    write_safetensors(folder / "pictures.safetensors", {"images": images}, {})
    write_safetensors(folder / "centres.safetensors", {"centres": torch.randn(4096, 12, generator=generator)}, {})
    for number in range(3):
        time = torch.arange(8000 + 1000 * number) / 16000
        write_audio(folder / f"{number}.wav", 0.5 * torch.sin(2 * torch.pi * (200 + 100 * number) * time)[None], 16000)
        (folder / f"{number}.txt").write_text("ab", encoding="utf-8")
    sets = [*SMALL["picture"], f"data.path={folder / 'pictures.safetensors'}", "train.steps=1"]
    other = check_config(override(read_yaml(FOLDER / "vq-vae.yaml"), sets), TokenizerTrainConfig)
    train_tokenizer(other, folder / "vq-vae", progress=False)
    return folder


@pytest.mark.sample(3)
@pytest.mark.parametrize("system", cases())
def test_a_system_trains_and_its_codes_decode(system, media, tmp_path):
    data = read_yaml(FOLDER / f"{system}.yaml")
    kind = data["tokenizer"]["kind"]
    path = media / "pictures.safetensors" if kind == "picture" else media
    path = FOLDER.parent.parent / DIGITS if data["data"]["path"] == DIGITS else path
    stages = [number for number, stage in enumerate(data.get("stages", [])) if stage["kind"] == "train"]
    steps = [f"stages.{number}.steps={STEPS if number == stages[-1] else 2}" for number in stages]
    steps = steps or [f"train.steps={STEPS}"]
    own = data["tokenizer"].get("encoder", {}).get("kind") in ("fused", "mel2d")  # which are small, and their point
    small = SMALL[kind] if not own else [setting for setting in SMALL[kind] if "encoder" not in setting]
    sets = [*small, f"data.path={path}", *steps, "train.warmup_steps=2", *OWN.get(system, [])]
    sets = [setting.replace("MEDIA", str(media)) for setting in sets]
    config = check_config(override(data, sets), TokenizerTrainConfig, system)
    trained = train_tokenizer(config, tmp_path / "t", progress=False)
    loaded = load_tokenizer(tmp_path / "t")
    assert trained is not None and loaded.spec == trained.spec
    size = loaded.spec.geometry
    given = torch.zeros(1, size.channels, size.height, size.width) if kind == "picture" else torch.zeros(1, 1, 16 * 320)
    codes = loaded.encode(given).codes
    assert codes.shape[1] == loaded.spec.num_codebooks and bool((codes >= 0).all())
    assert loaded.decode(codes).shape == given.shape
