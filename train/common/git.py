"""The git commit that is recorded in checkpoints and model cards."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from ...tokenize.bundled import PACKAGE


@cache
def git_commit() -> str | None:
    """Commit of the checkout this runs from, with "-dirty" for modified files; None for an installed package."""
    root = PACKAGE
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
