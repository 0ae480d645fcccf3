"""The end of a run: the model directory, whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...configs.files import fsync_dir
from ...lm.checkpoints.model_directory import LoadedModel, save_model
from ...lm.models.causal import TokenLM
from .config import TrainConfig
from .model_card import model_card
from .run_state import RunState
from .setup import TrainingSetup


def export_lm(lm: TokenLM, parts: TrainingSetup, config: TrainConfig, folder: Path, state: RunState) -> None:
    """Write the model directory of a run's weights, as they are after state.step steps.

    Args:
        lm: the weights that are exported, those of the moving average where there is one.
        folder: an older one is replaced.
    """
    card = model_card(
        config,
        parts,
        command=state.command,
        step=state.step,
        losses=state.losses,
        parameters=lm.num_parameters,
        part=lm.loss_parts.name,
    )
    export_model(parts.loaded(lm, config.generation), folder, card, config.export.dtype)


def export_model(model: LoadedModel, folder: Path, card: str, dtype: str) -> None:
    """Write a model directory beside `folder` and rename it; an older one is replaced.

    Args:
        card: text of its README.md.
        dtype: storage of the weights, "float32", "bfloat16" or "float16".
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
    )
    shutil.rmtree(folder, ignore_errors=True)
    stage.rename(folder)
    fsync_dir(folder.parent)
