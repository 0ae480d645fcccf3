"""The verb coarse: clusters written, a table, a warning where they say nothing, one line for a mistake."""

import json

import torch

from tessera.cli.app import run
from tessera.lm.clustering.clustering import load_clustering
from tessera.tokenize.tokenizer import Tokenizer


def test_clusters_of_the_bundled_digits(tmp_path, capsys):
    assert run(["coarse", "digits", "--clusters", "8", "-o", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr()
    assert load_clustering(tmp_path / "c").clusters == (8, 8, 8)
    assert len(printed.out.splitlines()) == 5 and "warning" not in printed.err
    again = ["coarse", "digits", "--clusters", "16,8,4", "--method", "balanced", "-o", str(tmp_path / "b"), "--json"]
    assert run(again) == 0
    found = json.loads(capsys.readouterr().out)["codebooks"]
    assert [one["sizes"] for one in found] == [[4, 4, 4], [8, 8, 8], [16, 16, 16]]
    assert all(0.2 < one["closer"] < 1 for one in found)


def test_a_warning_where_clusters_say_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Tokenizer, "vectors", lambda self: torch.eye(64).expand(3, -1, -1))
    assert run(["coarse", "digits", "--clusters", "8", "-o", str(tmp_path / "c")]) == 0
    assert (
        "warning: the clusters of codebook 2 are hardly better than random ones (0% closer)" in capsys.readouterr().err
    )
    assert run(["coarse", "digits", "--clusters", "1", "-o", str(tmp_path / "c")]) == 0
    assert "tessera: warning" not in capsys.readouterr().err


def test_misuse_is_one_line(tmp_path, capsys):
    for arguments, message in (
        (["digits", "--clusters", "512"], "has 64 codes, which cannot form 512 clusters; choose 1 to 64"),
        (["digits", "--clusters", "8,8"], "clusters has 2 numbers but tokenizer 'digits-4x4' has 3 codebooks"),
        (["digits", "--clusters", "many"], "--clusters takes a whole number"),
        ([str(tmp_path), "--clusters", "8"], "no tokenizer here"),
    ):
        assert run(["coarse", *arguments, "-o", str(tmp_path / "x")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()
