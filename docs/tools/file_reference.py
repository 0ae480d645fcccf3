"""Index of the package's files, from their docstrings: `python docs/tools/file_reference.py`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "tokenize", "lm", "generate", "train", "cli")
HEAD = """# Files

What every file of the package holds, by folder, with its public names. Generated from the docstrings; search this page
for a term to find the file that implements it.
"""


def files_page() -> str:
    """Markdown of the page: one section for each folder that holds Python files."""
    lines = [HEAD]
    for folder in FOLDERS:
        for room in sorted({path.parent for path in (ROOT / folder).rglob("*.py")}):
            files = sorted(path for path in room.glob("*.py") if path.stem != "__init__")
            if files:
                lines += section(room, files)
    return "\n".join(lines)


def section(room: Path, files: list[Path]) -> list[str]:
    """One folder: what it holds, then a table of its files."""
    name = room.relative_to(ROOT).as_posix()
    head = room / "__init__.py"
    about = ast.get_docstring(ast.parse(head.read_text(encoding="utf-8"))) if head.is_file() else None
    lines = [f"## `{name}/`", ""]
    if about:
        lines += [about.split("\n\n")[0], ""]
    lines += ["| file | what it holds | public names |", "|---|---|---|"]
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        summary = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        names = ", ".join(f"`{name}`" for name in public_names(tree))
        lines.append(f"| `{path.name}` | {escape(summary)} | {names} |")
    return [*lines, ""]


def public_names(tree: ast.Module) -> list[str]:
    """Classes and functions of a file whose names do not start with an underscore."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


if __name__ == "__main__":
    print(files_page())
