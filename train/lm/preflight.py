"""Checks before the first step for errors that would otherwise occur hours later.

    the disk        has room for a checkpoint and the exported model
    the model       can be exported, and the export can be loaded
    evaluation      of the longest test items works, and so fits into memory
    generation      works with the config's settings: a sample of a frame or two (by a callable, as for samples)

Nothing is written, and the run's random numbers are unaffected.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...configs.schema import ConfigError
from ...lm.checkpoints.model_directory import LoadedModel, check_saveable
from ...lm.models.base import LanguageModel
from ..common.checkpoint import MARKER
from .config import TrainConfig
from .objective import Objective
from .samples import SampleRequest, make_request
from .setup import TrainingSetup

Rehearse = Callable[[SampleRequest], None]
"""Runs a request with minimal output to test it, writes nothing; raises ValueError."""

EXPORT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def check_exportable(config: TrainConfig, parts: TrainingSetup, lm: LanguageModel) -> LoadedModel:
    """The model as it will be exported. ConfigError: it cannot be exported or loaded again."""
    loaded = parts.loaded(lm, config.generation)
    check_saveable(loaded)
    return loaded


@torch.no_grad()
def check_evaluation(config: TrainConfig, parts: TrainingSetup, lm: LanguageModel, micro: int) -> None:
    """Evaluate the longest test items, so that unreadable items or lack of memory end the run here."""
    if parts.test is None:
        return
    rows = np.argsort(parts.test.lengths, kind="stable")[-micro:]
    batch = parts.test.batch(rows).to(lm.device)
    Objective(lm, config.train.dtype)(batch.codes, batch.lengths, batch.conditions)


def check_generation(config: TrainConfig, parts: TrainingSetup, loaded: LoadedModel, rehearse: Rehearse) -> None:
    """Test the requests for samples. ConfigError: the settings in `generation` do not fit the model."""
    lm = loaded.lm
    if lm.decode_plan.incomplete:
        return  # a refiner alone generates nothing
    count = config.train.samples if config.train.sample_every is not None else 1
    request = make_request(loaded, parts, Path(), count, config.seed)
    if config.train.sample_every is None and request.voices is None:
        voices = (parts.items.prompt(row, 0) for row in range(len(parts.items)))
        voice = next((found for found in voices if found is not None), None) if parts.items.prompts else None
        request = replace(request, voices=None if voice is None else [voice])
    try:
        rehearse(request)
    except ValueError as error:
        raise ConfigError(f"generation: {error}") from None


def check_room(out: Path, checkpoint: int, model: int, kept: int) -> None:
    """Check that the disk has room for a checkpoint and the model; warn if not for all that will be kept.

    Args:
        checkpoint, model: size of each in bytes. kept: checkpoints that will be kept.
    Raises:
        ConfigError: there is no room for one checkpoint and the model.
    """
    free = shutil.disk_usage(next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())).free
    if free < checkpoint + model:
        raise ConfigError(
            f"{out}: no room for a checkpoint and the model, which take about {_size(checkpoint + model)}, "
            f"{_size(free)} are free; make room, or name a folder on another disk with --out"
        )
    there = len(list((out / "steps").glob(f"step-*/{MARKER}")))
    needed = max(1, kept + 1 - there) * checkpoint + model  # one more while it is written
    if free < needed:
        print(
            f"warning: {out}: all checkpoints that are kept and the model take about {_size(needed)}, {_size(free)} "
            "are free; keep fewer, or make room",
            file=sys.stderr,
        )


def checkpoint_bytes(config: TrainConfig, parameters: int, trained: int) -> int:
    """Approximate size of a checkpoint: float32 weights, two moments per trained weight, and the moving average."""
    return 4 * parameters + 8 * trained + (4 * parameters if config.train.ema else 0)


def evaluates(config: TrainConfig) -> bool:
    """Whether the run evaluates before its end."""
    return config.data.test is not None and config.train.eval_every is not None


def notes(config: TrainConfig) -> list[str]:
    """Notes on contradictory but harmless settings, one line each."""
    settings, found = config.train, []
    if settings.eval_every is not None and config.data.test is None:
        found.append(
            "train.eval_every is set, but data.test is not: nothing is evaluated, and no checkpoint is the best"
        )
    if settings.warmup_steps >= settings.steps:
        found.append(
            f"train.warmup_steps {settings.warmup_steps} is not below train.steps {settings.steps}: the learning rate "
            f"does not get to train.lr {settings.lr:g}"
        )
    for name in ("eval_every", "sample_every", "save_every"):
        every = getattr(settings, name)
        if every is not None and every > settings.steps:
            found.append(f"train.{name} {every} is above train.steps {settings.steps}: only the end counts")
    return found


def _size(count: int) -> str:
    """Human-readable size, such as "1.2 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
