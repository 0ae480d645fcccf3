"""The laws every quantizer keeps, over the table of quantizer_trees.py.

L5 (two processes) has a file of its own, test_quantizer_processes.py; so have L10 and L11, test_codebook_life.py.
"""

import copy
import random

import pytest
import torch
from quantizer_trees import (
    CONFIGS,
    DIM,
    NOT_RANDOM,
    PER_PLACE,
    SHAPES,
    STRAIGHT,
    VQ,
    autocast,
    every_config,
    follows,
    same_state,
    state_of,
    trained,
)

from tessera.tokenize.quantizers.codebooks.codebook import REVIVE_EVERY
from tessera.tokenize.quantizers.combinators.adaptive_length import HaltingQuantizer
from tessera.tokenize.quantizers.registry import ResidualConfig, make_quantizer, pack_codes, unpack_codes

# L1, L2: what training, evaluation and decoding call a value is one thing, to the last bit.


@pytest.mark.sample(15)
@every_config
@pytest.mark.parametrize("half", [False, True])
def test_eval_forward_equals_decode_of_encode(name, half):
    quantizer = trained(name).eval()
    for shape in SHAPES:
        x = torch.randn(shape, requires_grad=True)
        with autocast(half):
            result = quantizer(x)
            codes = quantizer.encode(x)
            values = quantizer.decode(codes)
        assert torch.equal(result.codes, codes) and torch.equal(result.values, values), shape
        assert codes.shape == (*shape[:-1], len(quantizer.cardinalities)) and codes.dtype == torch.long
        assert values.shape == shape and values.dtype == torch.float32
        assert all(loss.shape == shape[:-1] for loss in result.losses.values())


@pytest.mark.sample(15)
@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_value_equals_decode_of_codes(name, dtype):
    quantizer = trained(name)
    for scale in (0.1, 1.0, 30.0):
        x = (scale * torch.randn(3, 7, DIM)).to(dtype).requires_grad_()
        result = quantizer(x)
        values = quantizer.decode(result.codes)
        if CONFIGS[name].kind == "skip":  # whose samples without codes keep their latents
            values = torch.where((result.codes < 0).all(dim=-1, keepdim=True), x.float(), values)
        assert torch.equal(result.values, values)


@pytest.mark.sample(15)
@every_config
def test_decode_is_the_sum_of_code_vectors(name):
    quantizer = trained(name).eval()
    codes = quantizer.encode(torch.randn(20, DIM))
    vectors = quantizer.vectors()
    assert vectors.shape == (len(quantizer.cardinalities), max(quantizer.cardinalities), DIM)
    total = sum(vectors[level, codes[:, level]] for level in range(codes.shape[1]))
    torch.testing.assert_close(total, quantizer.decode(codes), atol=1e-6, rtol=1e-5)  # order of the sum


# L3: the encoder's gradient. Trap 1 is one straight-through gradient per level: it gives 2, 4, 8 here.


@pytest.mark.sample(15)
@pytest.mark.parametrize("name", STRAIGHT)
@pytest.mark.parametrize("half", [False, True])
def test_straight_through_gradient_is_exactly_one(name, half):
    quantizer = trained(name)
    x = torch.randn(4, 9, DIM, requires_grad=True)
    weight = torch.randn(4, 9, DIM)
    with autocast(half):
        result = quantizer(x)
    (result.values * weight).sum().backward()
    assert torch.equal(x.grad, torch.where(follows(quantizer, result.codes), weight, 0.0))


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_every_level_pulls_the_encoder_towards_its_codes(levels):
    """The opposite of trap 1: an attached residual leaves no commitment gradient after the first level."""
    torch.manual_seed(levels)
    quantizer = trained_residual(levels)
    x = torch.randn(10, DIM, requires_grad=True)
    quantizer(x).losses["commitment"].sum().backward()
    rest, wanted = x.detach(), torch.zeros_like(x)
    vectors = quantizer.vectors().detach()
    for level, codes in enumerate(quantizer.encode(x).unbind(-1)):
        rest = rest - vectors[level, codes]
        wanted += 0.25 * 2 * rest / DIM
    torch.testing.assert_close(x.grad, wanted)


def trained_residual(levels):
    quantizer = make_quantizer(ResidualConfig(levels=levels, quantizer=VQ), DIM)
    for _ in range(levels + 1):
        quantizer(torch.randn(64, DIM))
        quantizer.update()
    return quantizer


@pytest.mark.sample(15)
@every_config
def test_every_parameter_learns(name):
    quantizer = trained(name)
    if not list(quantizer.parameters()):
        assert "projected" not in name and "gradient" not in name
        return
    x = torch.randn(8, 50, DIM)
    result = quantizer(x)
    total = result.values.square().sum() + sum(loss.sum() for loss in result.losses.values())
    if isinstance(quantizer, HaltingQuantizer):  # its head learns from a term outside
        total = total + quantizer.halting(x, torch.rand(8)).square().sum()
    total.backward()
    for parameter_name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_an_averaged_codebook_has_no_parameters():
    """A Parameter that does not require gradients is overwritten by a bf16 trainer's master copy (trap 14)."""
    assert not list(make_quantizer(CONFIGS["residual-3"], DIM).parameters())
    halved = trained("residual-3").bfloat16()
    assert all(tensor.dtype == torch.float32 for tensor in halved.state_dict().values() if tensor.is_floating_point())


