"""run.json of a checkpoint: counters and inputs of the run, and the check that a config continues the same run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ... import __version__
from ...configs.files import read_json, write_json
from ...configs.schema import Config, ConfigError, check_config
from .checkpoint import STATE_FILE
from .git import git_commit


@dataclass
class RunCounters:
    """Counters that both trainers save."""

    step: int = 0
    """Finished steps."""
    skipped: int = 0
    """Finished steps that were bad and changed nothing."""
    consecutive_bad: int = 0
    """Bad steps since the last good one."""


def write_run_file(
    folder: Path, counters: RunCounters, config: Config, processes: int, micro_batch: int, **inputs: Any
) -> None:
    """Write run.json.

    Args:
        micro_batch: examples per forward pass, as resolved for this number of processes.
        inputs: fingerprints of data and tokenizer, and what else the trainer needs to resume.
    """
    described = {
        "tessera": __version__,
        "git_commit": git_commit(),
        **{field.name: getattr(counters, field.name) for field in fields(RunCounters)},
        "processes": processes,
        "micro_batch": micro_batch,
        **inputs,
        "config": config.model_dump(mode="json"),
    }
    write_json(folder / STATE_FILE, described)


def read_run_file(folder: Path, config: Config, micro_batch: int | None, may_change: tuple[str, ...]) -> dict[str, Any]:
    """Read run.json and check that `config` continues its run.

    Args:
        micro_batch: train.micro_batch of `config`; null or the resolved size of the checkpoint are the same.
        may_change: see `check_resumable`.
    Raises:
        ConfigError: the run had another config.
    """
    found = read_json(folder / STATE_FILE)
    if micro_batch in (None, micro_batch_of(folder)):
        found["config"]["train"]["micro_batch"] = micro_batch
    check_resumable(found["config"], config, str(folder), may_change)
    return found


def counters_of(found: dict[str, Any]) -> dict[str, int]:
    """The fields of `RunCounters` in a run.json."""
    return {field.name: found[field.name] for field in fields(RunCounters)}


def micro_batch_of(folder: Path) -> int:
    """Micro-batch size of the run that saved a checkpoint, for a language model or a tokenizer."""
    found = read_json(folder / STATE_FILE)
    known = found.get("micro_batch") or found["config"]["train"]["micro_batch"]  # earlier versions: config only
    return known or max(1, found["config"]["train"]["batch"] // found["processes"])


def check_resumable(saved: dict[str, Any], config: Config, where: str, may_change: tuple[str, ...]) -> None:
    """Raise ConfigError for the first field in which a config differs from the one a run was started with.

    Args:
        saved: the config of the run, as in its run.json. where: the checkpoint, for the message.
        may_change: fields that may differ, with all below them: those that do not affect the course of training, and
            locations of data, whose content has a fingerprint.
    """
    # Settings added after the run was started had their default value then.
    with suppress(ConfigError):
        saved = check_config(saved, type(config)).model_dump(mode="json")
    before, after = _flatten(saved), _flatten(config.model_dump(mode="json"))
    # Kinds first: if a kind differs, all its fields do.
    for name in sorted(before.keys() | after.keys(), key=lambda name: (not name.endswith("kind"), name)):
        old, new = before.get(name), after.get(name)
        if old == new or any(name == free or name.startswith(f"{free}.") for free in may_change):
            continue
        raise ConfigError(
            f"{name}: this run was started with {old!r} ({where}), the config now says {new!r}; "
            "set it back, or start another run with another --out"
        )


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        name: value
        for key, item in data.items()
        for name, value in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }
