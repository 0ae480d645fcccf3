"""The condition of a melody, and a prefix whose tokens are counted as positions."""

import pytest
import torch
from small_models import make_codes, make_conditions, make_config, make_lm

from tessera.lm.conditioning.base import ConditionContext
from tessera.lm.conditioning.chroma import ChromaConfig
from tessera.lm.conditioning.melody import MelodyCondition
from tessera.lm.conditioning.registry import ConditionBatch, EmbeddingConditionConfig, MelodyConditionConfig
from tessera.lm.ops.rotary import SinusoidalConfig

MELODY = MelodyConditionConfig(chroma=ChromaConfig(bins=5), length=4)
TEXT = EmbeddingConditionConfig(width=6, join="prefix")


def counted(*conditions):
    return make_lm(make_config(conditions=conditions, rope=SinusoidalConfig(prefix="counted")))


def test_a_melody_is_repeated_or_cut_and_none_is_class_0():
    condition = MelodyCondition(MELODY, ConditionContext(8, 1)).eval()
    classes = torch.rand(3, 6, 5)
    batch = ConditionBatch(melody=classes, melody_lengths=torch.tensor([2, 6, 0]))
    tokens, mask = condition(batch)
    expected = torch.stack([classes[0, [0, 1, 0, 1]], classes[1, :4], torch.eye(5)[[0, 0, 0, 0]]])
    assert mask is None
    torch.testing.assert_close(tokens, condition.projection(expected))
    assert torch.equal(condition(batch.null())[0][0], tokens[2])


@pytest.mark.parametrize("conditions", [(MELODY,), (MELODY, TEXT), (TEXT,)], ids=["melody", "both", "text"])
@pytest.mark.parametrize("bucketed", [False, True])
@torch.no_grad()
def test_step_by_step_equals_the_full_forward(conditions, bucketed):
    lm, codes = counted(*conditions), make_codes(4, 5)
    given = make_conditions(lm.config, 4)
    output = lm(codes, None, given)
    read = torch.cat([lm.start_ids(4)[..., None], output.targets[:, :, :-1]], dim=2)
    state = lm.start(given, capacity=read.shape[2], bucketed=bucketed)
    steps = [lm.step(state, read[:, :, :2])]
    steps += [lm.step(state, read[:, :, s])[:, :, None] for s in range(2, read.shape[2])]
    torch.testing.assert_close(torch.cat(steps, dim=2), output.logits, rtol=1e-4, atol=1e-4)
    for row in range(4):
        alone = lm(codes[row : row + 1], None, given.rows(slice(row, row + 1)).trimmed())
        torch.testing.assert_close(alone.logits, output.logits[row : row + 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_begin_after_the_real_tokens():
    positions = counted(TEXT).positions
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert positions.of(torch.arange(2), 3, mask).tolist() == [[-1 + 2 - 1, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert positions.of(torch.arange(2), 3, None).tolist() == [[0, 1, 2, 3, 4]]
    before = make_lm(make_config(conditions=(TEXT,), rope=SinusoidalConfig())).positions
    assert before.of(torch.arange(2), 3, None).tolist() == [[-3, -2, -1, 0, 1]]
