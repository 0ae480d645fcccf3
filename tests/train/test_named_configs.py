"""The named configs of configs/lm: the sizes they state, and that each learns on what is bundled.

Each is trained as its own first lines say for a laptop, with fewer steps.
"""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from tessera.cli.app import run
from tessera.lm.model import parameter_shapes
from tessera.tokenize.config import read_config
from tessera.tokenize.shards import Shards
from tessera.tokenize.spec import AudioGeometry, PictureGeometry, TokenSpec
from tessera.train.lm_config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "lm").glob("*.yaml"))
configs = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)

FEW = ["train.steps=40", "train.lr=1e-2", "train.warmup_steps=5", "train.log_every=1", "train.min_lr_ratio=1.0"]
SMALLER = ["lm.width=48", "lm.layers=1"]
BYTES = "lm.conditions=[{kind: text, join: %s, dropout: 0.1, text: {kind: bytes}}]"


def test_there_are_named_configs():
    assert {path.stem for path in CONFIGS} >= {"qtts-delay", "qtts-hierarchical", "musicgen", "rq-transformer", "moshi"}


@configs
def test_the_size_is_as_stated(path):
    text = path.read_text()
    found = re.search(r"(\d+) codebooks? of (\d+) codes.*?: ([\d.]+) ([MB]) parameters", text.replace("\n#", ""))
    assert found is not None
    K, V = int(found[1]), int(found[2])
    grid = re.search(r"grid of (\d+) x (\d+)", text)
    if grid:
        geometry = PictureGeometry(height=256, width=256, rows=int(grid[1]), columns=int(grid[2]))
    else:
        geometry = AudioGeometry(sample_rate=24000, samples_per_frame=480)
    spec = TokenSpec(name="x", cardinalities=(V,) * K, geometry=geometry, fingerprint="0" * 64)
    lm = read_config(path, TrainConfig).lm
    pieces = next((c.text.vocab_size + 257 for c in lm.conditions if c.kind == "text"), None)
    lm = lm.filled(1000 if any(c.kind == "label" for c in lm.conditions) else None, pieces)
    size = sum(math.prod(shape) for shape in parameter_shapes(lm, spec, 256).values())
    assert abs(size / (float(found[3]) * {"M": 1e6, "B": 1e9}[found[4]]) - 1) < 0.01


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The bundled media as codes of the bundled tokenizers, as the configs' first lines make them; a part of them."""
    out = tmp_path_factory.mktemp("named")
    for name, corpus, items in (
        ("speech", "samples/speech/train", 8),
        ("digits", "samples/digits/train.safetensors", 200),
    ):
        sets = {
            "corpus.path": ROOT / corpus, "tokenizer": ROOT / "bundled" / name / "tokenizer", "out": out / name,
            "max_items": items,
        }  # fmt: skip
        overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        assert run(["shards", str(ROOT / "configs" / name / "shards.yaml"), *overrides]) == 0
    return out


def unigram_entropy(folder: Path) -> float:
    """Nats: what the codes of each codebook cost when nothing but their frequencies is known, mean over codebooks."""
    data = Shards(folder)
    codes = torch.cat([data.item(i).codes for i in range(len(data))], dim=1)
    entropies = []
    for row in codes.long():
        p = row.bincount().double() / row.numel()
        entropies.append(-(p[p > 0] * p[p > 0].log()).sum())
    return float(torch.stack(entropies).mean())


def small_sets(path: Path) -> list[str]:
    """The settings of the small run in a config's first lines."""
    lines = [
        line for line in path.read_text().splitlines() if line.startswith(f"#   tessera train configs/lm/{path.name}")
    ]
    words = shlex.split(lines[-1])
    return [words[i + 1] for i, word in enumerate(words) if word == "--set"]


@configs
def test_it_learns_more_than_how_often_codes_come(path, shards, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sets = small_sets(path)
    name = next(value.split("/")[-1] for value in sets if value.startswith("data.shards="))
    sets = [
        *sets,
        *FEW,
        *SMALLER,
        f"train.batch={4 if name == 'speech' else 16}",
        f"data.shards={shards / name}",
        "device=cpu",
    ]
    join = re.search(r"kind: text\n +join: (\w+)", path.read_text())
    if join:
        sets.append(BYTES % join[1])  # pieces would be learned anew for each config
    command = [
        "train",
        str(path),
        *[part for value in sets for part in ("--set", value)],
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [sum(line["loss_per_codebook"]) / len(line["loss_per_codebook"]) for line in lines if "lr" in line]
    last, chance = sum(losses[-5:]) / 5, unigram_entropy(shards / name)
    print(f"{path.stem}: {losses[0]:.2f} -> {last:.2f}, unigram {chance:.2f}")
    assert last < chance