# L4: the content of padding changes nothing.


@pytest.mark.sample(8)
@every_config
@pytest.mark.parametrize("training", [False, True])
def test_masked_positions_change_nothing(name, training):
    first = trained(name, updates=0).train(training)
    second = copy.deepcopy(first)
    for step in range(REVIVE_EVERY + 2):
        x, mask = torch.randn(4, 9, DIM), torch.rand(4, 9) < 0.6
        noisy = torch.where(
            mask[..., None], x, torch.full_like(x, float("nan")) if step % 2 else 100 * torch.randn_like(x)
        )
        x.requires_grad_(), noisy.requires_grad_()
        results = []
        for quantizer, latents in ((first, x), (second, noisy)):
            torch.manual_seed(step)  # level dropout
            result = quantizer(latents, mask)
            (result.values.sum() + sum(loss.sum() for loss in result.losses.values())).backward()
            quantizer.update()
            results.append(result)
        a, b = results
        assert torch.equal(a.codes, b.codes) and torch.equal(a.values, b.values)
        assert all(torch.equal(a.losses[key], b.losses[key]) for key in a.losses)
        assert all(torch.equal(a.stats[key], b.stats[key]) for key in a.stats)
        assert (a.codes[~mask] == -1).all() and (a.values[~mask] == 0).all()
        assert torch.equal(first.encode(x, mask=mask), second.encode(noisy, mask=mask))
        assert all((loss[~mask] == 0).all() for loss in a.losses.values())
        assert torch.equal(x.grad, noisy.grad) and (x.grad[~mask] == 0).all()
    assert same_state(state_of(first), state_of(second))


@pytest.mark.sample(15)
@pytest.mark.parametrize("name", PER_PLACE)
def test_a_mask_equals_leaving_the_rest_out(name):
    quantizer = trained(name).eval()
    x, mask = torch.randn(4, 9, DIM), torch.rand(4, 9) < 0.6
    masked, alone = quantizer(x, mask), quantizer(x[mask])
    assert torch.equal(masked.codes[mask], alone.codes) and torch.equal(masked.values[mask], alone.values)


@pytest.mark.sample(12)
@pytest.mark.parametrize("name", [name for name in NOT_RANDOM if name in PER_PLACE])  # dropout is drawn per sample
def test_statistics_with_a_mask_equal_those_without_the_rest(name):
    first, second = trained(name, updates=0), trained(name, updates=0)
    for _ in range(REVIVE_EVERY + 1):
        x, mask = torch.randn(4, 9, DIM), torch.rand(4, 9) < 0.6
        first(x, mask)
        second(x[mask])
        first.update()
        second.update()
    assert same_state(state_of(first), state_of(second))


# L6: a frozen quantizer never changes; state survives saving.


@pytest.mark.sample(12)
@every_config
def test_frozen_never_changes(name):
    quantizer = trained(name)
    quantizer.freeze()
    quantizer.train()
    before, x = state_of(quantizer), torch.randn(3, 50, DIM)
    codes = quantizer(x).codes
    for _ in range(REVIVE_EVERY + 1):
        quantizer(x)
        quantizer.update()
    assert same_state(before, state_of(quantizer)) and torch.equal(codes, quantizer(x).codes)
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


@pytest.mark.sample(12)
@every_config
def test_eval_changes_nothing(name):
    quantizer = trained(name).eval()
    before = state_of(quantizer)
    quantizer(torch.randn(3, 50, DIM))
    quantizer.update()
    assert same_state(before, state_of(quantizer))


@pytest.mark.sample(6)
@every_config
def test_saved_state_goes_on_the_same(name):
    first = trained(name, updates=3)
    torch.manual_seed(1)
    second = make_quantizer(CONFIGS[name], DIM)
    second.load_state_dict(first.state_dict())
    for step in range(REVIVE_EVERY + 1):
        for quantizer in (first, second):
            torch.manual_seed(step)
            quantizer(torch.randn(4, 30, DIM))
            quantizer.update()
    assert same_state(state_of(first), state_of(second))


# L7: packing. Trap 7 is packing by sums of floats: wrong above 24 bits in float32.


@pytest.mark.parametrize(
    "cardinalities", [[2] * 62, [1 << 31, 1 << 31], [1024] * 6 + [4], [1 << 62], [7, 11, 13], [1, 5]]
)
def test_pack_is_exact_to_62_bits(cardinalities):
    rows = [[random.Random(row).randrange(size) for size in cardinalities] for row in range(200)]
    rows += [[size - 1 for size in cardinalities], [0 for _ in cardinalities]]
    codes = torch.tensor(rows)
    packed = pack_codes(codes, cardinalities)
    for row, number in zip(rows, packed.tolist(), strict=True):
        expected = 0  # Python's integers have no limit
        for digit, size in zip(row, cardinalities, strict=True):
            expected = expected * size + digit
        assert number == expected
    assert torch.equal(unpack_codes(packed, cardinalities), codes)


