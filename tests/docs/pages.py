"""Pages of the documentation as tests read them: code blocks with their titles, links, and names in backticks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
"""Page, relative to docs/ -> its file."""


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    language: str
    title: str | None
    """The file that it writes or changes."""
    text: str


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """The code blocks of a page, in order."""
    found = []
    for mark, body in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.M | re.S):
        language, _, rest = mark.partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        found.append(Block(language, title[1] if title else None, body))
    return found


def prose(text: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), flags=re.M):
        explicit = re.search(r"\{#([\w-]+)\}", heading)
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\{.*\}", "", heading)).strip().lower()
        found.add(explicit[1] if explicit else re.sub(r"[\s]+", "-", plain))
    return found


def apply_change(source: str, diff: str) -> str:
    """Apply the hunks of a diff block, separated by lines of @@; a hunk without context is added at the end.

    Raises:
        AssertionError: what a hunk replaces does not occur exactly once after the hunk before it.
    """
    start = 0
    for hunk in re.split(r"^@@.*\n", diff, flags=re.M):
        lines = hunk.splitlines()
        before = [line[1:] for line in lines if line[:1] in (" ", "-")]
        after = [line[1:] for line in lines if line[:1] in (" ", "+")]
        if not before:
            source = source.rstrip("\n") + "\n" + "\n".join(after) + "\n"
            continue
        partial = any(line.startswith("-") for line in lines)  # the last line may be the beginning of one
        old = "\n".join(before) if partial else "\n".join(before) + "\n"
        new = "\n".join(after) if partial else "\n".join(after) + "\n"
        at = source.find("\n" + old, start)
        assert at >= 0, f"not found:\n{old}"
        source = source[: at + 1] + new + source[at + 1 + len(old) :]
        start = at + len(new)
    return source
