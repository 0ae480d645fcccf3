"""Atomic export of the model directory at the end of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...configs.files import fsync_dir
from ...lm.checkpoints.model_directory import LoadedModel, save_model
from ...lm.models.base import LanguageModel
from .config import TrainConfig
from .model_card import model_card
from .run_state import RunState
from .setup import TrainingSetup


def export_lm(lm: LanguageModel, parts: TrainingSetup, config: TrainConfig, folder: Path, state: RunState) -> None:
    """Write the model directory of a run, with its weights after state.step steps.

    Args:
        lm: the weights to export: the moving average if there is one.
        folder: an existing one is replaced.
    """
    card = model_card(
        config,
        parts,
        command=state.command,
        step=state.step,
        losses=state.losses,
        parameters=lm.num_parameters,
        part=lm.loss_parts.name,
        further=lm.loss_parts.further,
    )
    export_model(parts.loaded(lm, config.generation), folder, card, config.export.dtype)


def export_model(model: LoadedModel, folder: Path, card: str, dtype: str) -> None:
    """Write a model directory next to `folder` and rename it; an existing one is replaced.

    Args:
        card: text of its README.md.
        dtype: storage type of the weights, "float32", "bfloat16" or "float16".
    """
    stage = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(stage, ignore_errors=True)
    save_model(
        stage,
        model.lm,
        model.tokenizer,
        model.text,
        model.labels,
        model.defaults,
        card,
        dtype=dtype,  # type: ignore[arg-type]
        text_encoder=model.text_encoder,
    )
    shutil.rmtree(folder, ignore_errors=True)
    stage.rename(folder)
    fsync_dir(folder.parent)
