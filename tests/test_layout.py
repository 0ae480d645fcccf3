"""The shape of the repository: names, folders, and which way imports may point. Reads source files only."""

import ast
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_FOLDERS = ("cli", "tokenize", "lm", "generate", "train", "configs", "bundled", "samples")

# A folder of the package may import itself and these.
MAY_IMPORT = {
    "configs": set(),
    "tokenize": {"configs"},
    "lm": {"tokenize", "configs"},
    "generate": {"lm", "tokenize", "configs"},
    "train": {"lm", "tokenize", "configs"},
    "cli": {"train", "generate", "lm", "tokenize", "configs"},
    "samples": {"tokenize", "configs"},
    "bundled": set(),
}

# A room, and the rooms of its folder that it may import (.: the files beside them). A folder may import all its rooms.
ROOMS = """
cli/commands                       . report
cli/commands/directories           .
cli/report                         -
generate/decoding                  execution requests sampling
generate/execution                 sampling
generate/long_form                 decoding requests sampling
generate/requests                  execution sampling
generate/sampling                  -
generate/streaming                 decoding long_form requests
lm/attention                       ops
lm/checkpoints                     . clustering conditioning layers models quantization
lm/clustering                      -
lm/conditioning                    attention layers ops patterns
lm/heads                           attention kv_cache layers ops patterns
lm/kernels                         attention kv_cache layers ops
lm/kv_cache                        attention ops
lm/layers                          attention kv_cache ops patterns
lm/models                          . attention clustering conditioning heads kv_cache layers ops patterns
lm/ops                             -
lm/patterns                        ops
lm/public                          . checkpoints conditioning heads layers models ops patterns quantization
lm/quantization                    attention heads kernels kv_cache layers models ops
samples/emoji                      -
samples/voice                      -
tokenize/alignment                 text
tokenize/audio                     . layers quantizers quantizers/combinators
tokenize/compression               . data layers
tokenize/data                      . alignment audio
tokenize/hub                       . audio layers public
tokenize/image                     . layers quantizers quantizers/combinators
tokenize/layers                    -
tokenize/public            . audio hub image layers public/images quantizers quantizers/codebooks quantizers/combinators
tokenize/public/images             . image public quantizers quantizers/combinators
tokenize/quantizers                quantizers/codebooks quantizers/combinators
tokenize/quantizers/codebooks      quantizers
tokenize/quantizers/combinators    . quantizers quantizers/codebooks
tokenize/text                      text/english
tokenize/text/english              text
train/align                        -
train/common                       distributed
train/discriminators               distributed engines
train/distributed                  -
train/engines                      common distributed
train/evaluation                   losses
train/initialization               engines
train/lm                           common distributed engines initialization
train/losses                       discriminators
train/tokenizer                    common discriminators distributed engines initialization losses
"""
MOST_FILES = 17
"""In a room; __init__.py does not count."""

# Imported in one file each: a package that changes is met in one place.
CORE_WITH_ONE_HOME = {"sentencepiece", "soundfile", "PIL"}
# Optional or slow to import: in one file each, and only inside the function that uses it.
OPTIONAL = {
    *("deepspeed", "flash_attn", "xformers", "transformers", "ray", "fastapi", "tensorboard", "matplotlib"),
    *("sklearn", "skimage", "pystoi", "pesq", "prdc", "pocketsphinx", "scipy"),
    *("constriction", "torchmetrics", "auraloss", "av", "onnx", "onnxruntime", "hibari", "espeakng_loader"),
    "tokenizers",
}
OTHER_PACKAGES = {"torch", "numpy", "safetensors", "pydantic", "yaml", "typer", "tqdm"}


def package_files() -> list[Path]:
    """Python files that belong to the package (not tests, benchmarks or the virtual environment)."""
    files = sorted(ROOT.glob("*.py"))
    for folder in PACKAGE_FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def folder_of(path: Path) -> str:
    """The package folder a file lies in; "" for files in the root."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def import_statements(path: Path) -> list[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """A file's imports, each with whether it stands inside a function and under `if TYPE_CHECKING:`."""
    found = []

    def visit(node: ast.AST, inside: bool, types: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append((node, inside, types))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        types = types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):  # no expression holds an import
                visit(child, inside, types)

    visit(parse(path), False, False)
    return found


