"""Files of benchmarks/ as modules."""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"


def load_files(*names):
    """They find one another as those of a script do, and are forgotten by name: test_benchmarks.py runs them as
    scripts."""
    sys.path.insert(0, str(FOLDER))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(FOLDER))
        for path in FOLDER.glob("*.py"):
            sys.modules.pop(path.stem, None)
