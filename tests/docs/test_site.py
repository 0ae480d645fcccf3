"""The documentation's site builds without warnings and needs no network; its generated pages are complete."""

import os
import re
import subprocess
import sys
from functools import cache

import cli_reference
import config_reference
import file_reference
import pytest
from pages import ROOT

config_page = cache(config_reference.config_page)


def rows_of(name):
    """The cells of each key's row."""
    lines = [line for line in config_page(name).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("name", config_reference.ROOTS)
def test_every_key_has_a_row(name):
    page = config_page(name)
    assert all(len(cells) == 5 for cells in rows_of(name))
    for _, anchor in re.findall(r"\[`([\w.]+)`\]\(#([\w-]+)\)", page):
        assert f"{{#{anchor}}}" in page
    if name == "train":
        for row in ("| `width` | integer", "| `recent` | integer >= 0 | `16` |", "| `temperature` | "):
            assert row in page
        for kind in ("`kind: depth`", "`kind: int8`", "`kind: best_fit`", "`kind: deepspeed`", "`kind: masked`"):
            assert kind in page, kind


@pytest.mark.parametrize("name", config_reference.ROOTS)
def test_every_key_has_a_meaning(name):
    meanings = [(key, re.sub(r"See \[`.*", "", meaning)) for key, *_, meaning in rows_of(name)]
    bare = {key for key, meaning in meanings if not meaning and key != "`kind`"}
    assert not bare, f"add a docstring below each of these fields: {sorted(bare)}"


def test_every_command_has_a_section():
    from tessera.cli import VERB_FILES

    page = cli_reference.cli_page()
    for verb in set(VERB_FILES) - {"cluster", "tokenizer"}:  # the file of `tessera coarse`; a group
        assert f"## `tessera {verb.rpartition('.')[2]}`" in page
    assert "## `tessera tokenizer train`" in page and "| `--set TEXT` |" in page


def test_every_file_is_listed():
    page = file_reference.files_page()
    for path in ("lm/kv_cache/", "generate/sampling/", "tokenize/quantizers/combinators/"):
        assert f"## `{path}`" in page
    assert "| `quantized.py` | The int8 and int4 kinds of cache" in page


@pytest.mark.slow
def test_the_site_builds_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stderr.strip(), done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(https?:[^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)[^>]+href=\"?(https?:[^\s\">]+)", text)
        assert not loaded, f"{page.relative_to(tmp_path)} loads {loaded}"
    assert "Load a model directory" in (tmp_path / "reference/python.html").read_text(encoding="utf-8")
