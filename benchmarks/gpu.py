"""Everything that needs a CUDA device, in one command under nine minutes that ends with one table.

    make test-gpu                                                   in the project's own environment
    make test-gpu GPU_PYTHON=python3                                in an environment that has torch for CUDA already
    PYTHONPATH=.typecheck python benchmarks/gpu.py --json gpu.json  the same without make

What it runs, each in a process of its own with a share of the time, so that a failed kernel ends only its own part:

    tests      those marked gpu, and the Triton kernels compared with torch
    generate   MusicGen-small's shape in bfloat16, int8 and int4 at batch 1, 8 and 32 beside transformers (musicgen.py)
    train      tokens per second with each attention backend, beside transformers' Llama (train_backbone.py)

A package that is missing is named in the table and is no failure. The exit code is 1 if a part failed, 2 without a
CUDA device.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tessera.lm.attention.registry import available_backends

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "transformers", "flash-attn", "xformers", "deepspeed", "pytest")
TESTS = ("tests/lm/test_triton_steps.py", "tests/generate/test_triton_draw.py", "tests/lm/test_attention.py")
"""Run whole on a GPU, beside the tests of all files that are marked gpu."""


@dataclass
class Part:
    """One process of the run."""

    name: str
    needs: str
    """The package without which it is left out."""
    command: list[str]
    seconds: float
    """It is ended after these."""
    json: Path | None = None
    """Where it writes its figures."""
    found: str = ""
    """What its line in the table says."""
    failed: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu: only to check that this script runs")
    parser.add_argument("--seconds", type=float, default=510, help="for everything")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--sizes", nargs="*", default=["small", "long"], help="of train_backbone.py")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(stop("no CUDA device here; `make test` runs what needs none"))
    installed = {name: find_version(name) for name in PACKAGES}
    backends = available_backends(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        parts = make_parts(
            arguments, installed, [name for name, state in backends.items() if state == "ok"], Path(folder)
        )
        ends = time.monotonic() + arguments.seconds
        for part in parts:
            run_part(part, ends - time.monotonic())
        figures = {part.name: json.loads(part.json.read_text()) for part in parts if part.json and part.json.exists()}
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    print_table(device, installed, backends, parts, figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device, "installed": installed, **figures}, indent=1) + "\n")
    sys.exit(any(part.failed for part in parts))


def stop(message: str) -> int:
    """Print why nothing runs; the exit code."""
    print(message, file=sys.stderr)
    return 2


def find_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def make_parts(
    arguments: argparse.Namespace, installed: dict[str, str | None], backends: list[str], folder: Path
) -> list[Part]:
    """The processes, with the longest time each may take; parts whose package is missing have no command."""
    python, common = sys.executable, ["--device", arguments.device]
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--tb=line"]
    marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    generate, train = folder / "generate.json", folder / "train.json"
    musicgen = ["--batches", arguments.batches, "--frames", str(arguments.frames), "--turns", "3", *common]
    backbone = ["--sizes", *arguments.sizes, "--attention", *backends, *common]
    parts = [
        Part("tests marked gpu", "pytest", [*pytest, "-m", "gpu and not slow", *marked], 120),
        Part("kernels equal torch", "pytest", [*pytest, "-m", "not slow", *TESTS], 120),
        Part("generate", "transformers", [python, "benchmarks/musicgen.py", *musicgen], 240, generate),
        Part("train", "transformers", [python, "benchmarks/train_backbone.py", *backbone], 120, train),
    ]
    for part in parts:
        if part.json is not None:
            part.command += ["--json", str(part.json)]
        if installed[part.needs] is None:
            part.command, part.found = [], f"{part.needs} is not installed"
    return parts


def run_part(part: Part, left: float) -> None:
    """Run it, printing what it prints, and keep its last words."""
    if not part.command:
        return
    if left < 5:
        part.found, part.failed = "no time was left", True
        return
    print(f"\n== {part.name}", flush=True)
    began, lines = time.monotonic(), []
    seconds = min(part.seconds, left)
    process = subprocess.Popen(part.command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        part.found, part.failed = f"ended after {seconds:.0f} s", True
    print(printed, flush=True)
    lines = printed.strip().splitlines() or [""]
    summary = [line for line in lines if re.search(r"\d+ (passed|failed|skipped|error).* in [\d.]+s", line)]
    if not part.failed:
        # 5: pytest found no test, which is right where all of them are skipped on collection
        part.failed = process.returncode not in ((0, 5) if "pytest" in part.command else (0,))
        part.found = summary[-1].strip("= ") if summary else lines[-1] if part.failed else "done"
    part.found += f" ({time.monotonic() - began:.0f} s)"


def print_table(
    device: str,
    installed: dict[str, str | None],
    backends: dict[str, str],
    parts: list[Part],
    figures: dict[str, dict],
) -> None:
    """Everything that was found, one line a fact."""
    rows = [("device", device)]
    rows += [(name, found or "not installed") for name, found in installed.items()]
    rows += [(f"attention {name}", state) for name, state in backends.items()]
    rows += [(part.name, f"{'FAILED: ' if part.failed else ''}{part.found}") for part in parts]
    for row in figures.get("generate", {}).get("rows", []):
        ratio = "" if row["ratio"] is None else f", {row['ratio']:.2f} times transformers"
        rows.append(
            (f"generate {row['name']}, batch {row['batch']}", f"{row['frames_per_second']:.1f} frames/s{ratio}")
        )
    for row in figures.get("train", {}).get("rows", []):
        name = f"train {row['size']} {row['precision']} {row['attention']}"
        speed, ratio = row["tessera_tokens_per_second"], row["ratio"]
        rows.append((name, f"{speed:.0f} tokens/s, {ratio:.2f} times transformers' Llama"))
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:<{width}}  {found}" for name, found in rows), flush=True)


if __name__ == "__main__":
    main()
