"""Recognizes the content of a path, for error messages when it is passed in place of something else.

It reads only names and small JSON files, and does not decide whether the content can be used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .json_limits import NAMED, parse_measured, read_measured

CONFIG_KINDS = {
    "lm": ("a language model's config", "tessera train"),
    "tokenizer": ("a tokenizer's config", "tessera tokenizer train"),
    "align": ("an aligner's config", "tessera align"),
    "shards": ("a config of shards", "tessera shards"),
    "coder": ("a coder's config", "tessera tokenizer coder"),
}
"""Kinds of YAML files: description, and the command that takes the file."""


def config_kind(data: Any) -> str | None:
    """The kind of a YAML file by its top-level keys; None if unknown."""
    if not isinstance(data, dict):
        return None
    if "lm" in data or ("init" in data and isinstance(data.get("tokenizer"), str)):
        return "lm"
    if "corpus" in data:
        return "align" if "text" in data else "shards"
    if "network" in data:
        return "coder"
    return "tokenizer" if isinstance(data.get("tokenizer"), dict) else None


def folder_kind(folder: str | Path) -> str | None:
    """The content of a folder: "model", "adapter", "tokenizer", "run", "tokenizer run", "shards", "clusters", "coder"
    or "foreign" (a checkpoint of another library); None if unknown."""
    folder = Path(folder)
    if not folder.is_dir():
        return None
    if (folder / "index.json").is_file() or any(folder.glob("part-*.json")):
        return "shards"
    described = _read(folder / "config.json")
    if isinstance(described, dict):
        named = {"tessera-model": "model", "tessera-clusters": "clusters"}.get(str(described.get("format")))
        if named is not None:
            return named
        if "model_type" in described or "architectures" in described:
            return "foreign"
        # Damaged clusters without their format still describe a tokenizer; the weight file tells them apart.
        if isinstance(described.get("tokenizer"), dict) and (folder / "tokenizer.safetensors").is_file():
            return "tokenizer"
        if "lm" in described and "train" in described:
            return "run"
    if (folder / "adapter.json").is_file():
        return "adapter"
    if (folder / "coder.json").is_file():
        return "coder"
    return "tokenizer run" if (folder / "train.json").is_file() else None


def run_model(folder: str | Path) -> Path | None:
    """The finished model of a `tessera train` run; None if the folder is not a run or has no model yet."""
    model = Path(folder) / "model"
    is_run = folder_kind(folder) == "run" and folder_kind(model) == "model"
    return model if is_run else None


def describe_wrong(path: str | Path, wanted: str) -> str | None:
    """One line about a path that exists but is not what is needed: what it is, and what to do with it.

    Args:
        wanted: what is needed, with its article: "a model".
    Returns:
        None if the path is not recognized as something else.
    """
    path = Path(path)
    what, advice = _file_words(path) if path.is_file() else _folder_words(path)
    return f"{path}: this is {what}, {wanted} is needed here; {advice}" if what else None


def unfinished_run(folder: Path) -> str:
    """Advice for a `tessera train` run that has no model yet."""
    onward = f"resume with: tessera train CONFIG --out {folder} --resume"
    return f"it has no model yet; export its current state with: tessera export {folder}, or {onward}"


def _folder_words(folder: Path) -> tuple[str, str]:
    kind = folder_kind(folder)
    if kind == "run":
        model = run_model(folder)
        return "a run of tessera train", f"its model is in {model}" if model else unfinished_run(folder)
    if kind == "tokenizer run":
        frozen = sorted(folder.glob("snapshot-*"), key=lambda path: (len(path.name), path.name))
        onward = f"resume with: tessera tokenizer train CONFIG --out {folder} --resume"
        return "an unfinished tokenizer run", f"its last frozen snapshot: {frozen[-1]}" if frozen else onward
    words = {
        "model": ("a model", f"use it with: tessera generate {folder}"),
        "adapter": ("an adapter", f"use it with the model it changes: tessera generate MODEL --adapter {folder}"),
        "tokenizer": ("a tokenizer", f"use it with: tessera encode FILES --tokenizer {folder}"),
        "shards": ("a folder of shards", "name it as data.shards in the config of: tessera train"),
        "clusters": ("a folder of clusters", "name it as clusters in the config of: tessera train"),
        "coder": ("a coder", f"use it with: tessera encode FILES --compress --model {folder}"),
        "foreign": (
            "a checkpoint of another library",
            f"if docs/public-models.md lists it, convert it with: tessera convert {folder} DST",
        ),
    }
    if kind is not None:
        return words[kind]
    if folder.is_dir() and any(folder.glob("*.y*ml")):
        names = ", ".join(sorted(file.name for file in folder.glob("*.y*ml"))[:5])
        return (
            "a folder of configs",
            f"use one with tessera tokenizer train, tessera shards or tessera train: {names}",
        )
    return "", ""


def _file_words(path: Path) -> tuple[str, str]:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        from .schema import read_yaml

        try:
            kind = config_kind(read_yaml(path))
        except (ValueError, OSError):
            kind = None
        if kind is None:
            return "a YAML file", "name a folder"
        what, command = CONFIG_KINDS[kind]
        return what, f"use it with: {command} {path}"
    if path.name in ("config.json", "lm.safetensors", "tokenizer.safetensors", "coder.json", "index.json"):
        return "a file of its folder", f"name the folder: {os.fspath(path.parent)}"
    return "a file", "name a folder"


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return parse_measured(read_measured(file, str(path), NAMED), str(path))
    except (ValueError, OSError):
        return None