@cache
def imported_modules(path: Path) -> list[tuple[str, int, bool]]:
    """Modules a file imports as (absolute dotted name, line, inside a function).

    Relative imports are spelled out: in lm/models/causal.py, `from ..tokenize.spec import X` gives
        "tessera.tokenize.spec".
    Imports under `if TYPE_CHECKING:` never run and are left out.
    """
    package = ("tessera", *path.relative_to(ROOT).parent.parts)
    found: list[tuple[str, int, bool]] = []
    for node, inside, types in import_statements(path):
        if types:
            continue
        if isinstance(node, ast.Import):
            found.extend((name.name, node.lineno, inside) for name in node.names)
            continue
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        module = ".".join(part for part in (base, node.module or "") if part)
        if node.module is None:  # from .. import x: x may be a module
            found.extend((f"{module}.{name.name}", node.lineno, inside) for name in node.names)
        else:
            found.append((module, node.lineno, inside))
    return found


def test_tokenize_has_no_init():
    assert not (ROOT / "tokenize" / "__init__.py").exists(), "it would hide the standard module tokenize; delete it"
    for folder in {path.parent for path in package_files()} - {ROOT / "tokenize"}:
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)}/ needs an __init__.py"
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests are collected by path, without __init__.py"


def test_no_name_of_the_standard_library():
    names = sys.stdlib_module_names
    for path in package_files():
        assert path.stem.startswith("__") or path.stem not in names, (
            f"{path.relative_to(ROOT)} is named like a standard module"
        )
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for folder in folders:
        assert folder.name == "tokenize" or folder.name not in names, f"{folder.name}/ is named like a standard module"


def test_no_name_of_a_package_we_use():
    for path in package_files():
        assert path.stem not in CORE_WITH_ONE_HOME | OPTIONAL | OTHER_PACKAGES, path
    # A benchmark runs with its folder first on the path.
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert path.stem not in CORE_WITH_ONE_HOME | OPTIONAL | OTHER_PACKAGES, path


@pytest.mark.parametrize("folder", [folder for folder in PACKAGE_FOLDERS])
def test_imports_point_down(folder):
    allowed = MAY_IMPORT[folder] | {folder}
    for path in package_files():
        if folder_of(path) != folder:
            continue
        for module, line, _ in imported_modules(path):
            parts = module.split(".")
            if parts[0] != "tessera" or len(parts) < 2 or parts[1] not in PACKAGE_FOLDERS:
                continue
            assert parts[1] in allowed, f"{path.relative_to(ROOT)}:{line}: {folder} must not import {parts[1]}"


def rooms() -> dict[str, set[str]]:
    found = {}
    for line in ROOMS.split("\n")[1:-1]:
        name, *others = line.split()
        folder = name.split("/")[0]
        found[name] = {folder if other == "." else f"{folder}/{other}" for other in others if other != "-"}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parent.as_posix()


