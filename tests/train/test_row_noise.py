"""The noise of a micro-batch does not depend on how many processes share it: pieces add up to the whole."""

import pytest
import small_models
import test_next_scale
import torch

from tessera.lm.models.masked import MaskedConfig
from tessera.lm.models.registry import make_lm as make_any
from tessera.lm.ops.row_rng import Dropout, part_of_rows, rand
from tessera.train.lm.objective import Objective

ROWS = 4


def loss_and_gradient(lm, codes, lengths, conditions, totals, pieces: int):
    """Summed over the pieces of one micro-batch, each with the same seed."""
    lm.zero_grad()
    objective = Objective(lm)
    size, found = ROWS // pieces, torch.zeros(1, dtype=torch.float64)
    for first in range(0, ROWS, size):
        rows = slice(first, first + size)
        torch.manual_seed(7)
        own = None if lengths is None else lengths[rows]
        with part_of_rows(first, size, ROWS):
            loss, _, _ = objective(codes[rows], own, conditions.rows(rows), totals)
        loss.backward()
        found += loss.detach()
    return found, [parameter.grad for parameter in lm.parameters() if parameter.grad is not None]


def check_pieces(lm, codes, lengths, conditions):
    lm.double().train()
    known = codes.shape[2] if lengths is None else lengths
    totals = torch.stack([lm.count_terms(int(n)).double() for n in torch.as_tensor(known).expand(ROWS)]).sum(0)
    whole, gradient = loss_and_gradient(lm, codes, lengths, conditions, totals, 1)
    torch.manual_seed(8)
    with torch.no_grad():
        other, _, _ = Objective(lm)(codes, lengths, conditions, totals)
    assert float(other) != float(whole), "nothing is drawn at random here, so this test says nothing"
    for pieces in (2, 4):
        found, parts = loss_and_gradient(lm, codes, lengths, conditions, totals, pieces)
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)  # the loss itself is taken in float32
        for one, two in zip(parts, gradient, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", list(small_models.CASES.values())[::4], ids=list(small_models.CASES)[::4])
def test_pieces_of_causal_models_add_up(case):
    config = small_models.make_config(case, dropout=0.3)
    if hasattr(config.head, "dropout"):
        config = config.model_copy(update={"head": config.head.model_copy(update={"dropout": 0.3})})
    lm = small_models.make_lm(config)
    T = 6 if case[2].kind == "grid" else 5
    codes = small_models.make_codes(ROWS, T, small_models.cardinalities_for(config))
    lengths = None if case[2].kind == "grid" else torch.tensor([5, 3, 4, 2])
    check_pieces(lm, codes, lengths, small_models.make_conditions(config, ROWS))


@pytest.mark.sample(2)
@pytest.mark.parametrize("condition", ["nothing", "label prefix", "text cross", "codes prefix"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_pieces_of_masked_models_add_up(condition, dropout):
    """Without dropout what is hidden is still drawn."""
    config = MaskedConfig(width=32, layers=2, heads=4, dropout=dropout, conditions=small_models.CONDITIONS[condition])
    torch.manual_seed(0)
    lm = make_any(config, small_models.make_spec())
    codes = small_models.make_codes(ROWS, 5)
    check_pieces(lm, codes, torch.tensor([5, 3, 4, 2]), small_models.make_conditions(config, ROWS))


@pytest.mark.parametrize("case", ["label prefix, qk norm", "text cross, bits"])
def test_pieces_of_next_scale_models_add_up(case):
    lm = test_next_scale.make(test_next_scale.CASES[case], dropout=0.3)
    conditions = small_models.make_conditions(lm.config, ROWS)
    check_pieces(lm, test_next_scale.make_codes(lm), None, conditions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("each", [1, 3])
def test_dropout_of_a_piece_is_that_of_the_whole(dtype, each):
    dropout, x = Dropout(0.4), torch.randn(6 * each, 5, 2).to(dtype)
    torch.manual_seed(1)
    whole = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(whole, torch.nn.functional.dropout(x, 0.4))
    for first in (0, 2, 4):
        torch.manual_seed(1)
        with part_of_rows(first, 2, 6):
            rows = slice(first * each, (first + 2) * each)
            torch.testing.assert_close(dropout(x[rows]), whole[rows])
            assert torch.equal(dropout.eval()(x[rows]), x[rows])
            dropout.train()
    torch.manual_seed(1)
    assert torch.equal(rand((6, 2), torch.device("cpu")), (torch.manual_seed(1), torch.rand(6, 2))[1])
