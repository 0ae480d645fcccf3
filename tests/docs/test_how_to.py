"""The how-to pages: the code of all of them is put into a copy of the package, where the shared laws then pass."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT, apply_change, blocks, read

HOW_TO = sorted(path.stem for path in (DOCS / "how-to").glob("*.md") if path.stem != "index")
COPIED = ("cli", "configs", "generate", "lm", "tokenize", "train", "tests")
LINKED = ("bundled", "samples", "benchmarks", "docs", "README.md", "CHANGELOG.md")


def make_copy(folder: Path) -> Path:
    """A copy of the package with the changes of all pages."""
    copy = folder / "tessera"
    copy.mkdir()
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "__main__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    for name in LINKED:
        (copy / name).symlink_to(ROOT / name)
    for page in HOW_TO:
        for block in blocks(read(DOCS / "how-to" / f"{page}.md")):
            if block.title is None:
                continue
            path = copy / block.title
            if block.language == "diff":
                path.write_text(apply_change(read(path), block.text), encoding="utf-8")
            else:
                assert not path.exists(), f"{page}: {block.title} exists already"
                path.write_text(block.text, encoding="utf-8")
    return copy


def pytest_commands(page: str) -> list[list[str]]:
    """The arguments of the `python -m pytest` lines of a page."""
    lines = [line for block in blocks(read(DOCS / "how-to" / f"{page}.md")) for line in block.text.splitlines()]
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m pytest ")]


def run_pytest(copy: Path, arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy.parent)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_parts_of_the_pages_pass_the_laws(tmp_path):
    """One run for all pages: importing torch takes longer than most of the laws."""
    copy, files, words = make_copy(tmp_path), [], []
    for page in HOW_TO:
        commands = pytest_commands(page)
        assert commands, f"{page}: has no command that checks its laws"
        for arguments in commands:
            words += [f"({arguments[at + 1]})" for at, word in enumerate(arguments) if word == "-k"]
            files += [word for word in arguments if word.startswith("tests/")]
            if "-k" not in arguments:
                words.append(Path(files[-1]).stem)
    done = run_pytest(
        copy, ["-m", "", *files, "tests/test_layout.py", "-k", f"{' or '.join(words)} or follow_the_rooms"]
    )
    passed = [line for line in done.splitlines() if " PASSED" in line]
    for page in HOW_TO:
        for arguments in pytest_commands(page):
            file = next(word for word in arguments if word.startswith("tests/"))
            assert any(line.startswith(file) for line in passed), f"{page}: {arguments} ran nothing"


@pytest.mark.slow
def test_scripts_of_the_pages_run(tmp_path):
    """Python blocks without a title."""
    pytest.importorskip("transformers")
    for page in HOW_TO:
        for block in blocks(read(DOCS / "how-to" / f"{page}.md")):
            if block.language == "python" and block.title is None:
                subprocess.run([sys.executable, "-c", block.text], cwd=tmp_path, check=True, timeout=300)
