"""A tiny LM and its data, for tests of training."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tessera.configs.files import write_json
from tessera.configs.schema import check_config
from tessera.lm.conditioning.registry import ConditionBatch, LabelConfig
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import DelayConfig
from tessera.tokenize.audio.networks import AudioTokenizerConfig
from tessera.tokenize.audio.vocos import AudioStackConfig
from tessera.tokenize.data.shard_file import write_shard
from tessera.tokenize.data.shard_index import Index
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ResidualConfig, VQConfig
from tessera.tokenize.spec import AudioGeometry, TokenSpec
from tessera.tokenize.tokenizer import make_tokenizer
from tessera.train.distributed.process_group import ProcessGroup
from tessera.train.lm.config import TrainConfig, TrainSettings
from tessera.train.lm.objective import Objective, TermCounter

SPEC = TokenSpec(
    name="tiny",
    cardinalities=(5, 7),
    geometry=AudioGeometry(sample_rate=8000, samples_per_frame=160),
    fingerprint="0" * 64,
)
LM = LMConfig(
    width=16,
    layers=2,
    heads=2,
    dropout=0.1,
    arrangement=DelayConfig(),
    variable_length=True,
    conditions=(LabelConfig(classes=3, dropout=0.2),),
)


def _settings(**changes) -> TrainSettings:
    return TrainSettings(**{"steps": 20, "batch": 4, "lr": 1e-2, "warmup_steps": 2, **changes})


def _objective(dtype: str = "float32", lm: LMConfig = LM) -> Objective:
    torch.manual_seed(0)
    vectors = torch.randn(2, 7, 3) if lm.input.kind == "codes" else None
    return Objective(TokenLM(lm, SPEC, vectors), dtype)


def _batch(step: int, items: int = 4) -> tuple[torch.Tensor, torch.Tensor, ConditionBatch]:
    generator = torch.Generator().manual_seed(step)
    codes = torch.randint(0, 5, (items, 2, 9), generator=generator)
    lengths = torch.randint(3, 10, (items,), generator=generator)
    label = torch.randint(0, 3, (items,), generator=generator)
    return codes, lengths, ConditionBatch(label=label)


def _run(engine, first: int, last: int, micro: int = 4, rank: int = 0, world: int = 1, spoil=None) -> list[float]:
    """Steps first .. last - 1 on made-up data as LMTrainer does them; returns this process's share of each loss."""
    losses = []
    counter = TermCounter(engine.objective.lm)
    for step in range(first, last):
        codes, lengths, conditions = _batch(step)
        totals = counter(lengths.tolist())
        loss_sum = 0.0
        for number in range(rank, len(codes) // micro, world):
            rows = torch.arange(number * micro, (number + 1) * micro)
            torch.manual_seed(1000 * step + number)
            loss, _, _ = engine.model(codes[rows], lengths[rows], conditions.rows(rows), totals)
            if spoil is not None:
                loss = spoil(loss, step)
            engine.backward(loss)
            loss_sum += float(loss.detach())
        engine.last = engine.step()
        losses.append(loss_sum)
    return losses


@pytest.fixture
def tiny() -> SimpleNamespace:
    """Makers of tiny things."""
    return SimpleNamespace(
        spec=SPEC,
        lm=LM,
        world=ProcessGroup(0, 1, torch.device("cpu")),
        settings=_settings,
        objective=_objective,
        batch=_batch,
        run=_run,
    )


def _write_shards(folder: Path, tokenizer, count: int, seed: int) -> None:
    """Shards of made-up codes of different lengths, with labels and texts."""
    generator = torch.Generator().manual_seed(seed)
    index = {"ids": [], "lengths": [], "labels": [], "texts": []}
    rows = []
    words = ("one", "two", "three", "four", "five")
    for number in range(count):
        length = int(torch.randint(3, 9, (), generator=generator))
        rows.append(torch.randint(0, 4, (length, 2), generator=generator))
        index["ids"].append(f"item{number}")
        index["lengths"].append(length)
        index["labels"].append(number % 3)
        index["texts"].append(f"{words[number % 5]} {words[length % 5]}")
    folder.mkdir(parents=True)
    file = write_shard(folder / "00000.safetensors", tokenizer.spec, [row.T for row in rows])
    described = Index(
        spec=tokenizer.spec, build=f"{seed:064}", label_names=["a", "b", "c"], files=[file], skipped=[], **index
    )
    write_json(folder / "index.json", described.model_dump(mode="json"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with tokenizer/, train/ and test/ (shards), and other/, a tokenizer that did not make them."""
    folder = tmp_path_factory.mktemp("tiny")
    quantizer = ResidualConfig(levels=2, quantizer=VQConfig(size=4, kmeans_init=False))
    for name in ("tiny", "other"):
        config = ImageTokenizerConfig(
            name=name, height=4, width=4, channels=1, features=8, blocks=1, latent_dim=4, quantizer=quantizer
        )
        tokenizer = make_tokenizer(config)
        tokenizer.save(folder / ("tokenizer" if name == "tiny" else name))
        if name == "tiny":
            _write_shards(folder / "train", tokenizer, 23, seed=1)
            _write_shards(folder / "test", tokenizer, 7, seed=2)
    return folder


@pytest.fixture
def tiny_config(tiny_data):
    """Makes the config of a run on `tiny_data`: tiny_config({"seed": 1}, steps=3), the second part of train."""

    def make(changes: dict | None = None, **train) -> TrainConfig:
        settings = {
            "name": "tiny",
            "device": "cpu",
            "data": {"shards": str(tiny_data / "train"), "test": str(tiny_data / "test")},
            "tokenizer": str(tiny_data / "tokenizer"),
            "lm": {
                **{"width": 16, "layers": 1, "heads": 2, "dropout": 0.1, "variable_length": True},
                "conditions": [{"kind": "label", "dropout": 0.3}],
            },
            "train": {"steps": 8, "batch": 4, "lr": 0.01, "warmup_steps": 2, "log_every": 1, "ema": 0.9, **train},
            **(changes or {}),
        }
        return check_config(settings, TrainConfig)

    return make


@pytest.fixture
def tiny_sound() -> AudioTokenizerConfig:
    """A tokenizer of sound."""
    stack = AudioStackConfig(width=16, layers=1, kernel=3, chunk=8)
    quantizer = ResidualConfig(levels=2, quantizer=VQConfig(size=8))
    return AudioTokenizerConfig(
        name="s", sample_rate=4000, hop=40, window=160, latent_dim=8, encoder=stack, decoder=stack, quantizer=quantizer
    )
