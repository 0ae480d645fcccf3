"""Tokenizers trained by several processes: the same run as one, whatever the masks."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tessera.configs.files import read_safetensors
from tessera.tokenize.data.media import write_audio
from tessera.train.common.metrics import read_metrics

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def tessera(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tessera", *map(str, arguments)]
    found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return found


def write_config(folder, balance: str, **train):
    """Recordings of very different lengths: one process has mostly padding in a step."""
    for number in range(4):
        moments = torch.arange(1200 if number else 80) / 4000
        wave = 0.5 * torch.sin(2 * torch.pi * (200 + 100 * number) * moments)[None]
        write_audio(folder / f"{number}.wav", wave, 4000)
    stack = {"width": 16, "layers": 1, "kernel": 3, "chunk": 8}
    book = {"kind": "vq", "size": 8, "kmeans_init": False, "revive_below": 0.0}
    config = {
        "device": "cpu",
        "data": {"kind": "folder", "path": str(folder), "labels": "none"},
        "tokenizer": {
            "kind": "audio", "name": "s", "sample_rate": 4000, "hop": 40, "window": 160, "latent_dim": 8,
            "encoder": stack, "decoder": stack,
            "quantizer": {"kind": "residual", "levels": 3, "quantizer": book, "level_dropout": 0.5},
        },
        "terms": [
            {"kind": "mel", "weight": 2.0}, {"kind": "quantizer"}, {"kind": "features"},
            {"kind": "adversarial", "weight": 0.5},
            {"kind": "distil", "teacher": {"kind": "mel", "window": 256, "bands": 20}},
        ],
        "judges": {
            "nets": [{"kind": "stft", "windows": [128], "channels": 2, "layers": 1}], "every": 2, "seconds": 0.1,
            "lecam": 0.01,
        },
        "balance": {"kind": balance},
        "stages": [
            {"kind": "train", "name": "all", "steps": 4},
            {"kind": "train", "name": "decoder", "steps": 3, "freeze": ["encoder", "quantizer"]},
        ],
        "train": {
            "batch": 4, "micro_batch": 1, "crop_seconds": 0.3, "warmup_steps": 1, "log_every": 1, "ema": 0.5, **train
        },
    }  # fmt: skip
    path = folder / "tokenizer.yaml"
    path.write_text(json.dumps(config))
    return path


def numbers(folder):
    return [
        {name: value for name, value in line.items() if isinstance(value, float) and name != "seconds"}
        for line in read_metrics(folder)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["sum", "balancer", "adaptive"])
def test_two_processes_equal_one(tmp_path, balance):
    config = write_config(tmp_path, balance)
    tessera("tokenizer", "train", config, "--out", tmp_path / "one")
    tessera("tokenizer", "train", config, "--out", tmp_path / "two", "--nproc", 2)
    first, second = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert len(first) == 7 and "judge" in first[0]
    for one, other in zip(first, second, strict=True):  # the same micro-batches, summed in another order
        assert other == pytest.approx(one, rel=2e-3, abs=1e-5)
    one, two = (read_safetensors(tmp_path / name / "tokenizer.safetensors")[0] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].float(), tensor.float(), atol=5e-3, rtol=2e-2, msg=f"{name} differs")
