"""Files shipped with the package: trained models by name, and data files by their path in the repository."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
BUNDLED = PACKAGE / "bundled"
CONFIGS = PACKAGE / "configs"
_DATA_FOLDERS = ("bundled", "samples")


def bundled_models() -> list[str]:
    """Names of the models shipped with the package."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("*/config.json"))


def bundled_model(name: str | Path) -> Path | None:
    """The directory of a shipped model, None if there is no model of that name."""
    return BUNDLED / str(name) if str(name) in bundled_models() else None


def shipped_path(path: str | Path) -> Path:
    """The given path, or the same path in the package if it does not exist and starts with bundled/ or samples/."""
    given = Path(path)
    if given.parts and given.parts[0] in _DATA_FOLDERS and ".." not in given.parts and not given.exists():
        shipped = PACKAGE / given
        return shipped if shipped.exists() else given
    return given
