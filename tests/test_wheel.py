"""The wheel holds what the tree holds, and works without it: in a fresh environment, started from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
CODE_FOLDERS = ("cli", "tokenize", "lm", "generate", "train")
DATA_FOLDERS = ("configs", "bundled", "samples")
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "out", "runs", "tests", "benchmarks"
)


def shipped_files() -> set[str]:
    """What the tree says the wheel must hold: every file of the package's folders, and the Python files of the root."""
    files = set(ROOT.glob("*.py"))
    for folder in (*CODE_FOLDERS, *DATA_FOLDERS):
        files.update(path for path in (ROOT / folder).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in files}
    return {f"tessera/{name}" for name in names if "__pycache__" not in name}


def run(command: list, cwd: Path, **options) -> str:
    # A PYTHONPATH that points at the tree would hide the wheel.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"env": env, **options}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network, from a copy: what a build leaves behind would be built in the next time."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "tree"], cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment: the wheel, and behind it the packages of this one without its tessera."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", binaries / "python"]
    run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], cwd=folder)
    # A folder named in a .pth file is put on the path, but the .pth files in it (the editable tessera) are not read.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return binaries


def test_wheel_holds_the_files_of_the_tree(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped_files()


def test_wheel_is_installed_and_imported_from_another_folder(fresh, tmp_path):
    where = run([fresh / "python", "-c", "import tessera; print(tessera.__file__)"], cwd=tmp_path).strip()
    assert Path(where).is_relative_to(fresh.parent)
    code = "import tokenize, tessera.tokenize.spec as spec; print(tokenize.__file__, spec.__file__, sep='\\n')"
    standard, ours = run([fresh / "python", "-c", code], cwd=tmp_path).split()
    assert Path(ours).is_relative_to(fresh.parent) and not Path(standard).is_relative_to(fresh.parent)


def test_wheel_brings_the_command(fresh, tmp_path):
    shown = run([fresh / "tessera", "--help"], cwd=tmp_path)
    assert "doctor" in shown
    assert run([fresh / "python", "-m", "tessera", "--help"], cwd=tmp_path).splitlines()[2:] == shown.splitlines()[2:]


def test_wheel_brings_configs(fresh, tmp_path):
    code = "import tessera.configs as c, pathlib; print(*pathlib.Path(c.__file__).parent.rglob('*.yaml'), sep='\\n')"
    found = run([fresh / "python", "-c", code], cwd=tmp_path).split()
    assert len(found) == len(list((ROOT / "configs").rglob("*.yaml")))
