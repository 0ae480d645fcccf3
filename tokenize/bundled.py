"""What comes with the package: trained models by their names, and files by their paths in the repository."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
BUNDLED = PACKAGE / "bundled"
CONFIGS = PACKAGE / "configs"
_DATA_FOLDERS = ("bundled", "samples")


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("*/config.json"))


def bundled_model(name: str | Path) -> Path | None:
    """The directory of a model that comes with the package, None where none has that name."""
    return BUNDLED / str(name) if str(name) in bundled_models() else None


def shipped_path(path: str | Path) -> Path:
    """A path as given; where nothing is there and it begins with bundled/ or samples/, that path in the package."""
    given = Path(path)
    if given.parts and given.parts[0] in _DATA_FOLDERS and ".." not in given.parts and not given.exists():
        shipped = PACKAGE / given
        return shipped if shipped.exists() else given
    return given
