"""Discriminators, over a table: they learn to tell, and an item's loss is its own."""

import math

import pytest
import torch

from tessera.configs.schema import ConfigError, check_config
from tessera.train.discriminators.registry import GAMES, LECAM_DECAY, Discriminators, DiscriminatorsConfig
from tessera.train.distributed.process_group import ProcessGroup

SMALL = {
    "stft": {"kind": "stft", "windows": [64, 128], "channels": 4, "layers": 2},
    "period": {"kind": "period", "periods": [2, 3], "channels": 4, "layers": 2},
    "bands": {"kind": "bands", "windows": [64], "channels": 4, "layers": 3},
    "patch": {"kind": "patch", "channels": 8, "layers": 2},
}
LOSSES = sorted(GAMES)
each = pytest.mark.parametrize("kind", SMALL)


def judges(kind, **changes):
    torch.manual_seed(0)
    config = check_config({"nets": [SMALL[kind]], **changes}, DiscriminatorsConfig)
    return Discriminators(config, channels=3 if kind == "patch" else 1)


def media(kind, count=4):
    if kind == "patch":
        rows = torch.linspace(-1, 1, 16).view(1, 1, 16, 1).expand(count, 3, 16, 16)
        return rows.clone(), torch.randn(count, 3, 16, 16)
    return torch.sin(torch.arange(1000) / 5)[None].repeat(count, 1), torch.randn(count, 1000)


@pytest.mark.sample(2)
@each
@pytest.mark.parametrize("loss", LOSSES)
def test_they_learn_to_tell_and_their_gradient_reaches_the_fake(kind, loss):
    net = judges(kind, loss=loss)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    real, fake = media(kind)
    first = net(real, fake).mean().item()
    for _ in range(15):
        optimizer.zero_grad()
        net(real, fake).mean().backward()
        optimizer.step()
    assert net(real, fake).mean().item() < 0.6 * first
    fake.requires_grad_()
    adversarial, features = net.fool(real, fake)
    (gradient,) = torch.autograd.grad((adversarial + features).sum(), fake)
    assert float(gradient.abs().sum()) > 0 and bool(gradient.isfinite().all())
    net(real, fake).sum().backward()
    assert fake.grad is None, "the judges' own loss must not teach the tokenizer"


@each
def test_the_loss_of_an_item_is_its_own(kind):
    net = judges(kind)
    real, fake = media(kind, 3)
    together, alone = net(real, fake), torch.cat([net(real[i : i + 1], fake[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    for found, wanted in zip(net.fool(real, fake), net.fool(real[1:2], fake[1:2]), strict=True):
        torch.testing.assert_close(found[1:2], wanted, atol=1e-5, rtol=1e-4)


@each
def test_features_of_the_same_media_are_no_distance_apart(kind):
    real, _ = media(kind)
    assert bool((judges(kind).fool(real, real)[1] == 0).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_games_against_their_papers(loss):
    on_real, on_fake, wish = GAMES[loss]
    for score in (-2.0, -0.5, 0.0, 0.7, 3.0):
        sigmoid = 1 / (1 + math.exp(-score))
        wanted = {
            "hinge": (max(0, 1 - score), max(0, 1 + score), max(0, 1 - score)),
            "non_saturating": (-math.log(sigmoid), -math.log(1 - sigmoid), -math.log(sigmoid)),
            "least_squares": ((score - 1) ** 2, score**2, (score - 1) ** 2),
        }[loss]
        found = [float(part(torch.tensor(score))) for part in (on_real, on_fake, wish)]
        assert found == pytest.approx(wanted, abs=1e-6)


def test_a_period_folds_the_waveform():
    """A wave of the period is constant down every column, so the judge of that period sees one row repeated."""
    net = judges("period").nets[1]
    wave = torch.tensor([0.5, -1.0, 2.0]).repeat(40)[None]
    _, features = net(wave)
    inner = features[0][:, :, 2:-2]  # the ends see padding
    assert torch.allclose(inner, inner[:, :, :1].expand_as(inner), atol=1e-6) and inner.shape[3] == 3


def test_bands_cover_the_spectrum_once():
    net = judges("bands").nets[0]
    assert [low for low, _ in net.bands][1:] == [high for _, high in net.bands][:-1]
    assert net.bands[0][0] == 0 and net.bands[-1][1] == 33
    with pytest.raises(ConfigError, match="edges must rise from 0.0 to 1.0"):
        check_config({"nets": [SMALL["bands"] | {"edges": [0.0, 0.6, 0.5, 1.0]}]}, DiscriminatorsConfig)


def test_lecam_pulls_scores_towards_the_average_of_the_other_side():
    net, plain = judges("patch", lecam=0.5), judges("patch")
    real, fake = media("patch")
    first = net(real, fake)
    scores = [plain.nets[0](x)[0].flatten(1) for x in (real, fake)]
    penalty = [(scores[0]).clamp_min(0).square().mean(1), (-scores[1]).clamp_min(0).square().mean(1)]
    torch.testing.assert_close(first, plain(real, fake) + 0.5 * (penalty[0] + penalty[1]), atol=1e-5, rtol=1e-4)
    net.update(ProcessGroup(0, 1, torch.device("cpu")))
    wanted = (1 - LECAM_DECAY) * torch.stack([score.mean() for score in scores])
    torch.testing.assert_close(net.averages[:, 0], wanted, atol=1e-6, rtol=1e-4)