def test_pack_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"above 2\^62"):
        pack_codes(torch.zeros(1, 63, dtype=torch.long), [2] * 63)
    with pytest.raises(ValueError, match=r"-1..3 do not fit"):
        pack_codes(torch.tensor([[3, -1]]), [4, 4])
    with pytest.raises(ValueError, match=r"must be in 0..15, found 3..16"):
        unpack_codes(torch.tensor([3, 16]), [4, 4])


@pytest.mark.sample(12)
@every_config
def test_quantizers_pack_their_codes(name):
    quantizer = trained(name).eval()
    codes = quantizer.encode(torch.randn(3, 8, DIM))
    packed = quantizer.pack(codes)
    assert packed.shape == (3, 8) and torch.equal(quantizer.unpack(packed), codes)


# L8: precision around the call does not reach the codes.


@pytest.mark.sample(12)
@every_config
def test_precision_of_the_caller_changes_no_code(name):
    quantizer = trained(name).eval()
    x = torch.randn(500, DIM).bfloat16()
    codes = quantizer.encode(x.float())
    assert torch.equal(codes, quantizer.encode(x))
    assert torch.equal(codes, quantizer.encode(x.double()))
    with autocast(True):
        assert torch.equal(codes, quantizer.encode(x.float()))
        assert torch.equal(quantizer.decode(codes), quantizer(x.float()).values)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(codes, quantizer.encode(x.float()))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# L9: dropped levels.


@pytest.mark.parametrize("name", ["residual-dropout", "residual-fsq-dropout"])
def test_level_dropout_is_per_sample(name):
    quantizer = trained(name)
    num_levels = len(quantizer.cardinalities)
    result = quantizer(torch.randn(200, 3, DIM))
    kept = (result.codes >= 0).sum(dim=-1)
    assert (kept == kept[:, :1]).all(), "all places of a sample lose the same levels"
    assert set(kept[:, 0].tolist()) == set(range(1, num_levels + 1))
    dropped = CONFIGS[name].level_dropout * (1 - 1 / num_levels)
    assert abs((kept[:, 0] < num_levels).float().mean() - dropped) < 0.15  # 4 standard deviations of 200 draws
    assert ((result.codes >= 0).long().diff(dim=-1) <= 0).all(), "only a tail is dropped"
    assert torch.equal(result.values, quantizer.decode(result.codes))
    assert (quantizer.eval()(torch.randn(50, 3, DIM)).codes >= 0).all()


@pytest.mark.sample(12)
@every_config
def test_encode_with_fewer_levels_is_a_prefix(name):
    quantizer = trained(name).eval()
    x = torch.randn(30, DIM)
    whole = quantizer.encode(x)
    for levels in range(1, whole.shape[1] + 1):
        codes = quantizer.encode(x, levels)
        assert torch.equal(codes[:, :levels], whole[:, :levels]) and (codes[:, levels:] == -1).all()
        total = sum(quantizer.vectors()[level, codes[:, level]] for level in range(levels))
        torch.testing.assert_close(quantizer.decode(codes), total, atol=1e-6, rtol=1e-5)


# L12: codes do not depend on the rest of the batch.


@pytest.mark.sample(15)
@every_config
def test_codes_do_not_depend_on_the_batch(name):
    quantizer = trained(name).eval()
    x = torch.randn(300, DIM)
    codes = quantizer.encode(x)
    assert torch.equal(codes[:16], torch.cat([quantizer.encode(row[None]) for row in x[:16]]))
    for size in (2, 5, 100, 255):
        assert torch.equal(codes[-size:], quantizer.encode(x[-size:]))
    assert torch.equal(codes, quantizer.encode(x.flip(0)).flip(0))
    assert torch.equal(codes[:50], quantizer.encode(x.T.contiguous().T[:50]))
    values = quantizer.decode(codes)
    assert torch.equal(values[:16], torch.cat([quantizer.decode(row[None]) for row in codes[:16]]))


# Borders.


def test_wrong_shapes_are_named():
    quantizer = make_quantizer(CONFIGS["residual-3"], DIM)
    with pytest.raises(ValueError, match=r"floats \[..., 6\], found torch.float32 \[2, 6, 5\]"):
        quantizer(torch.randn(2, 6, 5))
    with pytest.raises(ValueError, match=r"floats \[..., 6\], found torch.int64"):
        quantizer.encode(torch.ones(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask is \[5, 2\], the latents are \[2, 5, 6\]"):
        quantizer(torch.randn(2, 5, 6), torch.ones(5, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"codes are \[2, 4\], but a token has 3"):
        quantizer.decode(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="levels must be between 1 and 3, found 4"):
        quantizer.encode(torch.randn(2, DIM), levels=4)
