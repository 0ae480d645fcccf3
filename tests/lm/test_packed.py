"""Rows laid end to end: the same loss and the same gradients as of the padded batch."""

import fake_kernels
import pytest
import torch
from small_models import CASES, make_codes, make_conditions, make_config, make_lm

from tessera.configs.schema import ConfigError
from tessera.lm.heads.multi_token_prediction import AheadConfig
from tessera.lm.models.masked import MaskedConfig
from tessera.lm.models.packed_sequences import check_packable, packed_loss


def of_each(case, **settings):
    """(padded, packed): each the loss report and the gradients by name."""
    config = make_config(case, **settings)
    found = []
    for packed in (False, True):
        lm = make_lm(config).train()
        # Dropout of conditions would be drawn for other rows; what it does is the conditions' own business.
        lm.conditions.eval()
        codes, conditions = make_codes(5, 6, lm.arrangement.cardinalities), make_conditions(config, 5)
        lengths = None if lm.spec.geometry.kind == "picture" else torch.tensor([6, 1, 4, 5, 2])
        report = (
            packed_loss(lm, codes, lengths, conditions, 0.1) if packed else lm.loss(codes, lengths, conditions, 0.1)
        )
        total = report.loss if report.ahead is None else report.loss + report.ahead.sum()
        total.backward()
        found.append((report, {name: weight.grad for name, weight in lm.named_parameters()}))
    return found


def check_same(case, **settings):
    (padded, expected), (packed, gradients) = of_each(case, **settings)
    assert packed.count.equal(padded.count)
    close = {"rtol": 1e-4, "atol": 1e-5}  # float32, sums in another order
    torch.testing.assert_close(packed.per_codebook, padded.per_codebook, **close)
    torch.testing.assert_close(packed.loss, padded.loss, **close)
    assert (packed.ahead is None) == (padded.ahead is None)
    if padded.ahead is not None:
        torch.testing.assert_close(packed.ahead, padded.ahead, **close)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, msg=lambda said, name=name: f"{name}: {said}", **close)


@pytest.mark.sample(4)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_packed_equals_padded(case):
    check_same(case)


SOME = [
    case for name, case in CASES.items() if name in ("delay, label and text", "flat, text cross", "grouped, nothing")
]


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("settings", [{"window": 3}, {"ahead": AheadConfig(steps=3)}], ids=["window", "ahead"])
def test_packed_equals_padded_with_other_settings(case, settings):
    check_same(case, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("name", ["flash", "xformers", "flex"])
def test_packed_equals_padded_on_every_backend(monkeypatch, case, name):
    """The forward pass; what a real kernel computes is for a machine that has it."""
    from tessera.lm.attention.registry import BACKENDS
    from tessera.lm.layers.attention_layers import CrossAttention, SelfAttention

    flash, ops = fake_kernels.install(monkeypatch)
    config = make_config(case)
    lm = make_lm(config)
    codes, conditions, lengths = make_codes(5, 6, lm.arrangement.cardinalities), make_conditions(config, 5), None
    if lm.spec.geometry.kind != "picture":
        lengths = torch.tensor([6, 1, 4, 5, 2])
    # flash-attn is for half precision
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=name == "flash"):
        expected = lm.loss(codes, lengths, conditions).per_codebook
        for module in lm.modules():
            if isinstance(module, SelfAttention | CrossAttention):
                module.attend = BACKENDS[name]
        found = packed_loss(lm, codes, lengths, conditions).per_codebook
    close = 2e-2 if name == "flash" else 1e-5
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    assert name == "flex" or set(flash.called + ops.called) & {"flash_attn_varlen_func", "BlockDiagonalCausalMask"}


def test_a_row_does_not_see_another():
    config = make_config(next(iter(CASES.values())))
    lm = make_lm(config)
    codes, lengths = make_codes(3, 6, lm.arrangement.cardinalities), torch.tensor([6, 3, 5])
    conditions = make_conditions(config, 3)
    whole = packed_loss(lm, codes, lengths, conditions)
    sums = whole.per_codebook * whole.count
    alone = torch.zeros_like(sums)
    for b, length in enumerate(lengths.tolist()):
        row = packed_loss(lm, codes[b : b + 1, :, :length], None, conditions.rows(slice(b, b + 1)))
        alone += row.per_codebook * row.count
    torch.testing.assert_close(sums, alone, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_packed_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"data.packing: .* found kind 'masked'; use packing kind padded"):
        check_packable(MaskedConfig())
    check_packable(make_config())