@cache
def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports, also inside functions and for types alone."""
    package, found = ("tessera", *path.relative_to(ROOT).parent.parts), set()
    for node, _, _ in import_statements(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")][1:]
            start = ROOT.joinpath(*(part for part in base if part))
            for name in node.names:
                several = (start / f"{name.name}.py", start / name.name / "__init__.py", start.with_suffix(".py"))
                found.add(next((one for one in several if one.is_file()), start / "__init__.py"))
    return found - {path}


def test_imports_follow_the_rooms():
    allowed, seen = rooms(), set()
    for path in package_files():
        room = room_of(path)
        if "/" in room:
            assert room in allowed, f"{room} is not in the table of rooms"
            seen.add(room)
            for other in imported_files(path):
                to = room_of(other)
                if to.split("/")[0] == room.split("/")[0] and to != room:
                    assert to in allowed[room], f"{path.relative_to(ROOT)}: {room} must not import {to}"
    assert seen == set(allowed)


def test_no_import_circle():
    imports = {path: imported_files(path) for path in package_files()}
    done, open_ = set(), []

    def visit(path: Path) -> None:
        assert path not in open_, "circle: " + " -> ".join(str(one.relative_to(ROOT)) for one in [*open_, path])
        if path not in done:
            open_.append(path)
            for other in sorted(imports.get(path, ())):
                visit(other)
            open_.pop()
            done.add(path)

    for path in imports:
        # `cli/__init__.py` lists the commands, the package's own looks names up: nothing else imports by name.
        visit(path)


def test_rooms_are_small():
    sizes = Counter(room_of(path) for path in package_files() if path.name != "__init__.py")
    assert all(size <= MOST_FILES for size in sizes.values()), sizes.most_common(3)


def test_imports_inside_the_package_are_relative():
    for path in package_files():
        for node, _, _ in import_statements(path):
            names = []
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] != "tessera", f"{path.relative_to(ROOT)}:{node.lineno}: import it relatively"


def test_heavy_packages_have_one_home():
    homes = defaultdict(set)
    for path in package_files():
        for module, line, inside in imported_modules(path):
            package = module.split(".")[0]
            if module == "torch.utils.tensorboard":
                package = "tensorboard"
            if package not in CORE_WITH_ONE_HOME | OPTIONAL:
                continue
            where = f"{path.relative_to(ROOT)}:{line}"
            assert inside or package not in OPTIONAL, f"{where}: import {package} inside the function that uses it"
            homes[package].add(str(path.relative_to(ROOT)))
    # Making the sample data is a script of its own; it may use sklearn beside its home in the package.
    homes = {package: {file for file in files if not file.startswith("samples/")} for package, files in homes.items()}
    several = {package: sorted(files) for package, files in homes.items() if len(files) > 1}
    assert not several, f"imported in more than one file: {several}"


def test_command_line_imports_no_torch_at_import():
    for path in sorted((ROOT / "cli").rglob("*.py")):
        for module, line, inside in imported_modules(path):
            assert inside or module.split(".")[0] not in {"torch", "numpy", "yaml"}, (
                f"{path.name}:{line}: import it on use"
            )


def test_pyproject_lists_every_package():
    # A crude reader: the list is one literal in pyproject.toml, and Python 3.10 has no tomllib.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(ast.literal_eval(text.split("\npackages = ", 1)[1].split("]", 1)[0] + "]"))
    found = {"tessera"}
    for path in package_files():
        parent = path.relative_to(ROOT).parent
        found.add(".".join(("tessera", *parent.parts)))
    assert listed == found


def test_makefile_names_the_eval_packages():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = ast.literal_eval(project.split("\neval = ", 1)[1].splitlines()[0])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = makefile.split("EVAL_PACKAGES := ", 1)[1].splitlines()[0].split()
    assert sorted(listed) == sorted(extra)


def test_every_file_says_what_it_is():
    for path in package_files():
        source = path.read_text(encoding="utf-8")
        if path.name == "__init__.py" and not source.strip():
            continue
        assert ast.get_docstring(parse(path)), f"{path.relative_to(ROOT)} has no docstring"


def test_every_verb_shows_an_example():
    for path in sorted((ROOT / "cli").rglob("*.py")):
        if path.stem in ("__init__", "app") or "def register(" not in path.read_text(encoding="utf-8"):
            continue
        assert "Example" in path.read_text(encoding="utf-8"), f"{path.relative_to(ROOT)}: the help has no example"


def run_python(code: str, cwd: Path) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_import_tessera_is_light(tmp_path):
    code = "import sys; before = set(sys.modules); import tessera; print(*(set(sys.modules) - before))"
    loaded = {name.split(".")[0] for name in run_python(code, tmp_path).split()}
    assert "tessera" in loaded
    assert loaded - {"tessera"} <= sys.stdlib_module_names


def test_help_imports_no_torch(tmp_path):
    code = "import sys; from tessera.cli.app import run; run(['--help']); print('torch' in sys.modules)"
    assert run_python(code, tmp_path).splitlines()[-1] == "False"


def test_a_python_started_in_the_root_finds_the_standard_tokenize():
    assert run_python("import tokenize; print(tokenize.__file__)", ROOT).strip() != str(ROOT / "tokenize")
    assert run_python("import tokenize; print(tokenize.generate_tokens.__name__)", ROOT).strip() == "generate_tokens"


@pytest.mark.slow
def test_import_tessera_takes_less_than_100_ms(tmp_path):
    code = "import time; start = time.perf_counter(); import tessera; print(time.perf_counter() - start)"
    seconds = statistics.median(float(run_python(code, tmp_path)) for _ in range(9))
    assert seconds < 0.1, f"import tessera took {1000 * seconds:.0f} ms (median of 9)"
