"""Resampling: against the analytic answer, and the same however the input is cut."""

import math

import pytest
import torch

from tessera.tokenize.audio.resample import Resampler, resample

RATES = [
    (22050, 16000), (16000, 22050), (48000, 16000), (44100, 16000), (8000, 16000), (192000, 16000), (9001, 4001),
    (192000, 4000), (4000, 48000), (16000, 16000),
]  # fmt: skip


@pytest.mark.parametrize("old, new", RATES)
def test_tone_stays_the_same_tone(old, new):
    frequency = 0.35 * min(old, new)
    length = 40 * max(1, old // new) * 40
    time_old = torch.arange(length, dtype=torch.float64) / old
    time_new = torch.arange(math.ceil(length * new / old), dtype=torch.float64) / new
    found = resample(torch.sin(2 * math.pi * frequency * time_old)[None].float(), old, new)[0]
    wanted = torch.sin(2 * math.pi * frequency * time_new).float()
    assert found.shape == wanted.shape and found.dtype == torch.float32
    middle = slice(len(wanted) // 4, -len(wanted) // 4)
    assert float((found - wanted)[middle].abs().max()) < 1e-4  # 80 dB below


@pytest.mark.parametrize("old, new", [(old, new) for old, new in RATES if old > new])
def test_what_the_new_rate_cannot_hold_is_silent(old, new):
    length = 3000 * max(1, old // new)
    tone = torch.sin(2 * math.pi * 0.56 * new * torch.arange(length, dtype=torch.float64) / old)[None].float()
    found = resample(tone, old, new)[0]
    assert float(found[len(found) // 4 : -len(found) // 4].abs().max()) < 1e-4


@pytest.mark.parametrize("old, new", RATES)
def test_constant_stays_constant(old, new):
    found = resample(torch.full((1, 3000 * max(1, old // new)), 0.25), old, new)[0]
    middle = found[len(found) // 4 : -len(found) // 4]
    assert float((middle - 0.25).abs().max()) < 1e-6


@pytest.mark.sample(4)
@pytest.mark.parametrize("old, new", RATES)
def test_cutting_the_input_changes_nothing(old, new):
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, 5000, generator=generator)
    whole = resample(samples, old, new)
    assert whole.shape == (2, math.ceil(5000 * new / old))
    for largest in (1200, 70):
        resampler, pieces, start = Resampler(2, old, new), [], 0
        while start < 5000:
            size = int(torch.randint(0, largest, (1,), generator=generator))
            pieces.append(resampler.push(samples[:, start : start + size]))
            start += size
        pieces.append(resampler.finish())
        assert torch.equal(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_short_input(length):
    assert resample(torch.ones(1, length), 48000, 16000).shape == (1, math.ceil(length / 3))
    assert resample(torch.ones(1, length), 16000, 48000).shape == (1, length * 3)


def test_wrong_rate():
    with pytest.raises(ValueError, match="must be positive, found 0 and 16000"):
        resample(torch.ones(1, 3), 0, 16000)
