"""The table of claims names configs, measures and settings that exist; nothing is trained here."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tessera.configs.schema import check_config
from tessera.train.tokenizer.trainer import TokenizerTrainConfig

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"


def load():
    """benchmarks/tokenizer_claims.py as a module; it finds its neighbour as a script does."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("tokenizer_claims", FOLDER / "tokenizer_claims.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


claims = load()


@pytest.mark.sample(4)
@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: f"{claim.system}, {claim.measure}")
def test_both_sides_are_runs_of_as_many_steps(claim):
    sides = []
    for sets in (claim.own, [*claim.own, *claim.change]):
        config = check_config(claims.plan(claim, sets, 20, 0), TokenizerTrainConfig).resolved()
        assert config.total_steps == 20 * claim.longer
        sides.append(config)
    assert claim.wanted in ("higher", "lower", "near")
    assert {claim.measure, claim.compared or claim.measure, claim.beside or claim.measure} <= set(claims.MEASURES)
    assert (sides[0] != sides[1]) != bool(claim.compared)  # else it would be compared with itself


def test_rows_and_reasons_name_configs():
    named = {claim.system for claim in claims.CLAIMS}
    there = {path.stem for path in claims.CONFIGS.glob("*.yaml")}
    assert named <= there and set(claims.NOT_HERE) <= there
    assert not named & set(claims.NOT_HERE)


def test_the_page_has_every_row_whether_measured_or_not():
    first, *others = claims.CLAIMS
    found = claims.page({first.key(200): {"own": 3.0, "other": 2.0}}, 200)
    assert found.count("| unmeasured |\n") == len(others)
    answer = "yes" if first.wanted == "higher" else "**no**"
    assert f"| 3 | {first.wanted} | 2 | {first.baseline} | {answer} |" in found
    assert f"{len(others)} are not measured" in found


def test_the_page_says_what_was_seen_on_the_way_and_beside():
    claim = next(claim for claim in claims.CLAIMS if claim.every and claim.beside)
    steps = [str(step) for step in claims.looks(claim, 200)]
    assert steps[0] == str(claim.every) and int(steps[-1]) < 200 * claim.longer
    way = {step: {"own": 3.0, "other": 2.5} for step in steps}
    result = {"own": 4.0, "other": 2.0, "way": way, "beside": {"own": 9.5, "other": 8.0}}
    found = claims.page({claim.key(200): result}, 200)
    assert f"- {claim.system}, system and baseline during training: 3 and 2.5 after {steps[0]}" in found
    assert f"- {claim.system}, {claim.beside}: 9.5, baseline 8\n" in found
    assert f"- {claim.beside}: " in found  # what that is


def test_a_changed_setting_makes_a_row_unmeasured():
    claim = claims.CLAIMS[0]
    assert claim.key(200) != claim.key(201)


@pytest.mark.parametrize(
    ("wanted", "own", "answer"),
    [
        *[("higher", 104, "yes"), ("higher", 96, "no"), ("lower", 96, "yes"), ("lower", 104, "no")],
        *[
            ("higher", 102, "even"),
            ("lower", 98, "even"),
            ("near", 109, "yes"),
            ("near", 111, "no"),
            ("near", 50, "yes"),
        ],
    ],
)
def test_verdicts(wanted, own, answer):
    claim = claims.Claim("simvq", "", "error", wanted, "")
    assert claims.verdict(claim, {"own": own, "other": 100}) == answer
