"""How terms become one gradient: shares are what the weights say, whatever the scales; a lag of one step aside."""

import pytest
import torch

from tessera.train.losses.balancer import (
    AdaptiveConfig,
    BalancerConfig,
    SumConfig,
    group_gradients,
    make_balance,
)

SCALES = {"a": 1.0, "b": 1e4, "c": 1e-5}
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0}


def losses_of(found, step=0):
    """Terms of very different scales that pull in different directions, [B] each."""
    generator = torch.Generator().manual_seed(step)
    flat = found.flatten(1)
    return {
        name: scale * (flat * torch.randn(flat.shape, generator=generator).sign()).sum(1)
        for name, scale in SCALES.items()
    }


def last_layer(gradient):
    return gradient.sum(0)


def measured(balance, weights, step=0, found=None):
    found = torch.randn(4, 3, 5).requires_grad_() if found is None else found
    gradients = group_gradients(losses_of(found, step), balance.groups(weights), found)
    totals = {group: balance.measure(gradients[group], last_layer) for group in balance.measured(weights)}
    return gradients, totals


def test_a_sum_is_the_gradient_of_the_weighted_sum():
    found = torch.randn(4, 3, 5).requires_grad_()
    balance = make_balance(SumConfig())
    gradients, totals = measured(balance, WEIGHTS, found=found)
    assert not totals and not balance.missing(WEIGHTS)
    total = sum(balance.factors(WEIGHTS)[group] * gradient for group, gradient in gradients.items())
    (wanted,) = torch.autograd.grad(sum(WEIGHTS[name] * loss.sum() for name, loss in losses_of(found).items()), found)
    torch.testing.assert_close(total, wanted)


@pytest.mark.parametrize("norm", [1.0, 3.0])
def test_the_share_of_each_term_equals_its_weights_share_whatever_the_scales(norm):
    balance = make_balance(BalancerConfig(norm=norm))
    assert balance.missing(WEIGHTS)
    for step in range(20):
        gradients, totals = measured(balance, WEIGHTS, step)
        balance.note(totals, items=4)
    assert not balance.missing(WEIGHTS)
    factors = balance.factors(WEIGHTS)
    norms = {name: (factors[name] * gradient).flatten(1).norm(dim=1).mean() for name, gradient in gradients.items()}
    for name, weight in WEIGHTS.items():
        assert float(norms[name]) == pytest.approx(norm * weight / 8, rel=1e-5), name


def test_the_balancer_against_a_loop_over_the_paper():
    """n_i = moving average of |g_i| without the bias of its start at 0; R w_i / sum w g_i / n_i."""
    balance = make_balance(BalancerConfig(decay=0.9, norm=2.0))
    seen = {name: [] for name in WEIGHTS}
    for step in range(7):
        found = (torch.randn(4, 3, 5) * (step + 1)).requires_grad_()
        loss = {name: value * found.flatten(1).norm(dim=1) for name, value in losses_of(found, step).items()}
        gradients = group_gradients(loss, balance.groups(WEIGHTS), found)
        totals = {name: balance.measure(gradients[name], last_layer) for name in WEIGHTS}
        balance.note(totals, items=4)
        for name, gradient in gradients.items():
            seen[name].append(sum(float(row.norm()) for row in gradient) / 4)
    for name, norms in seen.items():
        ages = [0.9 ** (len(norms) - 1 - age) for age in range(len(norms))]
        average = sum(age * norm for age, norm in zip(ages, norms, strict=True)) / sum(ages)
        assert balance.factors(WEIGHTS)[name] == pytest.approx(2.0 * WEIGHTS[name] / 8 / average, rel=1e-4)


def test_norms_do_not_depend_on_how_the_batch_is_cut():
    for config in (BalancerConfig(), AdaptiveConfig(terms=("b",))):
        whole, parts = make_balance(config), make_balance(config)
        found = torch.randn(6, 3, 5).requires_grad_()
        rows = losses_of(found)

        def totals(balance, found, rows, chosen):
            picked = {name: loss[chosen] for name, loss in rows.items()}
            gradients = group_gradients(picked, balance.groups(WEIGHTS), found)
            return {group: balance.measure(gradients[group], last_layer) for group in balance.measured(WEIGHTS)}

        whole.note(totals(whole, found, rows, slice(None)), 6)
        first = totals(parts, found, losses_of(found), slice(0, 2))
        second = totals(parts, found, losses_of(found), slice(2, 6))
        parts.note({group: first[group] + second[group] for group in first}, 6)
        for group, pair in whole.averages.items():
            assert parts.averages[group] == pytest.approx(pair, rel=1e-5)


def test_adaptive_terms_get_the_norm_of_the_rest_times_their_weight():
    balance = make_balance(AdaptiveConfig(terms=("b",)))
    assert balance.missing(WEIGHTS) and not balance.missing({"a": 1.0}), "alone there is nothing to compare"
    gradients, totals = measured(balance, WEIGHTS)
    balance.note(totals, items=4)
    factors = balance.factors(WEIGHTS)
    at_last = {group: last_layer(factors[group] * gradient).norm() for group, gradient in gradients.items()}
    assert factors[""] == 1.0
    assert float(at_last["b"]) == pytest.approx(2.0 * float(at_last[""]), rel=1e-5)


def test_the_factor_of_an_adaptive_term_has_a_limit():
    balance = make_balance(AdaptiveConfig(terms=("c",), limit=7.0))
    _, totals = measured(balance, WEIGHTS)
    balance.note(totals, items=4)
    assert balance.factors(WEIGHTS) == {"": 1.0, "c": 7.0}


def test_a_norm_that_is_not_finite_is_left_out():
    balance = make_balance(BalancerConfig())
    balance.note({"a": torch.tensor(2.0), "b": torch.tensor(torch.inf)}, items=1)
    balance.note({"a": torch.tensor(torch.nan)}, items=1)
    assert balance.average("a") == pytest.approx(2.0) and balance.missing({"a": 1.0, "b": 1.0})
