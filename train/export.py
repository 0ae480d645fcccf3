"""The end of a run: the model directory, whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..lm.weights import LoadedModel, save_model
from ..tokenize.files import fsync_dir


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
