"""benchmarks/peers.py: rows of a model whose ratios come from another benchmark."""

from types import SimpleNamespace

from benchmark_files import load_files

(peers,) = load_files("peers")


def test_the_spread_is_that_of_the_ratios(monkeypatch):
    rows = [
        {"name": "transformers, bfloat16", "batch": 1, "spread": 0.1, "ratio": None, "ratios": []},
        {"name": "tessera bfloat16", "batch": 1, "spread": 0.2, "ratio": 3.5, "ratios": [3.5, 3.25, 4.0]},
    ]
    fake = SimpleNamespace(compare=lambda *args, **settings: {"rows": rows})
    monkeypatch.setattr(peers, "import_module", lambda name: fake)
    monkeypatch.setattr(peers, "compare_musicgen_folder", lambda turns, quick: [])
    (row,) = peers.compare_generation(turns=3, quick=True)
    assert (row["work"], row["ratio"], row["spread"]) == ("generate bfloat16 batch 1", 3.5, [3.25, 4.0])
