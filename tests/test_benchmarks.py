"""Every script of benchmarks/ can be imported and says how it is used; optional packages are not needed for that."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8"))
ONLY_HERE = {"transformers", "vector_quantize_pytorch", "onnxruntime", "speechmos", "jiwer", "prdc", "pocketsphinx"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_it_is_used(name, monkeypatch, capsys):
    """As a script is run, in this process: its neighbors are found first, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    for package in ONLY_HERE:
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    for neighbor in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, neighbor.stem, raising=False)
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
    finally:
        for neighbor in FOLDER.glob("*.py"):
            sys.modules.pop(neighbor.stem, None)
    said = capsys.readouterr().out
    assert stopped.value.code in (0, None) and said.startswith(f"usage: {name}")


def test_a_file_that_is_no_script_is_imported_by_one():
    files = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.py")}
    assert len(SCRIPTS) > 15
    for name in files.keys() - {Path(script).stem for script in SCRIPTS}:
        assert any(f"from {name} import" in text for text in files.values()), f"{name}.py has no main and no user"
