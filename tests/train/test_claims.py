"""The table of claims: its rows are fair, its results are kept seed by seed, its page is what they say. No training."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from benchmark_files import FOLDER, load_files

verdict, measures, fairness, table, pages, claims = load_files(
    "claim_verdict", "claim_measures", "claim_fairness", "claim_table", "claims_page", "claims"
)
SOME = next(claim for claim in table.CLAIMS if claim.system == "simvq")
NEAR = next(claim for claim in table.CLAIMS if claim.wanted == "near")


def row(claim, own=(3.0, 3.1, 3.2, 3.1, 3.0), baseline=(2.0, 2.1, 2.2, 2.0, 2.1), worse=(4.0,) * 5):
    """A row of results as claims.py stores it."""
    pair = {"own": 1000.0, "baseline": 1000.0}
    found = {
        "row": claim.name, "measure": claim.measure, "seeds": list(range(len(own))), "own": list(own),
        "baseline": list(baseline), "parameters": pair, "bits": pair, "seconds": pair, "machine": "a machine",
        "torch": "2.0", "commit": "abc", "command": claims.COMMAND,
    }  # fmt: skip
    return found | ({"worse": list(worse)} if claim.worse else {})


# The rows


@pytest.mark.sample(6)
@pytest.mark.parametrize("claim", table.CLAIMS, ids=lambda claim: claim.name)
def test_the_sides_of_a_row_are_equal_but_for_what_it_names(claim, monkeypatch):
    file = measures.PATCHES / "centres.safetensors"
    if claim.system == "vqgan-lc" and not file.is_file():
        pytest.skip(f"{file} is made by benchmarks/claims.py")
    monkeypatch.chdir(FOLDER.parent)
    table.check(claim)
    assert {claim.measure, claim.measure_of("baseline")} <= set(measures.MEASURES)
    assert claim.seeds in (table.SEEDS, table.FEWER_SEEDS)
    own, baseline = (json.dumps(table.plan(claim, side, 0)) for side in ("own", "baseline"))
    assert (own == baseline) == bool(claim.compared)  # else it would be compared with itself
    if claim.wanted == "near":
        picture = table.config_of(claim, "own", 0).tokenizer.kind == "picture"
        assert claim.margin == (0.05 if picture else 0.02) and claim.worse and claim.worse_change
    else:
        assert not claim.margin and claim.worse is None


def test_every_side_has_the_steps_of_its_config():
    for claim in table.CLAIMS:
        stages = table.read_yaml(table.CONFIGS / f"{claim.system}.yaml").get("stages")
        for side in claim.sides:
            data = table.plan(claim, side, 0)
            assert data["train"] == table.read_yaml(table.CONFIGS / f"{claim.system}.yaml")["train"], claim.name
            steps = [stage.get("steps") for stage in data.get("stages") or ()]
            assert steps == [stage.get("steps") for stage in stages or ()], claim.name


def test_rows_and_reasons_name_configs():
    named = {claim.system for claim in table.CLAIMS}
    there = {path.stem for path in table.CONFIGS.glob("*.yaml")}
    assert named <= there and set(table.NOT_HERE) <= there
    assert not named & set(table.NOT_HERE)
    names = [claim.name for claim in table.CLAIMS]
    assert len(set(names)) == len(names)


def test_the_earlier_table_is_accounted_for():
    assert set(pages.BEFORE) <= {claim.name for claim in table.CLAIMS} | set(table.GONE)
    assert not set(table.GONE) & {claim.name for claim in table.CLAIMS}


def config(**changes):
    """A resolved config of an image tokenizer with a codebook, with changed parts of its quantizer."""
    data = table.plan(SOME, "baseline", 0)
    data["tokenizer"]["quantizer"] = {"kind": "vq", "size": 64} | changes
    return table.check_config(data, table.TokenizerTrainConfig).resolved()


@pytest.mark.parametrize(
    ("changes", "aspects"),
    [
        ({}, []),
        ({"kmeans_init": False}, ["start"]),
        ({"revive_below": 0.0}, ["revival"]),
        ({"revive": "blend"}, ["revival"]),
        ({"update": "gradient"}, ["update"]),
        ({"decay": 0.9}, ["update"]),
        ({"update": "gradient", "kmeans_init": False, "revive_below": 0.0}, ["revival", "start", "update"]),
        ({"commitment": 1.0}, ["quantizer"]),
        ({"size": 128}, ["bits", "quantizer"]),
        ({"size": 4096}, ["bits", "parameters", "quantizer"]),
    ],
)
def test_unequal_codebooks_are_found(changes, aspects):
    sides = [config(), config(**changes)]
    found = fairness.unequal(*sides, tuple(fairness.size_of(side) for side in sides))
    assert sorted(found) == aspects


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        ("train.lr=1e-4", "optimizer"),
        ("train.steps=100", "steps"),
        ("train.batch=8", "data"),
        ("losses={kind: picture, squared: 2.0}", "losses"),
        ("tokenizer.blocks=2", "network"),
    ],
)
def test_unequal_training_is_found(change, aspect):
    sides = [table.config_of(SOME, "own", 0), table.config_of(replace(SOME, change=[change]), "baseline", 0)]
    assert aspect in fairness.unequal(*sides, (fairness.Size(10, 8), fairness.Size(10, 8)))


def test_a_baseline_of_a_system_without_a_codebook_has_all_there_is():
    made = table.plan(SOME, "baseline", 0)
    made["tokenizer"]["quantizer"] = {"kind": "fsq", "levels": [8, 8]}
    system = table.check_config(made, table.TokenizerTrainConfig).resolved()
    same = fairness.Size(10, 8)
    assert set(fairness.unequal(system, config(), (same, same))) == {"quantizer"}
    assert "revival" in fairness.unequal(system, config(revive_below=0.0), (same, same))
    assert "update" in fairness.unequal(config(update="gradient"), system, (same, same))


def test_a_row_must_name_what_is_unequal_and_nothing_else():
    a, b = config(), config(kmeans_init=False)
    same = (fairness.Size(10, 8), fairness.Size(10, 8))
    fairness.check_fair("row", {"start": "k-means"}, a, b, same)
    with pytest.raises(ValueError, match=r"row: .*more than the row says \(start: "):
        fairness.check_fair("row", {}, a, b, same)
    with pytest.raises(ValueError, match="differs names update"):
        fairness.check_fair("row", {"start": "k-means", "update": "averages"}, a, b, same)
    with pytest.raises(ValueError, match="parameters: 10 and 12"):
        fairness.check_fair("row", {"start": "k-means"}, a, b, (fairness.Size(10, 8), fairness.Size(12, 8)))
    with pytest.raises(ValueError, match="took 260 and 288 bits"):
        fairness.check_measured_bits("row", {}, 260, 288)
    fairness.check_measured_bits("row", {"bits": "the router decides"}, 260, 288)


# Results


def test_a_changed_setting_makes_a_row_unmeasured():
    other = replace(SOME, change=["tokenizer.quantizer.commitment=1.0"])
    assert len({SOME.key, other.key, replace(SOME, seeds=3).key, replace(SOME, measure="error").key}) == 4
    assert replace(SOME, note="other words").key == SOME.key


def test_rows_share_what_they_have_in_common():
    teachers = [claim for claim in table.CLAIMS if claim.system in ("speechtokenizer", "dm-codec")]
    names = {side: {table.run_name(claim, side, 1) for claim in teachers} for side in ("own", "baseline")}
    assert len(names["own"]) == 2 and len(names["baseline"]) == 1
    assert table.run_name(teachers[0], "own", 0) != table.run_name(teachers[0], "own", 1)


def store(out, claim, side, seed, value, found=None, **more):
    """Figures of a training that was not done."""
    folder = out / table.run_name(claim, side, seed, found)
    folder.mkdir(parents=True)
    figures = {"seconds": 60.0, "parameters": 10, "bits": 8.0, "codes": [5], "measures": {claim.measure: value}}
    claims.write_json(folder / "figures.json", figures | claims.here() | more)


def test_a_row_is_stored_seed_by_seed_with_its_command_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", [SOME])
    store(tmp_path, SOME, "own", 0, 3.0)
    assert claims.updated({}, tmp_path) == {}  # the other side is missing
    store(tmp_path, SOME, "baseline", 0, 2.0)
    store(tmp_path, SOME, "own", 1, 4.0)
    (found,) = claims.updated({}, tmp_path).values()
    assert (found["seeds"], found["own"], found["baseline"]) == ([0], [3.0], [2.0])
    assert found["command"] == claims.COMMAND and found["torch"] == torch.__version__
    assert found["machine"] == claims.here()["machine"] and found["row"] == SOME.name
    for seed in range(1, 5):
        store(tmp_path, SOME, "baseline", seed, 1.0)
        if seed > 1:
            store(tmp_path, SOME, "own", seed, 4.0)
    done = claims.updated({}, tmp_path)
    assert done[SOME.key]["own"] == [3.0, 4.0, 4.0, 4.0, 4.0]
    assert claims.updated(done, tmp_path / "elsewhere") == done  # finished rows need no trainings
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "claims.json")
    assert len(list(claims.missing([SOME]))) == 10
    claims.write_json(claims.RESULTS, done)
    assert list(claims.missing([SOME])) == []


def test_figures_of_another_machine_or_torch_are_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", [SOME])
    store(tmp_path, SOME, "own", 0, 3.0)
    store(tmp_path, SOME, "baseline", 0, 2.0, torch="1.0")
    assert claims.updated({}, tmp_path) == {}


def test_a_side_may_need_what_the_system_found(tmp_path, monkeypatch):
    claim = next(claim for claim in table.CLAIMS if table.needs_found(claim, "baseline"))
    monkeypatch.setattr(claims, "CLAIMS", [claim])
    store(tmp_path, claim, "own", 0, 3.0)
    store(tmp_path, claim, "baseline", 0, 2.0, found=5)
    (found,) = claims.updated({}, tmp_path).values()
    assert found["baseline"] == [2.0]
    assert table.config_of(claim, "baseline", 0, 5).tokenizer.quantizer.size == 5


def test_a_second_process_leaves_a_training_to_the_first(tmp_path):
    folder = tmp_path / table.run_name(SOME, "own", 0)
    with claims.lock_folder(folder, "test"), pytest.raises(claims.FolderInUse):
        claims.run(claims.Training(SOME, "own", 0, {SOME.measure}), tmp_path)


def test_results_are_not_overwritten_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "claims.json")
    claims.write_json(claims.RESULTS, {SOME.key: row(SOME)})
    monkeypatch.setattr(sys, "argv", ["claims.py"])
    with pytest.raises(SystemExit) as stopped:
        claims.main()
    assert stopped.value.code == 2 and "--resume" in capsys.readouterr().err


# The page


def test_the_page_has_every_row_whether_measured_or_not():
    found = pages.page(table.CLAIMS, {SOME.key: row(SOME)})
    assert found.count("| not measured |\n") == len(table.CLAIMS) - 1
    assert f"1 shown, 0 contradicted, 0 not shown at this scale, {len(table.CLAIMS) - 1} not measured" in found
    assert "| 3.08 | 2.08 | +1 ± 0.071 (+48.1 %), 5 of 5 | shown |\n" in found
    assert f"| 1 | `{claims.COMMAND}` | a machine | 2.0 | abc | 0 1 2 3 4 |" in found


def test_a_row_without_all_seeds_is_not_measured():
    found = pages.page([SOME], {SOME.key: row(SOME, own=(3.0, 3.1), baseline=(2.0, 2.1))})
    assert "| not measured |\n" in found and "No row is measured yet." in found


def test_a_near_row_says_what_a_worse_choice_gives():
    result = row(NEAR, own=(2.01,) * 5, baseline=(2.0,) * 5, worse=(2.2, 2.3, 2.4, 2.2, 2.4))
    found = pages.page([NEAR], {NEAR.key: result})
    assert f"({NEAR.worse}): 2.3, +15 %, beyond the margin with 5 of 5 seeds" in found
    assert "5 of 5 | shown |\n" in found
    passing = pages.page([NEAR], {NEAR.key: result | {"worse": [2.01] * 5}})
    assert "beyond the margin with 0 of 5 seeds" in passing and "| not shown at this scale |\n" in passing


def test_the_page_lists_changed_verdicts_and_rows_that_are_gone():
    wrong = row(SOME, own=(1.0, 1.1, 1.2, 1.1, 1.0))
    part = pages.page(table.CLAIMS, {SOME.key: wrong}).split("## What changed")[1]
    assert f"| {SOME.name} | yes | 54.22, 0.8548 (1000 steps) | contradicted | {SOME.changed} |" in part
    for name, why in table.GONE.items():
        assert f"| {name} | {pages.BEFORE[name]['verdict']} | {why} |" in part
    same = pages.page(table.CLAIMS, {SOME.key: row(SOME)}).split("## What changed")[1]
    assert f"| {SOME.name} | shown | {SOME.changed} |" in same


def test_the_page_in_the_repository_is_that_of_the_stored_results():
    text = claims.PAGE.read_text(encoding="utf-8")
    assert text == pages.page(table.CLAIMS, claims.stored()), "run: python benchmarks/claims.py --page"


# Measures


def test_the_order_of_pairs_beside_a_slow_count():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        found = torch.randint(0, 5, (12,), generator=generator).double()
        wanted = torch.rand(12, generator=generator) < 0.5
        wanted[0], wanted[1] = True, False
        points = [
            1.0 if a > b else 0.5 if a == b else 0.0 for a in found[wanted].tolist() for b in found[~wanted].tolist()
        ]
        assert measures.right_order(found, wanted) == pytest.approx(sum(points) / len(points))
