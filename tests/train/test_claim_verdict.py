"""The rule that decides on claims, beside a slow one written from its words."""

import math
import random

import pytest
from benchmark_files import load_files

(rule,) = load_files("claim_verdict")


def slow(wanted, own, baseline):
    """The rule of the docstring, word by word, for a claim of a direction."""
    right = wrong = 0
    total = 0.0
    for a, b in zip(own, baseline, strict=True):
        apart = a - b if wanted == "higher" else b - a
        right += apart > 0
        wrong += apart < 0
        total += apart
    count = len(own)
    mean = total / count
    squares = 0.0
    for a, b in zip(own, baseline, strict=True):
        squares += ((a - b if wanted == "higher" else b - a) - mean) ** 2
    error = math.sqrt(squares / (count - 1)) / math.sqrt(count)
    if right == count and mean > 2 * error:
        return "shown"
    return "contradicted" if wrong == count else "not shown at this scale"


def test_as_the_rule_in_words():
    numbers, seen = random.Random(0), set()
    for _ in range(2000):
        count, shift = numbers.randint(2, 6), numbers.uniform(-2, 2)
        baseline = [numbers.gauss(0, 1) for _ in range(count)]
        own = [one + numbers.gauss(shift, 1) for one in baseline]
        for wanted in ("higher", "lower"):
            found = rule.verdict(wanted, own, baseline)
            assert found == slow(wanted, own, baseline)
            seen.add(found)
    assert len(seen) == 3


def test_the_two_directions_mirror_each_other():
    numbers = random.Random(1)
    for _ in range(200):
        own, baseline = ([numbers.gauss(0, 1) for _ in range(3)] for _ in range(2))
        assert rule.verdict("higher", own, baseline) == rule.verdict("lower", baseline, own)


@pytest.mark.parametrize(
    ("differences", "answer"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.2], "shown"),
        ([1.0, 1.1, 0.9, 1.0, -0.1], "not shown at this scale"),  # one seed says otherwise
        ([1.0, 1.1, 0.9, 1.0, 0.0], "not shown at this scale"),  # a tie has no sign
        ([0.1, 0.1, 0.1, 0.1, 9.0], "not shown at this scale"),  # all seeds agree, but the mean is of one
        ([-0.1, -0.1, -0.1, -0.1, -9.0], "contradicted"),  # agreement alone contradicts
        ([-1.0, -1.1, 0.0, -1.0, -1.2], "not shown at this scale"),
        ([0.0, 0.0, 0.0], "not shown at this scale"),
        ([1.0, 1.0, 1.0], "shown"),  # no spread
        ([float("nan"), 1.0, 1.0], "not shown at this scale"),
    ],
)
def test_verdicts(differences, answer):
    assert rule.judge(differences) == answer


@pytest.mark.parametrize(
    ("own", "worse", "answer"),
    [
        ([104, 103, 104], [110, 120, 115], "shown"),
        ([50, 51, 52], [110, 120, 115], "shown"),  # better than the baseline is near
        ([104, 103, 106], [110, 120, 115], "not shown at this scale"),
        ([107, 108, 106], [110, 120, 115], "contradicted"),
        ([104, 103, 104], [110, 120, 104], "not shown at this scale"),  # the margin would let a worse choice pass
        ([107, 108, 106], [104, 104, 104], "contradicted"),
    ],
)
def test_near(own, worse, answer):
    assert rule.verdict("near", own, [100, 100, 100], 0.05, worse) == answer


def test_the_margin_is_a_share_of_each_seeds_baseline():
    assert rule.claimed("near", [104.0, 10.6], [100.0, 10.0], 0.05) == pytest.approx([1.0, -0.1])


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="found 3 and 2 figures"):
        rule.verdict("higher", [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="at least two seeds"):
        rule.verdict("higher", [1], [0])
    with pytest.raises(ValueError, match="worse choice"):
        rule.verdict("near", [1, 2], [1, 2], 0.05)
