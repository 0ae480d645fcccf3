"""Configs of the networks: small ones train for 20 steps on bundled media, those of papers have the public sizes."""

import shutil
from pathlib import Path

import pytest
import torch

from tessera.configs.schema import check_config, override, read_yaml
from tessera.tokenize.kinds import NETS
from tessera.tokenize.layers.weight_norm import fold_norms
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, train_tokenizer

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


@pytest.mark.sample(1)
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


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", [*PUBLIC, "wavtokenizer-24khz", "titok-l32", "one-d-piece-l256", "seed-tokens"])
def test_a_network_of_a_paper_builds_at_its_size(name):
    config = config_of(name).tokenizer
    with torch.device("meta"):
        net = NETS[config.kind](config)
        if name.startswith("dac"):
            fold_norms(net)
    million = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert million == pytest.approx(PUBLIC[name], rel=1e-6) if name in PUBLIC else million > 50


PUBLISHED = {
    # The published configs: facebook/encodec_24khz and encodec_32khz (revision 2f57de7), kyutai/mimi,
    # novateur/WavTokenizer, descript/dac_44khz.
    "encodec-24khz": {
        **{"sample_rate": 24000, "hop": 320, "latent_dim": 128},
        **{"causal": True, "padding": "reflect", "shortcut": "convolution", "lstm_layers": 2, "norm": "weight"},
        **{"channels": 32, "ratios": [8, 5, 4, 2], "kernel": 7, "last_kernel": 7, "residual_kernel": 3, "compress": 2},
        **{"dilation_growth": 2, "residual_layers": 1, "trim_right": 1.0},
    },
    "encodec-32khz": {
        **{"sample_rate": 32000, "hop": 640, "latent_dim": 128},
        **{"causal": False, "padding": "reflect", "shortcut": "identity", "lstm_layers": 2, "norm": "weight"},
        **{"channels": 64, "ratios": [8, 5, 4, 4], "kernel": 7, "last_kernel": 7, "residual_kernel": 3, "compress": 2},
    },
    "mimi": {
        **{"sample_rate": 24000, "hop": 1920, "latent_dim": 512},
        **{"causal": True, "padding": "zeros", "shortcut": "identity", "lstm_layers": 0, "norm": "none"},
        **{"channels": 64, "ratios": [8, 6, 5, 4], "kernel": 7, "last_kernel": 3, "residual_kernel": 3, "compress": 2},
    },
    "dac-44khz": {"sample_rate": 44100, "hop": 512, "latent_dim": 1024},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_has_its_published_settings(name):
    config = config_of(name).tokenizer.model_dump(mode="json")
    for setting, wanted in PUBLISHED[name].items():
        sides = [config] if setting in config else [config["encoder"], config["decoder"]]
        assert all(side[setting] == wanted for side in sides), setting


def test_published_quantizers_have_their_published_sizes():
    def quantizer(name):
        return config_of(name).tokenizer.model_dump(mode="json")["quantizer"]

    assert (quantizer("encodec-24khz")["levels"], quantizer("encodec-24khz")["quantizer"]["size"]) == (32, 1024)
    assert (quantizer("encodec-32khz")["levels"], quantizer("encodec-32khz")["quantizer"]["size"]) == (4, 2048)
    dac = quantizer("dac-44khz")
    assert (dac["levels"], dac["quantizer"]["size"], dac["quantizer"]["code_dim"]) == (9, 1024, 8)
    assert dac["quantizer"]["normalise"] and dac["quantizer"]["keep_length"]
    branches = quantizer("mimi")["branches"]
    semantic, acoustic = branches["semantic"]["quantizer"], branches["acoustic"]["quantizer"]
    assert (semantic["dim"], semantic["quantizer"]["size"]) == (256, 2048)
    assert (acoustic["dim"], acoustic["quantizer"]["levels"], acoustic["quantizer"]["quantizer"]["size"]) == (
        *(256, 31, 2048),
    )
    bottleneck = config_of("mimi").tokenizer.model_dump(mode="json")["encoder"]["bottleneck"]
    wanted = {"stride": 2, "padding": "replicate", "layers": 8, "heads": 8, "feed_forward": 2048, "window": 250}
    assert {setting: bottleneck[setting] for setting in wanted} == wanted
    encoder = config_of("wavtokenizer-24khz").tokenizer.encoder
    assert (encoder.padding, encoder.causal, encoder.shortcut) == ("reflect", False, "convolution")
