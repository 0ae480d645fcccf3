"""Model card: data, command, config and losses of a finished model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from ... import __version__
from ..common.git import git_commit
from .config import TrainConfig
from .setup import TrainingSetup


def model_card(
    config: TrainConfig,
    parts: TrainingSetup,
    *,
    command: str,
    step: int,
    losses: dict[str, dict[str, Any]],
    parameters: int,
    part: str = "codebook",
    further: Sequence[str] = (),
) -> str:
    """README.md of the model directory, in Markdown.

    Args:
        losses: by split ("train", "test"): {"step", "loss", "loss_per_codebook"}, as last measured.
        part: what the loss is broken down by, "codebook" or "scale".
        further: losses with a name of their own: "text", "advance".
    """
    spec = parts.spec
    steps = f"{step} steps" if step == config.train.steps else f"{step} of {config.train.steps} steps"
    lines = [
        f"# {config.name}",
        "",
        f"A token language model made by Tessera {__version__} (commit {git_commit() or 'unknown'}): "
        f"{parameters:,} parameters, "
        f"{spec.num_codebooks} codebooks of {', '.join(map(str, spec.cardinalities))} codes, {steps}.",
        "",
        "## Data",
        "",
        *_data(config, parts),
        "",
        "## Losses",
        "",
        "Cross-entropy in nats per code. Train: the last batch, with dropout; test: all items"
        + (", with the moving average of the weights." if config.train.ema else "."),
        "",
        f"| split | mean | each {part} | {''.join(f'{name} | ' for name in further)}step |",
        "|---|---|---|" + "---|" * (1 + len(further)),
        *(
            f"| {split} | {found['loss']:.4f} | {_numbers(found[f'loss_per_{part}'])} | "
            + "".join(f"{found[f'loss_{name}']:.4f} | " for name in further)
            + f"{found['step']} |"
            for split, found in losses.items()
        ),
        *_tasks(losses.get("test", {})),
        "",
        "## How it was made",
        "",
        "```",
        command or "train_lm(config, out)",
        "```",
        "",
        "```yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _data(config: TrainConfig, parts: TrainingSetup) -> list[str]:
    """The list of shards, labels and tokenizer."""
    items, test = parts.items, parts.test
    longer = f" ({items.left_out} items longer than {config.data.max_frames} frames were left out)"
    lines = [
        f"- Training shards `{config.data.shards}`: {len(items)} items, {int(items.frames.sum())} frames"
        + (f"{longer}." if items.left_out else ".")
    ]
    if test:
        lines.append(f"- Test shards `{config.data.test}`: {len(test)} items, {int(test.frames.sum())} frames.")
    if parts.labels:
        lines.append(f"- Labels: {', '.join(parts.labels)}.")
    lines.append(f"- Tokenizer `{parts.spec.name}`, fingerprint {parts.spec.fingerprint}.")
    return lines


def _tasks(found: dict[str, Any]) -> list[str]:
    """The losses of the tasks of a text stream, if there are any."""
    tasks = [f"{task} {found[f'loss_{task}']:.4f}" for task in ("speak", "write") if f"loss_{task}" in found]
    return ["", f"By task, on the test shards: {', '.join(tasks)}."] if tasks else []


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
