"""Every YAML file under configs/ loads as what its name says; the small ones run two steps (slow)."""

from pathlib import Path

import pytest

from tessera.configs.schema import Config, read_config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = ("demo",)


def kind_of(path: Path) -> type[Config]:
    """The config class of a file, told by the first word of its name: tokenizer, align, shards, coder or lm. All in
    configs/lm are lm, all in configs/tokenize tokenizer."""
    folders = {"lm": "lm", "tokenize": "tokenizer"}
    word = folders.get(path.parent.name) or path.stem.split("-")[0].split("_")[0]
    if word == "tokenizer":
        from tessera.train.tokenizer.trainer import TokenizerTrainConfig

        return TokenizerTrainConfig
    if word == "align":
        from tessera.train.align.config import AlignConfig

        return AlignConfig
    if word == "shards":
        from tessera.tokenize.data.shards_config import ShardsConfig

        return ShardsConfig
    if word == "coder":
        from tessera.train.entropy_coder import CoderTrainConfig

        return CoderTrainConfig
    if word == "lm":
        from tessera.train.lm.config import TrainConfig

        return TrainConfig
    raise AssertionError(
        f"{path}: name it tokenizer, align, shards, coder or lm, perhaps with a word after it (lm-large.yaml)"
    )


def test_there_are_configs():
    assert {path.parent.name for path in CONFIGS} >= {"demo", "digits", "lm", "speech"}


@pytest.mark.sample(40)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_loads(path):
    assert isinstance(read_config(path, kind_of(path)), Config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_says_how_to_run_it(path):
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    assert any("tessera " in line for line in head), "the first lines are comments that give the command"


@pytest.mark.sample(6)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_refuses_a_typo(path):
    kind = kind_of(path)
    field = sorted(kind.model_fields)[0]
    with pytest.raises(ValueError, match=f"{field}x: unknown key; did you mean '{field}'"):
        read_config(path, kind, [f"{field}x=1"])


@pytest.mark.slow
@pytest.mark.parametrize("folder", SMALL)
def test_small_configs_run_two_steps(folder, tmp_path, monkeypatch):
    from tessera.cli.app import run

    monkeypatch.chdir(ROOT)
    configs, out = ROOT / "configs" / folder, tmp_path
    few = ["--set", "train.steps=2", "--set", "train.batch=8"]
    tokenizer = ["tokenizer", "train", f"{configs}/tokenizer.yaml", *few, "--out", f"{out}/tokenizer"]
    assert run([str(part) for part in tokenizer]) == 0
    for split in ("train", "test"):
        data = f"samples/digits/{split}.safetensors"
        sets = {"tokenizer": out / "tokenizer", "corpus.path": data, "out": out / split}
        overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        assert run(["shards", f"{configs}/shards.yaml", *overrides]) == 0
    sets = {"tokenizer": out / "tokenizer", "data.shards": out / "train", "data.test": out / "test"}
    overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    engines = ["--set", "engine={kind: torch}"]
    assert run(["train", f"{configs}/lm.yaml", *few, *overrides, *engines, "--out", f"{out}/lm"]) == 0
    assert (out / "lm" / "FINISHED").is_file() and (out / "lm" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_own_music_runs_two_steps(tmp_path, monkeypatch):
    """Stereo, windows, no conditions: tokenizer, shards, model and a sample of both channels."""
    import torch

    from tessera.cli.app import run
    from tessera.tokenize.data.media import read_audio, write_audio

    monkeypatch.chdir(ROOT)
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        path = tmp_path / "music" / "ab"[number % 2] / f"{number}.wav"
        write_audio(path, torch.rand(2, 9000, generator=generator) - 0.5, 8000)
    small = {
        "tokenizer.sample_rate": 8000, "tokenizer.hop": 160, "tokenizer.window": 640, "tokenizer.latent_dim": 16,
        "tokenizer.encoder": "{width: 16, layers: 1, kernel: 3}",
        "tokenizer.decoder": "{width: 16, layers: 1, kernel: 3}",
        "tokenizer.quantizer.quantizer.size": 16, "tokenizer.quantizer.levels": 2, "train.batch": 2,
        "train.crop_seconds": 0.3, "train.steps": 2, "losses.adversarial_from": 0, "losses.adversarial_seconds": 0.2,
        "data.path": tmp_path / "music",
    }  # fmt: skip
    own, out = "configs/own-music", tmp_path

    def call(verb: list[str], config: str, sets: dict, *rest: str) -> None:
        overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        assert run([*verb, f"{own}/{config}.yaml", *overrides, *rest]) == 0

    call(["tokenizer", "train"], "tokenizer", small, "--out", f"{out}/tokenizer")
    for part in ("train", "test"):
        split = {"split.part": part, "split.test_share": 0.4, "window_seconds": 0.5, "out": out / part}
        call(["shards"], "shards", {"corpus.path": out / "music", "tokenizer": out / "tokenizer"} | split)
    sets = {"tokenizer": out / "tokenizer", "data.shards": out / "train", "data.test": out / "test"}
    sets |= {"train.steps": 2, "train.batch": 2, "lm.width": 16, "lm.layers": 1, "lm.heads": 2}
    call(["train"], "lm", sets | {"engine": "{kind: torch}", "generation.max_frames": 25}, "--out", f"{out}/lm")
    assert run(["generate", f"{out}/lm/model", "--seed", "0", "-o", f"{out}/x.wav"]) == 0
    samples = read_audio(out / "x.wav", 8000, 2)
    assert samples.shape == (2, 25 * 160) and not torch.equal(samples[0], samples[1])
