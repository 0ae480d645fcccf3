"""How long loading a model takes, and how much of it is the hash of its weights.

    python benchmarks/load.py                       the bundled models, and a random one of 508 MB
    python benchmarks/load.py MODEL ... --repeats 9

Prints processor time of this process, which the neighbours of a machine disturb least; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import tessera
from tessera.generate.loading import find_model
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.lm.heads.registry import ParallelHeadConfig
from tessera.lm.layers.input_embedding import EmbeddingInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.tokenize.bundled import BUNDLED


def make_large(folder: Path) -> Path:
    """A model of 127 M random weights, for the digits' tokenizer."""
    digits = load_model(BUNDLED / "digits")
    sizes = {"width": 1024, "heads": 16, "kv_heads": None, "layers": 10, "ffn": None}
    plain = {"input": EmbeddingInputConfig(), "head": ParallelHeadConfig()}
    torch.manual_seed(0)
    lm = TokenLM(digits.lm.config.model_copy(update=sizes | plain), digits.spec)
    save_model(folder, lm, digits.tokenizer, digits.text, digits.labels)
    return folder


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call after one to warm up."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = args.models or ["digits", "speech", str(make_large(Path(folder) / "large"))]
        print(f"{'model':20}  {'MB':>6}  {'load, ms':>8}  {'hash alone, ms':>14}")
        for name in models:
            content = (find_model(name) / "lm.safetensors").read_bytes()
            load = seconds(lambda name=name: tessera.load(name, "cpu"), args.repeats)
            hashed = seconds(lambda content=content: hashlib.sha256(content).digest(), args.repeats)
            print(f"{Path(name).name:20}  {len(content) / 1e6:6.1f}  {load * 1e3:8.1f}  {hashed * 1e3:14.1f}")


if __name__ == "__main__":
    main()
