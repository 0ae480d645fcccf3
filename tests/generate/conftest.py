"""Tiny models with random weights, strong enough to prefer some ids to others."""

import pytest
import torch

from tessera.lm.arrange import CoarseFirstConfig, DelayConfig, FlatConfig, ParallelConfig, PartialFlatConfig
from tessera.lm.conditions import ConditionBatch, LabelConfig, TextConditionConfig
from tessera.lm.model import LMConfig, TokenLM
from tessera.tokenize.spec import AudioGeometry, PictureGeometry, TokenSpec
from tessera.tokenize.text import ByteTextConfig

ARRANGEMENTS = {
    "parallel": ParallelConfig(),
    "delay": DelayConfig(),
    "partial delay": DelayConfig(delays=(0, 1, 1)),
    "late delay": DelayConfig(delays=(1, 3, 2)),
    "flatten first": DelayConfig(flatten_first=1),
    "flat": FlatConfig(),
    "partial flat": PartialFlatConfig(groups=(0, 1, 1)),
    "coarse first": CoarseFirstConfig(),
}
CARDINALITIES = (4, 7, 6)


def make_lm(arrangement="delay", variable=True, conditions=(), dtype=torch.float64, seed=0, **settings) -> TokenLM:
    """A TokenLM of 3 codebooks: audio of variable length, or a picture of 2 x 3 frames."""
    if variable:
        geometry = AudioGeometry(sample_rate=16000, samples_per_frame=4)
    else:
        geometry = PictureGeometry(height=4, width=6, channels=1, rows=2, columns=3)
    spec = TokenSpec(name="tiny", cardinalities=CARDINALITIES, geometry=geometry, fingerprint="0" * 64)
    config = LMConfig(
        width=16, layers=1, heads=2, arrangement=ARRANGEMENTS[arrangement], variable_length=variable,
        conditions=conditions, **settings,
    )  # fmt: skip
    torch.manual_seed(seed)
    lm = TokenLM(config, spec).to(dtype).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.5)
    return lm


def make_conditions(kind: str, count: int):
    """(condition configs, a batch of `count` different rows) for "none", "label" or "text"."""
    if kind == "label":
        return (LabelConfig(classes=4),), ConditionBatch.make(labels=[i % 4 for i in range(count)])
    if kind == "text":
        texts = [[1 + (7 * i + j) % 11 for j in range(1 + 3 * i % 5)] for i in range(count)]
        return (TextConditionConfig(text=ByteTextConfig(), vocab_size=16),), ConditionBatch.make(texts=texts)
    return (), ConditionBatch()


@pytest.fixture
def tiny():
    """The two makers above, for tests (which cannot import a conftest)."""

    class Tiny:
        lm = staticmethod(make_lm)
        conditions = staticmethod(make_conditions)

    return Tiny
