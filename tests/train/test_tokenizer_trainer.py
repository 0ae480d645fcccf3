"""Training a tokenizer: it learns, the same seed gives the same tokenizer, and what goes wrong is said in one line."""

import json
from itertools import pairwise

import pytest
import torch

from tessera.tokenize.config import ConfigError, check_config
from tessera.tokenize.files import write_safetensors
from tessera.tokenize.media import write_audio
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.discriminator import DiscriminatorConfig, Discriminators
from tessera.train.tokenizer_losses import RESOLUTIONS, magnitudes, mel_filters, spectral_losses
from tessera.train.tokenizer_trainer import TokenizerTrainConfig, cosine_factor, train_tokenizer

RVQ = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 8}}


@pytest.fixture
def pictures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 8, 8), generator=generator).to(torch.uint8)
    images[:, ::2] = 0
    write_safetensors(tmp_path / "p.safetensors", {"images": images, "labels": torch.arange(24) % 3}, {})
    return {
        "data": {"kind": "arrays", "path": str(tmp_path / "p.safetensors")},
        "tokenizer": {
            "kind": "picture", "name": "p", "height": 8, "width": 8, "channels": 1,
            "features": 8, "blocks": 1, "latent_dim": 8, "quantizer": RVQ,
        },
        "train": {"steps": 30, "batch": 8, "lr": 5e-3, "warmup_steps": 5, "log_every": 1},
    }  # fmt: skip


@pytest.fixture
def sounds(tmp_path):
    for number in range(4):
        time = torch.arange(1000 + 400 * number) / 4000
        write_audio(tmp_path / f"{number}.wav", 0.5 * torch.sin(2 * torch.pi * (200 + 100 * number) * time)[None], 4000)
    stack = {"width": 16, "layers": 1, "kernel": 3, "chunk": 8}
    return {
        "data": {"kind": "folder", "path": str(tmp_path), "labels": "none"},
        "tokenizer": {
            "kind": "audio", "name": "s", "sample_rate": 4000, "hop": 40, "window": 160, "latent_dim": 8,
            "encoder": stack, "decoder": stack, "quantizer": RVQ,
        },
        "train": {"steps": 16, "batch": 4, "crop_seconds": 0.3, "lr": 5e-3, "warmup_steps": 2, "log_every": 1},
        "losses": {"kind": "audio", "adversarial_from": 10, "adversarial_every": 2, "adversarial_seconds": 0.2},
        "discriminator": {"windows": [256], "channels": 4, "layers": 2},
    }  # fmt: skip


def run(data, out):
    tokenizer = train_tokenizer(check_config(data, TokenizerTrainConfig), out, progress=False)
    return tokenizer, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_pictures_are_learned_and_the_same_seed_gives_the_same_tokenizer(pictures, tmp_path):
    tokenizer, rows = run(pictures, tmp_path / "a")
    assert len(rows) == 30 and rows[-1]["squared"] < 0.7 * rows[0]["squared"]
    assert load_tokenizer(tmp_path / "a").spec == tokenizer.spec
    again, _ = run(pictures, tmp_path / "b")
    assert again.spec.fingerprint == tokenizer.spec.fingerprint
    other, _ = run(pictures | {"seed": 1}, tmp_path / "c")
    assert other.spec.fingerprint != tokenizer.spec.fingerprint


def test_sound_is_learned_and_judged(sounds, tmp_path):
    tokenizer, rows = run(sounds, tmp_path / "a")
    assert rows[-1]["mel"] < rows[0]["mel"] and rows[-1]["spectrum"] < rows[0]["spectrum"]
    judged = [row["step"] for row in rows if "judge" in row]
    assert judged == [10, 12, 14]
    codes = tokenizer.encode(torch.randn(1, 1, 500) * 0.1)
    assert tokenizer.decode(codes.codes).shape == (1, 1, 13 * 40)


def test_a_tokenizer_is_never_overwritten(pictures, tmp_path):
    pictures["train"]["steps"] = 1
    run(pictures, tmp_path / "a")
    with pytest.raises(FileExistsError, match="holds a tokenizer already"):
        run(pictures, tmp_path / "a")


def test_losses_that_are_not_finite_stop_the_run(pictures, tmp_path):
    pictures["losses"] = {"kind": "picture", "squared": 1e39}  # beyond float32: infinite
    with pytest.raises(ValueError, match="not finite 3 times in a row"):
        run(pictures, tmp_path / "a")
    assert not (tmp_path / "a" / "config.json").exists()


def test_losses_of_another_kind_are_refused(pictures):
    with pytest.raises(ConfigError, match="losses are for audio, the tokenizer is for picture"):
        check_config(pictures | {"losses": {"kind": "audio"}}, TokenizerTrainConfig)


def test_padding_does_not_count_in_the_spectral_losses():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 4000)
    mask = torch.ones(1, 4000, dtype=torch.bool)
    mask[:, 3000:] = False
    changed = a.clone()
    changed[:, 3000:] = 7.0
    assert spectral_losses(a, b, mask, 16000) == spectral_losses(changed, b, mask, 16000)
    assert all(float(value) == 0 for value in spectral_losses(a, a, mask, 16000))


@pytest.mark.parametrize("size, bands", RESOLUTIONS)
def test_mel_filters_against_a_loop(size, bands):
    filters = mel_filters(16000, size, bands)
    assert filters.shape == (size // 2 + 1, bands)
    assert torch.allclose(filters.sum(0), torch.ones(bands), atol=1e-5), "every band hears something"
    top = 2595 * torch.log10(torch.tensor(1 + 8000 / 700))
    edges = [float(700 * (10 ** (top * i / (bands + 1) / 2595) - 1)) for i in range(bands + 2)]
    for band in (bands // 2, bands - 1):
        peak = float(filters[:, band].argmax()) * 16000 / size
        assert abs(peak - edges[band + 1]) <= 16000 / size


def test_magnitudes_of_noise_are_near_one_at_every_resolution():
    noise = torch.randn(1, 32000, generator=torch.Generator().manual_seed(0))
    for size, _ in RESOLUTIONS:
        assert abs(float(magnitudes(noise, size).square().mean()) - 1) < 0.1


def test_discriminators_learn_to_tell_and_their_gradient_reaches_the_fake():
    torch.manual_seed(0)
    judges = Discriminators(DiscriminatorConfig(windows=(64, 128), channels=4, layers=2))
    optimizer = torch.optim.Adam(judges.parameters(), lr=1e-2)
    real, fake = torch.sin(torch.arange(2000) / 5)[None].repeat(4, 1), torch.randn(4, 2000)
    first = judges.loss(real, fake).item()
    for _ in range(15):
        optimizer.zero_grad()
        judges.loss(real, fake).backward()
        optimizer.step()
    assert judges.loss(real, fake).item() < 0.5 * first
    fake.requires_grad_()
    adversarial, features = judges.generator_losses(real, fake)
    (adversarial + features).backward()
    assert float(fake.grad.abs().sum()) > 0 and bool(fake.grad.isfinite().all())


def test_the_learning_rate_warms_up_and_falls():
    rates = [cosine_factor(step, 100, 10) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[10] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:])) and 0.02 <= rates[-1] < 0.03
