"""A stereo tokenizer is trained on both channels, and tells them apart."""

import pytest
import torch

from tessera.configs.schema import check_config
from tessera.tokenize.audio.networks import AudioNet
from tessera.tokenize.data.corpus import FolderCorpus, open_corpus
from tessera.tokenize.data.media import write_audio
from tessera.train.common.metrics import read_metrics
from tessera.train.evaluation.tokenizer_eval import evaluate_tokenizer
from tessera.train.losses.base import LossContext, MediaBatch
from tessera.train.losses.registry import make_losses
from tessera.train.tokenizer.dataset import MediaInMemory
from tessera.train.tokenizer.objective import TokenizerObjective
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, train_tokenizer

RATE, HOP = 4000, 40


@pytest.fixture
def stereo(tmp_path):
    """Left plays a low tone, right a high one that is three times as quiet."""
    for number in range(6):
        time = torch.arange(1600 + 200 * number) / RATE
        low, high = (torch.sin(2 * torch.pi * tone * (1 + number / 20) * time) for tone in (200, 1400))
        write_audio(tmp_path / f"{number}.wav", torch.stack([0.6 * low, 0.2 * high]), RATE)
    stack = {"width": 24, "layers": 1, "kernel": 3, "chunk": 8}
    rvq = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 16}}
    return {
        "data": {"kind": "folder", "path": str(tmp_path), "labels": "none"},
        "tokenizer": {
            "kind": "audio", "name": "s", "sample_rate": RATE, "channels": 2, "hop": HOP, "window": 160,
            "latent_dim": 16, "encoder": stack, "decoder": stack, "quantizer": rvq,
        },
        "train": {"steps": 40, "batch": 4, "crop_seconds": 0.3, "lr": 5e-3, "warmup_steps": 2, "log_every": 1},
    }  # fmt: skip


def energy(samples: torch.Tensor, low: int, high: int) -> float:
    """Share of the energy of samples [N] between two frequencies."""
    power = torch.fft.rfft(samples).abs().square()
    hertz = torch.fft.rfftfreq(len(samples), 1 / RATE)
    return float(power[(hertz >= low) & (hertz < high)].sum() / power.sum())


@pytest.mark.slow
def test_left_and_right_stay_where_they_are(stereo, tmp_path):
    stereo["terms"] = [
        *({"kind": kind} for kind in ("mel", "spectrum", "waveform", "quantizer", "adversarial", "features")),
        {"kind": "perceptual", "teacher": {"kind": "mel", "window": 256, "bands": 16}, "weight": 0.1},
        {"kind": "distil", "teacher": {"kind": "mfcc", "window": 256, "bands": 16, "coefficients": 8}, "weight": 0.1},
    ]
    stereo["judges"] = {"nets": [{"kind": "stft", "windows": [256], "channels": 4, "layers": 2}], "first_step": 30}
    stereo["judges"]["seconds"] = 0.2
    tokenizer = train_tokenizer(check_config(stereo, TokenizerTrainConfig), tmp_path / "t", progress=False)
    rows = read_metrics(tmp_path / "t")
    assert rows[-1]["mel"] < 0.8 * rows[0]["mel"] and any("judge" in row for row in rows)
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    wanted = corpus.media(0, tokenizer.spec.geometry)
    found = tokenizer.decode(tokenizer.encode(wanted[None]).codes)[0]
    assert found.shape == (2, 1600)
    assert energy(found[0], 0, 700) > 0.8 and energy(found[1], 700, 2000) > 0.8
    report = evaluate_tokenizer(tokenizer, corpus, progress=False).report
    assert report.stability.stable and report.fidelity["log_mel"].items == 6


def test_media_in_memory_keep_their_channels(stereo):
    media = MediaInMemory(check_config(stereo, TokenizerTrainConfig).resolved(), show=False)
    batch = media.batch(0, media.rows(0), 0, 4)
    assert batch.media.shape == (4, 2, 1200) and batch.sample_mask.shape == (4, 1200)
    assert energy(batch.media[0, 0], 0, 700) > 0.9 and energy(batch.media[0, 1], 700, 2000) > 0.9


def batch_of(media: torch.Tensor) -> MediaBatch:
    count, frames = len(media), media.shape[-1] // HOP
    mask, labels = torch.ones(count, media.shape[-1], dtype=torch.bool), torch.full((count,), -1)
    whole, texts = torch.ones(count, dtype=torch.bool), [None] * count
    return MediaBatch(media, mask, mask[:, ::HOP], whole, labels, texts, count, count * frames, labels, texts)


@pytest.mark.parametrize("kind", ["mel", "spectrum", "waveform"])
def test_the_loss_of_an_item_is_the_mean_over_what_is_heard(stereo, kind):
    config = check_config(stereo, TokenizerTrainConfig).tokenizer
    terms = make_losses([term for term in check_terms([{"kind": kind}], stereo)], LossContext(config.geometry, 16, 2))
    objective = TokenizerObjective(AudioNet(config), terms, "float32")
    media = torch.rand(3, 2, 60 * HOP) - 0.5
    found = (torch.rand(3, 2, 60 * HOP) - 0.5).requires_grad_()
    losses = objective.output_losses(objective.view(batch_of(media), found), {kind: 1.0})[kind]
    assert losses.shape == (3,)
    alone = []
    for mix in ((1, 0), (0, 1), (0.5, 0.5), (0.5, -0.5)):
        weights = torch.tensor(mix)[None, :, None]
        view = objective.view(batch_of((media * weights).sum(1)), (found * weights).sum(1))
        alone.append(objective.output_losses(view, {kind: 1.0})[kind])
    assert torch.allclose(losses, torch.stack(alone).mean(0), rtol=1e-5)
    losses.sum().backward()
    assert bool((found.grad.abs().amax(-1) > 0).all())


def check_terms(terms, stereo):
    return check_config(stereo | {"terms": terms}, TokenizerTrainConfig).terms


def test_a_mono_recording_is_silent_in_the_difference(stereo):
    """What tells left from right costs something even where both fit by their spectra alone."""
    config = check_config(stereo, TokenizerTrainConfig).tokenizer
    terms = make_losses(check_terms([{"kind": "mel"}], stereo), LossContext(config.geometry, 16, 2))
    objective = TokenizerObjective(AudioNet(config), terms, "float32")
    sound = torch.rand(1, 60 * HOP) - 0.5
    media, turned = torch.stack([sound, sound], 1), torch.stack([sound, -sound], 1)
    same, other = (
        float(objective.output_losses(objective.view(batch_of(media), found), {"mel": 1.0})["mel"])
        for found in (media, turned)
    )
    assert same < 1e-6 and other > 0.1
