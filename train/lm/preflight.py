"""Checks before the first step for errors that would otherwise occur hours later.

    memory          has room for the weights and a micro-batch
    the disk        has room for a checkpoint and the exported model
    the model       can be exported, and the export can be loaded
    evaluation      of the longest test items works, and so fits into memory
    generation      works with the config's settings: a sample of a frame or two (by a callable, as for samples)

Nothing is written, and the run's random numbers are unaffected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...configs.schema import ConfigError
from ...lm.checkpoints.model_directory import LoadedModel, check_saveable
from ...lm.models.base import LanguageModel
from ..common.memory_check import check_batch_fits, check_weights_fit, count_numbers
from .config import TrainConfig
from .objective import Objective
from .samples import SampleRequest, make_request
from .setup import TrainingSetup

Rehearse = Callable[[SampleRequest], None]
"""Runs a request with minimal output to test it, writes nothing; raises ValueError."""

EXPORT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def check_memory(config: TrainConfig, parts: TrainingSetup, micro: int, device: torch.device) -> None:
    """Raise ValueError if the weights or a micro-batch of `micro` examples cannot fit into memory."""
    lm = parts.lm_config

    def numbers_with(layers: int) -> int:
        """Values that training keeps for a model with this many layers."""
        shallow = replace(parts, lm_config=lm.model_copy(update={"layers": layers}))
        return count_numbers(lambda: shallow.make_lm(0), "lm")

    one, two = numbers_with(1), numbers_with(2)  # building a thousand layers takes seconds
    partly = config.lora is not None or (config.init is not None and bool(config.init.freeze))
    check_weights_fit(one + (lm.layers - 1) * (two - one), "lm", device, all_learn=not partly)
    packing = config.data.packing
    frames = float(parts.items.lengths.mean()) if packing.kind == "padded" else packing.steps
    half = config.train.dtype == "bfloat16"
    check_batch_fits(micro, frames, lm.layers * lm.width, parts.spec.num_codebooks, half, device)


def check_exportable(config: TrainConfig, parts: TrainingSetup, lm: LanguageModel) -> LoadedModel:
    """The model as it will be exported. ConfigError: it cannot be exported or loaded again."""
    loaded = parts.loaded(lm, config.generation)
    check_saveable(loaded)
    return loaded


@torch.no_grad()
def check_evaluation(config: TrainConfig, parts: TrainingSetup, lm: LanguageModel, micro: int) -> None:
    """Evaluate the longest test items, so that unreadable items or lack of memory end the run here."""
    if parts.items.states is not None:
        parts.items.batch([0])  # the text encoder works
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
    default = config.generation.default_label
    if default is not None and default not in parts.labels:
        known = f"one of {', '.join(parts.labels[:10])}" if parts.labels else "null: the model has no labels"
        raise ConfigError(f"generation.default_label: no label {default!r}; use {known}")
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


def checkpoint_bytes(config: TrainConfig, parameters: int, trained: int) -> int:
    """Approximate size of a checkpoint: float32 weights (with lora those that learn alone), two moments per trained
    weight, and the moving average."""
    weights = parameters if config.lora is None else trained
    return 4 * weights + 8 * trained + (4 * trained if config.train.ema else 0)


def evaluates(config: TrainConfig) -> bool:
    """Whether the run evaluates before its end."""
    return config.data.test is not None and config.train.eval_every is not None


def notes(config: TrainConfig) -> list[str]:
    """Notes on contradictory but harmless settings, one line each."""
    settings, found = config.train, []
    if settings.eval_every is not None and config.data.test is None:
        found.append(
            "train.eval_every is set, but data.test is not: nothing is evaluated, and no checkpoint is marked as best"
        )
    if settings.warmup_steps >= settings.steps:
        found.append(
            f"train.warmup_steps {settings.warmup_steps} is not below train.steps {settings.steps}: the learning "
            f"rate never reaches train.lr {settings.lr:g}"
        )
    for name in ("eval_every", "sample_every", "save_every"):
        every = getattr(settings, name)
        if every is not None and every > settings.steps:
            found.append(f"train.{name} {every} is above train.steps {settings.steps}: it happens only at the end")
    return found
