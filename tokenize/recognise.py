"""What a path holds, for the error that follows when it is given in place of something else.

Only names and small JSON files are read; nothing here decides whether the content can be used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .json_limits import NAMED, parse_measured, read_measured

CONFIG_KINDS = {
    "lm": ("a language model's config", "tessera train"),
    "tokenizer": ("a tokenizer's config", "tessera tokenizer train"),
    "shards": ("a config of shards", "tessera shards"),
    "coder": ("a coder's config", "tessera tokenizer coder"),
}
"""Kinds of YAML files: what each is called, and the command that takes it."""


def config_kind(data: Any) -> str | None:
    """The kind of a YAML file, told by its top-level keys; None where they do not say."""
    if not isinstance(data, dict):
        return None
    if "lm" in data:
        return "lm"
    if "corpus" in data:
        return "shards"
    if "network" in data:
        return "coder"
    return "tokenizer" if isinstance(data.get("tokenizer"), dict) else None


def folder_kind(folder: str | Path) -> str | None:
    """What a folder holds: "model", "tokenizer", "run", "tokenizer run", "shards", "clusters", "coder" or "foreign" (a
    checkpoint of another library); None where nothing says it."""
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
        # Damaged clusters, without their format, still describe a tokenizer: the weights tell.
        if isinstance(described.get("tokenizer"), dict) and (folder / "tokenizer.safetensors").is_file():
            return "tokenizer"
        if "lm" in described and "train" in described:
            return "run"
    if (folder / "coder.json").is_file():
        return "coder"
    return "tokenizer run" if (folder / "train.json").is_file() else None


def run_model(folder: str | Path) -> Path | None:
    """The finished model of a run of `tessera train`; None where the folder is no run, or has no model yet."""
    model = Path(folder) / "model"
    is_run = folder_kind(folder) == "run" and folder_kind(model) == "model"
    return model if is_run else None


def describe_wrong(path: str | Path, wanted: str) -> str | None:
    """One line for a path that is there but is not what is needed: what it is, and what to do with it.

    Args:
        wanted: what is needed, with its article: "a model".
    Returns:
        None where the path is not recognised as something else.
    """
    path = Path(path)
    what, advice = _file_words(path) if path.is_file() else _folder_words(path)
    return f"{path}: this is {what}, {wanted} is needed here; {advice}" if what else None


def unfinished_run(folder: Path) -> str:
    """What to do with a run of `tessera train` that has no model yet."""
    onward = f"go on with: tessera train CONFIG --out {folder} --resume"
    return f"it has no model yet; make one of it as it is with: tessera export {folder}, or {onward}"


def _folder_words(folder: Path) -> tuple[str, str]:
    kind = folder_kind(folder)
    if kind == "run":
        model = run_model(folder)
        return "a run of tessera train", f"its model is in {model}" if model else unfinished_run(folder)
    if kind == "tokenizer run":
        frozen = sorted(folder.glob("snapshot-*"), key=lambda path: (len(path.name), path.name))
        onward = f"go on with: tessera tokenizer train CONFIG --out {folder} --resume"
        return "an unfinished tokenizer run", f"frozen on the way: {frozen[-1]}" if frozen else onward
    words = {
        "model": ("a model", f"use it with: tessera generate {folder}"),
        "tokenizer": ("a tokenizer", f"use it with: tessera encode FILES --tokenizer {folder}"),
        "shards": ("a folder of shards", "name it as data.shards in the config of: tessera train"),
        "clusters": ("a folder of clusters", "name it as clusters in the config of: tessera train"),
        "coder": ("a coder", f"use it with: tessera encode FILES --compress --model {folder}"),
        "foreign": (
            "a checkpoint of another library",
            f"those of MusicGen and LlamaGen are read by: tessera convert {folder} DST",
        ),
    }
    if kind is not None:
        return words[kind]
    if folder.is_dir() and any(folder.glob("*.y*ml")):
        names = ", ".join(sorted(file.name for file in folder.glob("*.y*ml"))[:5])
        return (
            "a folder of configs",
            f"they are read by tessera tokenizer train, tessera shards and tessera train: {names}",
        )
    return "", ""


def _file_words(path: Path) -> tuple[str, str]:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        from .config import read_yaml

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
