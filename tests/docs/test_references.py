"""What pages name exists: links and anchors, pages of the site, modules, files, and the places of the field's terms."""

import functools
import importlib
import posixpath
import re

import config_reference
import pytest
import yaml
from pages import DOCS, PAGES, ROOT, anchors, blocks, prose, read

TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
TEXTS = {name: read(ROOT / name) for name in TOP} | {f"docs/{name}": read(path) for name, path in PAGES.items()}
GENERATED = {f"docs/reference/config/{name}.md" for name in config_reference.ROOTS}
GENERATED |= {"docs/reference/cli.md", "docs/reference/files.md"}
"""Written when the site is built, by docs/tools/."""
FOLDERS = "lm|train|tokenize|generate|cli|configs|tests|benchmarks|docs|bundled|samples"
TERMS = {
    "KV cache": ("concepts/kv-cache.md", "lm/kv_cache/quantized.py"),
    "attention mask": ("concepts/kv-cache.md", "lm/attention/mask_types.py"),
    "prefill": ("concepts/data-flow.md", "generate/decoding/loop.py"),
    "classifier-free guidance": ("concepts/data-flow.md", "generate/sampling/guidance.py"),
    "speculative decoding": ("concepts/data-flow.md", "generate/decoding/speculative.py"),
    "masked decoding": ("concepts/data-flow.md", "generate/decoding/masked.py"),
    "data loader": ("concepts/data-flow.md", "train/common/batch_sampler.py"),
    "dataset": ("concepts/data-flow.md", "train/lm/dataset.py"),
    "multi-token prediction": ("generation.md", "lm/heads/multi_token_prediction.py"),
    "codebook pattern": ("concepts/codebook-patterns.md", "lm/patterns/pattern.py"),
    "cross-attention": ("concepts/kv-cache.md", "lm/kv_cache/"),
    "rotary embedding": ("concepts/kv-cache.md", "lm/ops/rotary.py"),
    "packed sequences": ("training.md", "lm/models/packed_sequences.py"),
    "weight-only quantization": ("generation.md", "lm/quantization/packed_linear.py"),
    "codec": ("how-to/checkpoint.md", "tokenize/public/tensor_map.py"),
}
"""A term that a researcher searches for -> the page that explains it, and the file that it names."""


@functools.cache
def anchors_of(name: str) -> set[str]:
    """Anchors of a page, also of a generated one."""
    if name in TEXTS:
        return anchors(TEXTS[name])
    if "reference/config/" in name:
        return anchors(config_reference.config_page(name.rsplit("/", 1)[1].removesuffix(".md")))
    return set()


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
        assert target in GENERATED or (ROOT / target).exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{name}: {link}: no such heading"


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load("nav:" + read(ROOT / "mkdocs.yml").split("\nnav:", 1)[1])["nav"]

    def pages_in(entry):
        if isinstance(entry, str):
            return [entry]
        entries = entry if isinstance(entry, list) else list(entry.values())
        return [page for one in entries for page in pages_in(one)]

    listed = pages_in(nav)
    assert sorted(listed) == sorted([*PAGES, *(name.removeprefix("docs/") for name in GENERATED)])


def added_by(name: str) -> set[str]:
    """Files that a how-to page adds, which do not exist here."""
    return {block.title for block in blocks(TEXTS[name]) if block.title and block.language != "diff"}


@pytest.mark.parametrize("name", TEXTS)
def test_modules_and_names_exist(name):
    added = {f"tessera.{path.removesuffix('.py').replace('/', '.')}" for path in added_by(name)}
    for dotted in sorted(set(re.findall(r"\btessera(?:\.[A-Za-z_]\w*)+", TEXTS[name]))):
        if not any(dotted.startswith(module) for module in added):
            assert resolves(dotted), f"{name}: {dotted}"


def resolves(dotted: str) -> bool:
    """Whether a name is a module of the package, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_folders_exist(name):
    text, added = TEXTS[name], added_by(name) if name.startswith("docs/how-to/") else set()
    named = set(re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w\.(?:py|yaml|json|md))\b", text))
    named |= set(re.findall(rf"`((?:{FOLDERS})/[\w/-]*)`", text))
    for path in sorted(named - added):
        assert (ROOT / path).exists() or path in GENERATED, f"{name}: {path}"


def test_pages_named_in_code_exist():
    for folder in FOLDERS.split("|"):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yaml")]:
            if path.is_relative_to(ROOT / "tests"):
                continue
            for page in re.findall(r"docs/[\w/-]+\.md", read(path)):
                assert (ROOT / page).is_file(), f"{path.relative_to(ROOT)}: {page}"


@pytest.mark.parametrize("term", TERMS)
def test_terms_of_the_field_are_found(term):
    page, file = TERMS[term]
    text = " ".join(read(DOCS / page).split())
    assert re.search(re.escape(term), text, flags=re.I), f"{page} does not say '{term}'"
    assert file in text, f"{page} does not name {file}"
