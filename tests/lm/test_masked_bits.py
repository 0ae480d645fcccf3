"""Masked models of bits: the parts of a code are hidden and predicted each by itself."""

import pytest
import torch
from small_models import CONDITIONS, make_codes, make_conditions, make_spec

from tessera.configs.schema import ConfigError
from tessera.lm.clustering.clustering import Clustering
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.layers.input_embedding import BitsInput, BitsInputConfig
from tessera.lm.models.mask_schedule import MaskingConfig
from tessera.lm.models.masked import MaskedConfig, MaskedLM

SIZES = (16, 4, 64)


def make(groups=2, condition="nothing", **settings) -> MaskedLM:
    config = MaskedConfig(
        **{"width": 32, "layers": 2, "heads": 4, "conditions": CONDITIONS[condition], **settings},
        head=BitsHeadConfig(groups=groups),
        input=BitsInputConfig(),
    )
    torch.manual_seed(0)
    return MaskedLM(config, make_spec(SIZES)).double().eval()


def make_mask(lm, B, T):
    return torch.rand(B, len(lm.head.sub_tokens), T, generator=torch.Generator().manual_seed(3)) < 0.5


def test_hidden_bits_are_read_as_zero():
    """The slow way: bit by bit."""
    lm = make()
    assert isinstance(lm.input, BitsInput)
    codes, mask = make_codes(2, 4, SIZES), make_mask(lm, 2, 4)
    found, weight = lm.input(codes, mask), lm.input.linear.weight
    for b, t in [(b, t) for b in range(2) for t in range(4)]:
        total, column = torch.zeros(32, dtype=torch.float64), 0
        for k, bits in enumerate((4, 2, 6)):
            for shift in range(bits):
                group = 0 if shift >= bits // 2 else 1  # the first group has the larger bits
                sign = 2 * (int(codes[b, k, t]) >> shift & 1) - 1
                total += weight[:, column] * (0 if mask[b, 2 * k + group, t] else sign)
                column += 1
        torch.testing.assert_close(found[b, t], total)


@pytest.mark.parametrize("groups", [1, 2])
def test_known_parts_matter_and_hidden_parts_do_not(groups):
    lm = make(groups)
    sub_tokens, mask = lm.head.sub_tokens, make_mask(lm, 1, 3)
    codes = sub_tokens.split(make_codes(1, 3, SIZES))
    before = lm(sub_tokens.join(codes), mask)
    for j in range(len(sub_tokens)):
        for t in range(3):
            other = codes.clone()
            other[0, j, t] = (codes[0, j, t] + 1) % sub_tokens.output_sizes[j]
            after = lm(sub_tokens.join(other), mask)
            assert torch.equal(before, after) if mask[0, j, t] else not torch.allclose(before, after)


def test_a_row_alone_equals_a_row_of_a_batch():
    lm = make(2, "label prefix")
    codes, mask, lengths = make_codes(3, 5, SIZES), make_mask(lm, 3, 5), torch.tensor([5, 2, 4])
    conditions = make_conditions(lm.config, 3)
    together = lm(codes, mask, lengths, conditions)
    assert together.shape == (3, 6, 5, 8)
    for b, length in enumerate(lengths.tolist()):
        alone = lm(codes[b : b + 1, :, :length], mask[b : b + 1, :, :length], None, conditions.rows(slice(b, b + 1)))
        torch.testing.assert_close(alone[0], together[b, :, :length], rtol=0, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("unit", ["cell", "frame"])
def test_loss_equals_a_slow_one(groups, unit):
    lm = make(groups, masking=MaskingConfig(unit=unit))
    codes, lengths = make_codes(4, 5, SIZES), torch.tensor([5, 2, 4, 1])
    masked, report = lm.sample_mask(codes, lengths), lm.loss(codes, lengths)
    logits, parts = lm(codes, masked.mask, lengths).log_softmax(-1), lm.head.sub_tokens.split(codes)
    sums = [0.0, 0.0, 0.0]
    for b, j, t in masked.mask.nonzero().tolist():
        sums[j // groups] -= float(logits[b, j, t, parts[b, j, t]].detach() * masked.weight[b])
    assert report.per_codebook.tolist() == pytest.approx([value / 12 for value in sums], rel=1e-5)  # float32 terms
    if unit == "cell" and groups == 2:
        assert (masked.mask[:, ::2] != masked.mask[:, 1::2]).any(), "one part of a code without the other"


def test_the_gradient_reaches_everything():
    lm = make().train()
    torch.manual_seed(0)
    lm.loss(make_codes(4, 5, SIZES)).loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in lm.parameters())


def test_refusals():
    with pytest.raises(ValueError, match="reads codes bit by bit, input 'embedding' cannot; use input: {kind: bits}"):
        MaskedConfig(head=BitsHeadConfig())
    spec = make_spec((4, 4))
    config = MaskedConfig(width=8, heads=1, head=BitsHeadConfig(), input=BitsInputConfig())
    with pytest.raises(ConfigError, match="clusters group whole codes, but head 'bits' predicts parts"):
        MaskedLM(config, spec, None, Clustering(spec, torch.tensor([[0, 0, 1, 1]] * 2)))
