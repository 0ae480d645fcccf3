"""MkDocs hooks: generated reference pages, a copy named `tessera` for mkdocstrings, and links into the repository."""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parents[1]
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")
SECTION = re.compile(r"\n( +)((?:Returns|Raises|Warns|Yields):\n)")
"""A section of a docstring; mkdocstrings wants a blank line before it."""
_copies: list[Path] = []


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config):
    """Let mkdocstrings read the sources under the package's name, whatever the root folder is called.

    The copy has no tests and no environment, which mkdocstrings would walk through, and an __init__.py in tokenize/,
    without which it does not find the folder.
    """
    sys.path.insert(0, str(TOOLS))
    import file_reference

    folder = Path(tempfile.mkdtemp())
    _copies.append(folder)
    (folder / "tessera").mkdir()
    shutil.copy(ROOT / "__init__.py", folder / "tessera")
    for name in file_reference.FOLDERS:
        shutil.copytree(ROOT / name, folder / "tessera" / name, ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
        (folder / "tessera" / name / "__init__.py").touch()
    for path in (folder / "tessera").rglob("*.py"):
        path.write_text(SECTION.sub(r"\n\n\1\2", path.read_text(encoding="utf-8")), encoding="utf-8")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files, config):
    """Add the generated pages, and copies of the repository's files that pages link to."""
    import cli_reference
    import config_reference
    import file_reference

    pages = {f"reference/config/{name}.md": config_reference.config_page(name) for name in config_reference.ROOTS}
    pages |= {"reference/cli.md": cli_reference.cli_page(), "reference/files.md": file_reference.files_page()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    linked = {
        target
        for file in files.documentation_pages()
        for _, link in LINK.findall(file.content_string)
        if (target := outside(file.src_uri, link)) and (ROOT / target).is_file()
    }
    for target in sorted(linked):
        files.append(File.generated(config, f"files/{target}.txt", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links that leave docs/ into links to the copies, and those to folders into plain text."""

    def replaced(match: re.Match) -> str:
        text, link = match.groups()
        target = outside(page.file.src_uri, link)
        if target is None:
            return match[0]
        if (ROOT / target).is_file():
            return f"[{text}]({posixpath.relpath(f'files/{target}.txt', posixpath.dirname(page.file.src_uri) or '.')})"
        return text

    return LINK.sub(replaced, markdown)


def outside(page: str, link: str) -> str | None:
    """The repository path that a link of a page leads to, if it is outside docs/; None: inside, or another site."""
    if "://" in link or link.startswith(("#", "mailto:")):
        return None
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link.split("#")[0]))
    return None if target == "docs" or target.startswith(("docs/", "..")) else target


def on_post_build(config):
    """Remove the copy."""
    while _copies:
        shutil.rmtree(_copies.pop())
