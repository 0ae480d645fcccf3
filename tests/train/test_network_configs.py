"""Configs of the networks: small ones train for 20 steps on bundled media, those of papers have the public sizes."""

import shutil
from pathlib import Path

import pytest
import torch

from tessera.tokenize.config import check_config, override, read_yaml
from tessera.tokenize.padded_conv import fold_norms
from tessera.tokenize.tokenizer import NETS, load_tokenizer
from tessera.train.tokenizer_trainer import TokenizerTrainConfig, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "configs" / "tokenize"
SMALL = ["seanet-small", "dac-small", "mimi-small", "vqgan-small", "one-d-piece-small", "seed-small"]
PUBLIC = {
    "encodec-24khz": 14.85181,
    "encodec-32khz": 56.884674,
    "dac-44khz": 76.620777,
    "mimi": 79.308609,
    "llamagen-vq16": 71.883403,
    "llamagen-vq8": 70.109835,
}
"""Million parameters of the public models (of transformers' own for the first four), folded where they are folded."""


def config_of(name, sets=()):
    return check_config(override(read_yaml(FOLDER / f"{name}.yaml"), sets), TokenizerTrainConfig, name)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_trains_and_its_codes_decode(name, tmp_path):
    sets = [
        "train.steps=20",
        "train.batch=2",
        "train.warmup_steps=2",
        f"data.path={ROOT}/samples/digits/test.safetensors",
    ]
    audio = config_of(name).tokenizer.kind == "audio"
    if audio:
        (tmp_path / "sounds").mkdir()
        for path in sorted((ROOT / "samples/speech/train").glob("*.flac"))[:2]:
            shutil.copy(path, tmp_path / "sounds")
        sets[-1:] = [f"data.path={tmp_path}/sounds", "data.labels=none", "train.crop_seconds=0.08"]
        sets += ["train.batch=1", "tokenizer.encoder.chunk=4", "tokenizer.decoder.chunk=4"]
    trained = train_tokenizer(config_of(name, sets), tmp_path / "t", progress=False)
    loaded = load_tokenizer(tmp_path / "t")
    assert trained is not None and loaded.spec == trained.spec
    given = torch.rand(1, 1, loaded.config.hop * 3) if audio else torch.rand(1, 1, 8, 8)
    codes = loaded.encode(given).codes
    assert bool((codes >= 0).all()) and loaded.decode(codes).shape == given.shape


@pytest.mark.parametrize("name", [*PUBLIC, "wavtokenizer-24khz", "titok-l32", "one-d-piece-l256", "seed-tokens"])
def test_a_network_of_a_paper_builds_at_its_size(name):
    config = config_of(name).tokenizer
    with torch.device("meta"):
        net = NETS[config.kind](config)
        if name.startswith("dac"):
            fold_norms(net)
    million = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert million == pytest.approx(PUBLIC[name], rel=1e-6) if name in PUBLIC else million > 50
