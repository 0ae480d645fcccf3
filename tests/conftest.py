"""Settings of every test: Triton's interpreter where there is no GPU, the marker `sample`, garbage collection."""

import atexit
import gc
import os
import random

import pytest
import torch

# Triton reads this once, at its first import, and transformers imports Triton: set it before any test file is read.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest looks which are slow
def pytest_collection_modifyitems(items):
    """Of the cases of a test marked `sample(n)` that are not slow, n drawn once for all by its name stay
    quick, the others become slow; `sample(n, family)` draws n of each family of cases."""
    cases = {}
    for item in items:
        marker = item.get_closest_marker("sample")
        if marker is not None and item.get_closest_marker("slow") is None:
            cases.setdefault((item.path, item.originalname, *marker.args), []).append(item)
    for (_, name, count, *_), found in cases.items():
        quick = random.Random(name).sample(found, min(count, len(found)))
        for item in found:
            if item not in quick:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection():
    """What is imported and collected stays until the end: the garbage collector need not look at it ever again."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)
