"""Law: a run that was killed or stopped and is resumed equals the run left alone, bit for bit, whatever is trained."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import test_launch
import test_tokenizer_processes
import torch
from refiner_configs import coarse_config, refiner_config
from run_files import assert_same_run, before_step, killed_at
from scale_data import write_data
from test_lm_trainer import make_config, packed_config
from test_tokenizer_trainer import everything

from tessera.configs.files import read_json
from tessera.configs.schema import check_config
from tessera.lm.clustering.clustering import cluster_codes
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.common.trainer import Trainer
from tessera.train.lm.trainer import LMTrainer, train_lm
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, TokenizerTrainer, train_tokenizer


@dataclass(frozen=True)
class Kind:
    """A kind of run: how it is trained, and the class that trains it."""

    trainer: type[Trainer]
    train: Callable[..., bool]
    """train(out, resume=False) -> True when finished, False if stopped by a signal."""


def language_model(config) -> Kind:
    return Kind(LMTrainer, lambda out, **more: train_lm(config, out, **more))


def lm(data: Path, folder: Path) -> Kind:
    return language_model(make_config(data))


def packed(data: Path, folder: Path) -> Kind:
    return language_model(packed_config(data, micro_batch=1))


def prompts(data: Path, folder: Path) -> Kind:
    shards = {"shards": str(data / "train"), "test": str(data / "test"), "prompt": {"kind": "same_label"}}
    conditions = [{"kind": "codes", "max_frames": 4, "dropout": 0.2}]
    lm = {"width": 16, "layers": 1, "heads": 2, "variable_length": True, "conditions": conditions}
    config = make_config(data, {"data": shards, "lm": lm}, steps=4, save_every=1, sample_every=4, samples=3)
    return language_model(config)


def refiner(data: Path, folder: Path) -> Kind:
    """A masked model of codes given coarse labels, exported with the model of the labels."""
    cluster_codes(load_tokenizer(data / "tokenizer"), 2).save(folder / "clusters")
    assert train_lm(coarse_config((data, folder)), folder / "coarse")
    return language_model(refiner_config((data, folder), folder / "coarse"))


def next_scale(data: Path, folder: Path) -> Kind:
    write_data(folder)
    shards = {"shards": str(folder / "shards"), "test": str(folder / "shards")}
    lm = {"kind": "next_scale", "width": 16, "layers": 1, "heads": 2, "dropout": 0.2, "start": "condition"}
    lm["conditions"] = [{"kind": "label", "join": "prefix", "dropout": 0.1}]
    settings = {"tokenizer": str(folder / "tokenizer"), "data": shards, "lm": lm}
    return language_model(make_config(data, settings, steps=4, eval_every=2, save_every=2))


def tokenizer(data: Path, folder: Path, dtype: str = "float32") -> Kind:
    """Two stages with all kinds of state: codebooks, a loss with layers, discriminators, balance, averaged weights."""
    (folder / "audio").mkdir()
    for number in range(4):
        moments = torch.arange(1000 + 400 * number) / 4000
        wave = 0.5 * torch.sin(2 * torch.pi * (200 + 100 * number) * moments)[None]
        write_audio(folder / "audio" / f"{number}.wav", wave, 4000)
    stack = {"width": 16, "layers": 1, "kernel": 3, "chunk": 8}
    settings = {
        "data": {"kind": "folder", "path": str(folder / "audio"), "labels": "none"},
        "tokenizer": {
            "kind": "audio", "name": "s", "sample_rate": 4000, "hop": 40, "window": 160, "latent_dim": 8,
            "encoder": stack, "decoder": stack,
            "quantizer": {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 8}},
        },
    }  # fmt: skip
    config = check_config(everything(settings, save_every=1, keep_last=99, dtype=dtype), TokenizerTrainConfig)

    def train(out: Path, **more) -> bool:
        return train_tokenizer(config, out, progress=False, **more) is not None

    return Kind(TokenizerTrainer, train)


def tokenizer_bfloat16(data: Path, folder: Path) -> Kind:
    return tokenizer(data, folder, "bfloat16")


@pytest.fixture(scope="module")
def left_alone(tiny_data, tmp_path_factory):
    """Function: kind -> how it is trained, and a finished run; each is trained once."""
    made: dict[Callable, tuple[Kind, Path]] = {}

    def get(make: Callable[[Path, Path], Kind]) -> tuple[Kind, Path]:
        if make not in made:
            folder = tmp_path_factory.mktemp(make.__name__)
            kind = make(tiny_data, folder)
            assert kind.train(folder / "whole")
            made[make] = kind, folder / "whole"
        return made[make]

    return get


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "make, step",
    [
        (lm, 5),
        *(pytest.param(lm, step, marks=pytest.mark.slow) for step in (3, 7)),  # after a checkpoint, after the last one
        (packed, 5),
        (prompts, 2),
        (refiner, 3),
        (next_scale, 3),
        pytest.param(refiner, 5, marks=pytest.mark.slow),
        (tokenizer, 3),
        *(pytest.param(tokenizer, step, marks=pytest.mark.slow) for step in (2, 5)),  # inside a stage, discriminators
        *(pytest.param(tokenizer_bfloat16, step, marks=pytest.mark.slow) for step in (2, 3, 5)),
    ],
)
def test_killed(left_alone, tmp_path, make, step):
    kind, whole = left_alone(make)
    with killed_at(kind.trainer, step):
        kind.train(tmp_path / "run")
    torch.manual_seed(step)  # what is left in the generators does not matter
    assert kind.train(tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "make, number", [(lm, signal.SIGINT), (lm, signal.SIGTERM), (tokenizer, signal.SIGINT), (tokenizer, signal.SIGTERM)]
)
def test_stopped_by_a_signal(left_alone, tmp_path, make, number):
    """The step is finished and saved."""
    kind, whole = left_alone(make)
    out = tmp_path / "run"
    with before_step(kind.trainer, 4, lambda: os.kill(os.getpid(), number)):
        assert not kind.train(out)
    assert (out / "steps" / "step-00000005" / "COMMITTED").exists()
    assert not (out / "model").exists() and not (out / "tokenizer.safetensors").exists()
    assert (out / "snapshot-5" / "tokenizer.safetensors").exists() == (make is tokenizer)
    assert kind.train(out, resume=True)
    assert_same_run(whole, out)


def test_ended_early(tiny_data, tmp_path):
    """A finished run goes on when it is given more steps, as if it had had them from the start."""
    ends = {"min_lr_ratio": 1.0, "eval_every": 2, "save_every": 2}  # a learning rate that does not depend on the end
    assert train_lm(make_config(tiny_data, steps=2, **ends), tmp_path / "run")
    for out, resume in ((tmp_path / "run", True), (tmp_path / "whole", False)):
        assert train_lm(make_config(tiny_data, steps=4, **ends), out, resume=resume)
        assert read_json(out / "FINISHED")["step"] == 4
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def lm_command(data: Path, folder: Path, engine: str) -> list:
    config = test_launch.write_config(folder, data, save_every=2, steps=8)
    return ["train", config, "--set", f"engine={engine}"]


def tokenizer_command(data: Path, folder: Path, engine: str) -> list:
    return ["tokenizer", "train", test_tokenizer_processes.write_config(folder, "balancer", save_every=2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, engine",
    [
        (lm_command, "{kind: torch}"),
        (lm_command, "{kind: deepspeed, zero_stage: 1}"),
        (tokenizer_command, "{kind: torch}"),
    ],
)
def test_two_processes_killed(tiny_data, tmp_path, command, engine):
    run = [*command(tiny_data, tmp_path, engine), "--nproc", 2]
    test_launch.tessera(*run, "--out", tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", *map(str, run), "--out", str(killed)],
        env=test_launch.ENVIRONMENT,
        start_new_session=True,
    )
    while not list(killed.glob("steps/step-*/COMMITTED")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()  # the processes it launched notice and end by themselves
    process.wait()
    time.sleep(5)
    (killed / "config.json").unlink(missing_ok=True)  # of a tokenizer, had it finished before
    test_launch.tessera(*run, "--out", killed, "--resume")
    assert_same_run(tmp_path / "whole", killed)
