"""Atomic export of the model directory at the end of a run, and of the adapter directory of a run with lora."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from ...configs.files import fsync_dir
from ...lm.checkpoints.adapter_directory import is_adapted, save_adapter
from ...lm.checkpoints.model_directory import LoadedModel, save_model
from ...lm.layers.lora import merged_copy
from ...lm.models.base import LanguageModel
from ...lm.models.transformer_lm import TransformerLM
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
        parameters=merged_copy(lm).num_parameters,
        part=lm.loss_parts.name,
        further=lm.loss_parts.names,
    )
    export_model(parts.loaded(lm, config.generation), folder, card, config.export.dtype)


def export_adapter(lm: TransformerLM, parts: TrainingSetup, config: TrainConfig, folder: Path, state: RunState) -> None:
    """Write the low-rank changes of a run with lora, after state.step steps, for the model that it started from.

    Args:
        lm: with the changes, not merged: the moving average if there is one.
        folder: does not exist, or is empty.
    Raises:
        ValueError: the run has no lora, or the model is more than its base and changes; the message names what.
    """
    if config.lora is None or config.init is None or parts.origin is None:
        raise ValueError("--adapter is for a run with lora; leave it out")
    different = parts.origin.difference(merged_copy(lm), parts.labels, parts.text, parts.spec)
    if different:
        raise ValueError(
            f"--adapter: {different}, so {config.init.source} with these changes is not the model that was trained; "
            "export the whole model instead"
        )
    card = model_card(
        config,
        parts,
        command=state.command,
        step=state.step,
        losses=state.losses,
        parameters=sum(own.numel() for name, own in lm.named_parameters() if is_adapted(name, config.lora)),
        part=lm.loss_parts.name,
        further=lm.loss_parts.names,
    )
    stage = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(stage, ignore_errors=True)
    save_adapter(stage, lm, config.lora, parts.origin.fingerprint, config.init.source, card)
    with suppress(OSError):
        folder.rmdir()  # if empty
    stage.rename(folder)
    fsync_dir(folder.parent)


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
