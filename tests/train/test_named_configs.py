"""The named configs of configs/lm: the sizes they state, and that each learns on what is bundled.

Each is trained as its own first lines say for a laptop, with fewer steps.
"""

import json
import math
import re
import shlex
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from tessera.cli.app import run
from tessera.configs.schema import read_config
from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.registry import make_lm
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.quantizers.registry import ScalesConfig, VQConfig, make_quantizer
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.lm.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "lm").glob("*.yaml"))
configs = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)

FEW = ["train.steps=40", "train.lr=1e-2", "train.warmup_steps=5", "train.log_every=1", "train.min_lr_ratio=1.0"]
SMALLER = ["lm.width=48", "lm.layers=1"]
BATCHES = {"speech": 4, "digits": 16, "digits-var": 16, "digits-lfq": 64}  # what is hidden makes a loss noisy
BYTES = "lm.conditions.%d.text={kind: bytes}"


def test_there_are_named_configs():
    assert {path.stem for path in CONFIGS} >= {"qtts-delay", "qtts-hierarchical", "musicgen", "rq-transformer", "moshi"}


@pytest.mark.sample(3)
@configs
def test_the_size_is_as_stated(path):
    text = path.read_text()
    found = re.search(r"(\d+) codebooks? of (\d+) codes.*?: ([\d.]+) ([MB]) parameters", text.replace("\n#", ""))
    assert found is not None
    K, V = int(found[1]), int(found[2])
    grid, scales = re.search(r"grid of (\d+) x (\d+)", text), re.search(r"on scales of ([\d, ]+):", text)
    make = TokenLM
    if grid:
        geometry = ImageGeometry(height=256, width=256, rows=int(grid[1]), columns=int(grid[2]))
    elif scales:
        sizes = tuple((int(side), int(side)) for side in scales[1].split(","))
        rows, columns = sizes[-1]
        geometry = ImageGeometry(height=256, width=256, rows=rows, columns=columns, scales=sizes)
        quantizer = make_quantizer(ScalesConfig(sizes=sizes, quantizer=VQConfig(size=V)), 32)
        make = partial(make_lm, quantizer=quantizer)
    else:
        geometry = AudioGeometry(sample_rate=24000, samples_per_frame=480)
    spec = TokenSpec(name="x", cardinalities=(V,) * K, geometry=geometry, fingerprint="0" * 64)
    config = read_config(path, TrainConfig)
    lm, bundled, voices = config.lm, ROOT / config.tokenizer, re.search(r"(\d+) voices", text)
    pieces = getattr(lm.text_part.text, "vocab_size", 0) + 257 if lm.text_part is not None else None
    labels = int(voices[1]) if voices else 1000
    lm = lm.filled(labels if any(c.kind == "label" for c in lm.conditions) else None, pieces)
    width = load_tokenizer(bundled).vectors().shape[-1] if bundled.is_dir() else 256
    size = sum(math.prod(shape) for shape in parameter_shapes(lm, spec, width, make).values())
    assert abs(size / (float(found[3]) * {"M": 1e6, "B": 1e9}[found[4]]) - 1) < 0.01


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Makes the folder of a name with shards/, the bundled media as codes as the configs' first lines make them; a part
    of them. Of a bundled tokenizer, or of one trained here, in tokenizer/."""
    out = tmp_path_factory.mktemp("named")
    digits = ROOT / "samples" / "digits" / "train.safetensors"
    trained = {"digits-var": ("digits-var", []), "digits-lfq": ("digits", ["tokenizer.quantizer={kind: lfq, bits: 6}"])}

    @cache
    def folder(name: str) -> Path:
        speech = name == "speech"
        tokenizer = ROOT / "bundled" / name / "tokenizer"
        if name in trained:
            config, more = trained[name]
            sets = [f"data.path={digits}", "train.steps=60", "train.batch=16", *more]
            overrides = [part for one in sets for part in ("--set", one)]
            tokenizer = out / name / "tokenizer"
            config = ROOT / "configs" / config / "tokenizer.yaml"
            assert run(["tokenizer", "train", str(config), *overrides, "--out", str(tokenizer)]) == 0
        corpus = ROOT / "samples" / "speech" / "train" if speech else digits
        sets = {"corpus.path": corpus, "tokenizer": tokenizer, "out": out / name / "shards"}
        overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        overrides += ["--set", f"max_items={8 if speech else 200}"]
        assert run(["shards", str(ROOT / "configs" / name.removesuffix("-lfq") / "shards.yaml"), *overrides]) == 0
        return out / name

    return folder


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


@pytest.mark.slow
@configs
def test_it_learns_more_than_how_often_codes_come(path, shards, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sets = small_sets(path)
    trained = next((value for value in sets if value.startswith("tokenizer=runs/")), None)
    name = next(value.removesuffix("/shards").split("/")[-1] for value in sets if value.startswith("data.shards="))
    sets = [
        *sets,
        *FEW,
        *SMALLER,
        f"train.batch={BATCHES[name]}",
        f"data.shards={shards(name) / 'shards'}",
        *([] if trained is None else [f"tokenizer={shards(name) / 'tokenizer'}"]),
        "device=cpu",
    ]
    for number, condition in enumerate(read_config(path, TrainConfig).lm.conditions):
        if condition.kind == "text":
            sets.append(BYTES % number)  # pieces would be learned anew for each config
    command = [
        "train",
        str(path),
        *[part for value in sets for part in ("--set", value)],
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "lr" in line]
    last, chance = sum(losses[-5:]) / 5, unigram_entropy(shards(name) / "shards")
    print(f"{path.stem}: {losses[0]:.2f} -> {last:.2f}, unigram {chance:.2f}")
    assert last < chance
